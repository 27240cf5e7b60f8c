"""`identity serve`: starting, being ready, ending."""

import asyncio
import os
import signal
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from parts.mailserver import MailServer
from parts.processes import (
    PATIENCE_S,
    RunningServer,
    away,
    identity,
    is_running,
    kill,
    processes,
    wait_until,
)

one_database = pytest.mark.parametrize("database_kind", ["sqlite"])


def test_serve_the_first_time_creates_database_and_keys_and_says_so_once(make_running):
    server = make_running()
    server.start()
    data = server.folder / "data"
    key_files = [data / "signing.keys", data / "storage.keys"]
    for path in key_files:
        assert f"what={path}" in server.log
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert server.log.count(" created ") == 3
    assert server.log.count(" keep_a_copy ") == 1
    published = server.get("/pubkey/ed25519:0").json()
    assert server.stop() == 0

    kept = [path.read_bytes() for path in key_files]
    server.start()
    assert server.log.count(" created ") == 3
    assert server.log.count(" keep_a_copy ") == 1
    assert [path.read_bytes() for path in key_files] == kept
    assert server.get("/pubkey/ed25519:0").json() == published
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ready").json() == {"status": "ok", "degraded": []}


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_ready_while_postgresql_is_away_is_503_and_heals_by_itself(running, postgres):
    pids = sorted(running.descendants())
    with away(postgres, running.settings["DATABASE__URL"]):
        unready = running.get("/ready")
        assert running.get("/health").status == 200
    assert unready.status == 503
    assert unready.json() == {"status": "unavailable", "reasons": ["database"]}
    wait_until(lambda: running.get("/ready").status == 200)
    assert sorted(running.descendants()) == pids


def test_ready_on_an_older_schema_is_503_and_heals_by_itself(running):
    head = running.inside.database.read(_revision)
    running.inside.database.write(lambda tx: _set_revision(tx, "older"))
    old = running.get("/ready")
    assert old.status == 503
    assert old.json() == {"status": "unavailable", "reasons": ["migrations"]}
    assert running.get("/health").status == 200
    running.inside.database.write(lambda tx: _set_revision(tx, head))
    assert running.get("/ready").status == 200


@one_database
def test_serve_on_a_taken_port_ends_with_1_and_one_line(make_running):
    server = make_running()
    with socket.create_server(("127.0.0.1", server.port)):
        server.start(wait=False)
        assert server.wait() == 1
    last = server.log.splitlines()[-1]
    assert last == f"[server] listen: 127.0.0.1:{server.port}: Address already in use"
    assert "Traceback" not in server.log
    assert " error " not in server.log


def test_serve_with_a_wrong_configuration_tells_all_faults_and_creates_nothing(tmp_path):
    settings = {
        "SERVER__DATA_DIR": str(tmp_path / "data"),
        "SERVER__NAME": "not a name",
        "SERVER__WORKERS": "-1",
        "EMAIL__TLS": "perhaps",
        "SERVER__COLOUR": "blue",
    }
    ended = identity("serve", folder=tmp_path, settings=settings)
    assert ended.returncode == 1
    assert ended.stdout == ""
    starts = [line.partition(":")[0] for line in ended.stderr.splitlines()]
    assert sorted(starts) == [
        "IDENTITY_SERVER__COLOUR",
        "[email] tls",
        "[server] name",
        "[server] workers",
    ]
    assert list(tmp_path.iterdir()) == []


@one_database
@pytest.mark.parametrize("setting", ["TERMS__FILE", "EMAIL__SMTP_CA_FILE"])
def test_serve_with_a_file_that_is_missing_ends_with_1_and_one_line(make_running, setting):
    server = make_running({setting: "missing", "EMAIL__SMTP_HOST": "mail.example.org"})
    server.start(wait=False)
    assert server.wait() == 1
    assert "missing" in server.log.splitlines()[-1]
    assert "Traceback" not in server.log


def test_serve_restarts_what_crashed_and_answers_meanwhile(make_running):
    server = make_running({"SERVER__WORKERS": "1"})
    server.start()
    for name in ("worker", "web", "courier"):
        crashed = server.crash(name)
        # Whoever connects now waits for the next worker, and is not refused.
        assert server.get("/ready").status == 200
        wait_until(
            lambda name=name, crashed=crashed: server.find_process(name) not in (None, crashed)
        )
    assert server.get("/ready").status == 200
    assert server.stop() == 0


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_serve_restarts_what_crashed_although_the_database_is_away(running, postgres):
    with away(postgres, running.settings["DATABASE__URL"]):
        crashed = running.crash("courier")
        running.wait_for_log("child_cannot_run")
    wait_until(lambda: running.find_process("courier") not in (None, crashed))
    assert "Traceback" not in running.log
    assert running.get("/ready").status == 200


@one_database
def test_serve_without_its_supervisor_ends(running):
    orphans = set(running.descendants())
    assert len(orphans) == 4
    running.signal(signal.SIGKILL)
    running.wait()
    try:
        wait_until(lambda: not orphans & processes().keys())
    finally:
        for pid in orphans & processes().keys():
            kill(pid)


class SlowMailServer(MailServer):
    """Keeps whoever delivers a mail waiting until `release` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    async def handle_DATA(self, *arguments):  # noqa: N802 - aiosmtpd looks for this name
        await asyncio.to_thread(self.release.wait, PATIENCE_S)
        return await super().handle_DATA(*arguments)


def by_signal(server: RunningServer) -> None:
    server.signal(signal.SIGTERM)


def by_ctrl_c(server: RunningServer) -> None:
    os.killpg(server.pid, signal.SIGINT)


@one_database
@pytest.mark.parametrize("stop", [by_signal, by_ctrl_c])
def test_serve_told_to_stop_finishes_the_request_in_flight(make_running, stop):
    with SlowMailServer() as mail, ThreadPoolExecutor() as threads:
        server = make_running(
            {
                "EMAIL__SMTP_HOST": "127.0.0.1",
                "EMAIL__SMTP_PORT": str(mail.port),
                "EMAIL__TLS": "none",
            }
        )
        server.start()
        token = server.token("@alice:hs.test")
        answer = threads.submit(server.request_token, token, "alice@example.org")
        mail.wait_for(lambda: "DATA" in mail.commands)

        courier = server.process("courier")
        stop(server)
        # Told at the same time, it has nothing to finish.
        wait_until(lambda: not is_running(courier))
        mail.release.set()
        assert answer.result().status == 200
        assert server.wait() == 0
        assert len(mail.mails) == 1
    assert [row["live"] for row in server.inside.rows("validation_tokens")] == [True]


def _revision(tx: sa.Connection) -> str:
    return tx.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


def _set_revision(tx: sa.Connection, revision: str) -> None:
    tx.execute(sa.text("UPDATE alembic_version SET version_num = :new"), {"new": revision})
