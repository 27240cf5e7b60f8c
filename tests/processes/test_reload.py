"""SIGHUP: what was changed takes effect, what is broken changes nothing, no request is lost."""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import pytest
import urllib3
from parts.processes import RunningServer, away, free_port, wait_until

one_database = pytest.mark.parametrize("database_kind", ["sqlite"])

TERMS = (
    "docs: {{tos: {{version: '1', langs: {{en: {{name: {name}, url: 'https://example.org/'}}}}}}}}"
)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "identity.conf"
    path.write_text("")
    return path


@pytest.fixture
def terms(tmp_path, config):
    path = tmp_path / "terms.yaml"
    path.write_text(TERMS.format(name="first"))
    config.write_text(f'[terms]\nfile = "{path}"\n')
    return path


@pytest.fixture
def reloading(make_running, config) -> RunningServer:
    server = make_running(config=config)
    server.start()
    return server


class Load:
    """Threads that ask without a pause, each request on a connection of its own."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._over = threading.Event()
        self.statuses: list[int | str] = []

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor()
        self._runs = [self._threads.submit(self._run) for _ in range(3)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for run in self._runs:
            run.result()
        self._threads.shutdown()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self.statuses.append(self._server.get("/terms").status)
            except urllib3.exceptions.HTTPError as error:
                self.statuses.append(type(error).__name__)
            self._over.wait(0.02)


@one_database
def test_reload_takes_effect_again_and_again_without_losing_a_request(terms, reloading):
    with Load(reloading) as load:
        for name in ("second", "third", "fourth"):
            shown = terms_names(reloading)
            terms.write_text(TERMS.format(name=name))
            # Read when it is told, not when it is asked.
            assert terms_names(reloading) == shown
            reloading.signal(signal.SIGHUP)
            wait_until(lambda name=name: terms_names(reloading) == {name})
    assert len(load.statuses) > 30
    assert set(load.statuses) == {200}
    assert reloading.log.count(" reloading") == 3
    assert "crashed" not in reloading.log


@one_database
def test_reload_of_a_changed_setting_takes_effect(config, reloading):
    token = reloading.token("@alice:hs.test")
    assert reloading.get("/hash_details", token=token).json()["algorithms"] == ["sha256"]
    config.write_text('[lookup]\nalgorithms = ["sha256", "none"]\n[logging]\nformat = "json"\n')
    reloading.signal(signal.SIGHUP)
    wait_until(
        lambda: (
            reloading.get("/hash_details", token=token).json()["algorithms"] == ["sha256", "none"]
        )
    )
    reloading.crash("courier")
    reloading.wait_for_log("child_crashed")
    # The supervisor has logged in the old format before; it must change with the others.
    assert json.loads(reloading.log.splitlines()[-1])["event"] == "child_crashed"


@one_database
def test_reload_to_another_port_moves_the_server_there(config, make_running):
    old, new = free_port(), free_port()
    config.write_text(f'[server]\nlisten = "127.0.0.1:{old}"\n')
    server = make_running(config=config)
    del server.settings["SERVER__LISTEN"]
    server.port = old
    server.start()
    config.write_text(f'[server]\nlisten = "127.0.0.1:{new}"\n')
    server.signal(signal.SIGHUP)
    server.wait_for_log(f"127.0.0.1:{new}")
    server.port = new
    assert server.get("/ready").status == 200
    server.port = old
    with pytest.raises(urllib3.exceptions.NewConnectionError):
        server.get("/ready")
    assert "crashed" not in server.log


@one_database
def test_reload_of_something_broken_changes_nothing_and_tells_why(config, terms, reloading):
    sound = config.read_text()
    pids = sorted(reloading.descendants())
    for broken, reasons in (
        (
            '[server]\nname = "not a name"\nthreads = "many"\n',
            ["[server] name:", "[server] threads:"],
        ),
        ("[server", ["is not TOML"]),
        (
            f"{sound}[email]\nsmtp_host = 'localhost'\nsmtp_ca_file = 'missing.pem'\n",
            ["missing.pem"],
        ),
    ):
        config.write_text(broken)
        reloading.signal(signal.SIGHUP)
        for reason in reasons:
            reloading.wait_for_log(reason)
        assert terms_names(reloading) == {"first"}
    config.write_text(sound)
    terms.write_text("docs: 7")
    reloading.signal(signal.SIGHUP)
    reloading.wait_for_log("terms.yaml: docs")
    assert terms_names(reloading) == {"first"}
    assert reloading.log.count("reload_refused") == 5
    assert " reloading" not in reloading.log
    assert sorted(reloading.descendants()) == pids


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_reload_while_the_database_is_away_is_refused(reloading, postgres):
    pids = sorted(reloading.descendants())
    with away(postgres, reloading.settings["DATABASE__URL"]):
        reloading.signal(signal.SIGHUP)
        reloading.wait_for_log("reload_refused")
    wait_until(lambda: reloading.get("/ready").status == 200)
    assert sorted(reloading.descendants()) == pids


def terms_names(server: RunningServer) -> set[str]:
    """What several requests are told, so that every worker is likely to be asked."""
    answers = [server.get("/terms").json() for _ in range(8)]
    return {answer["policies"]["tos"]["en"]["name"] for answer in answers}
