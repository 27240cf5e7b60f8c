"""Servers that are processes; whatever a test leaves behind is killed."""

import pytest
from parts.processes import RunningServer


@pytest.fixture
def make_running(tmp_path, make_database):
    """Makes servers, not yet started, on a new database."""
    made = []

    def make(settings=None, config=None) -> RunningServer:
        folder = tmp_path / f"running{len(made)}"
        made.append(RunningServer(folder, {**make_database(), **(settings or {})}, config))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def running(make_running) -> RunningServer:
    """A server that answers."""
    server = make_running()
    server.start()
    return server
