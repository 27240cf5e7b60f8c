"""Servers that are processes; whatever a test leaves behind is killed."""

import pytest
from parts.processes import RunningServer


@pytest.fixture
def make_running(request, tmp_path, database_kind):
    """Makes servers, not yet started, on a new database that holds nothing."""
    made = []
    urls = []

    def make(settings=None, config=None) -> RunningServer:
        settings = dict(settings or {})
        if database_kind == "postgresql" and "DATABASE__URL" not in settings:
            urls.append(request.getfixturevalue("postgres").create(migrated=False))
            settings["DATABASE__URL"] = urls[-1]
        made.append(RunningServer(tmp_path / f"running{len(made)}", settings, config))
        return made[-1]

    yield make
    for server in made:
        server.close()
    for url in urls:
        request.getfixturevalue("postgres").drop(url)


@pytest.fixture
def running(make_running) -> RunningServer:
    """A server that answers."""
    server = make_running()
    server.start()
    return server
