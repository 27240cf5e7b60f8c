"""`identity` as a user runs it: processes of its own, real sockets, settings in the environment.

    server = RunningServer(tmp_path, {"SERVER__WORKERS": "2"})
    server.start()
    assert server.get("/health").status == 200
    server.stop()

A setting is `{"SECTION__KEY": "value"}`; a name without a section is a variable as it stands.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import psycopg
import urllib3
from parts.databases import Postgres
from parts.server import V2, Server

from identity.clock import SystemClock
from identity.config import load

IDENTITY = Path(sys.executable).with_name("identity")
PATIENCE_S = 30


def wait_until(happened: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """What `happened` gives once that is true."""
    ends_at = time.monotonic() + timeout_s
    while time.monotonic() < ends_at:
        if result := happened():
            return result
        time.sleep(0.02)
    raise AssertionError(f"{happened} did not happen within {timeout_s} s")


def free_port() -> int:
    """One that nobody listens on, and that the kernel gives to no client in the meantime."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Nothing of ours but the settings."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("IDENTITY_")}
    named = {
        f"IDENTITY_{name}" if "__" in name else name: text
        for name, text in (settings or {}).items()
    }
    return kept | named


def identity(
    *arguments: object, folder: Path, settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with `folder` as the current one."""
    return subprocess.run(
        [str(IDENTITY), *map(str, arguments)],
        cwd=folder,
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


@contextlib.contextmanager
def away(postgres: Postgres, url: str) -> Iterator[None]:
    """While the block runs, the database takes no connections and those it had are cut."""
    name = url.rpartition("/")[2]
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
            yield
        finally:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def processes() -> dict[int, int]:
    """Each running process and its parent."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True
    )
    rows = (line.split() for line in listed.stdout.splitlines())
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


def is_running(pid: int) -> bool:
    return pid in processes()


def kill(pid: int) -> None:
    """A crash; it may have ended by itself a moment ago."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class RunningServer:
    """`identity serve` with a data folder of its own in `folder`; `prefix` is what runs it."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        config: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.settings = {
            "SERVER__DATA_DIR": str(folder / "data"),
            "SERVER__LISTEN": f"127.0.0.1:{self.port}",
            "SERVER__WORKERS": "2",
            **(settings or {}),
        }
        self.log_file = folder / "log"
        self._command = [*prefix, str(IDENTITY), "serve", *(["-c", str(config)] if config else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self._inside: Server | None = None
        self.http = urllib3.PoolManager(maxsize=32, retries=False, timeout=PATIENCE_S)

    def start(self, *, wait: bool = True) -> None:
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                env=environment(self.settings),
                stdout=log,
                stderr=log,
                # A process group of its own, as a shell gives it one.
                process_group=0,
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        wait_until(self._is_ready_or_gone)
        sides = sum(
            f"{section}__LISTEN" in self.settings for section in ("INTERNAL", "REPLICATION")
        )
        family = 2 + int(self.settings["SERVER__WORKERS"]) + 2 * sides
        wait_until(lambda: len(self.descendants()) >= family)

    def _is_ready_or_gone(self) -> bool:
        assert self._process.poll() is None, self.log
        try:
            return self.get("/ready").status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def wait(self) -> int:
        """Until it has ended; its exit status."""
        return self._process.wait(2 * PATIENCE_S)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """All of it at once, as a power failure would."""
        if self._process is None or self._process.poll() is not None:
            return
        for pid in [self.pid, *self.descendants()]:
            kill(pid)
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self.http.clear()
        if self._inside is not None:
            self._inside.close()
            self._inside = None

    @property
    def inside(self) -> Server:
        """Another server in the test's own process, over the same database and keys."""
        if self._inside is None:
            self._inside = Server(load(None, environment(self.settings)), SystemClock())
        return self._inside

    def token(self, user_id: str) -> str:
        return self.inside.account(user_id).token

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def descendants(self) -> list[int]:
        """Children and grandchildren, as they are now."""
        family = processes()
        children = [pid for pid, parent in family.items() if parent == self.pid]
        return children + [pid for pid, parent in family.items() if parent in children]

    def find_process(self, name: Literal["web", "courier", "worker"]) -> int | None:
        """One of that kind, if there are any now. Only the web process has children."""
        family = processes()
        children = [pid for pid, parent in family.items() if parent == self.pid]
        workers = [pid for pid, parent in family.items() if parent in children]
        masters = {family[pid] for pid in workers}
        kinds = {
            "web": sorted(masters),
            "worker": workers,
            "courier": [pid for pid in children if masters and pid not in masters],
        }
        return kinds[name][0] if kinds[name] else None

    def process(self, name: Literal["web", "courier", "worker"]) -> int:
        return wait_until(lambda: self.find_process(name))

    def crash(self, name: Literal["web", "courier", "worker"]) -> int:
        """Kill one of that kind; returns which it was, once it is gone."""
        pid = self.process(name)
        kill(pid)
        wait_until(lambda: not is_running(pid))
        return pid

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def wait_for_log(self, text: str, count: int = 1) -> None:
        wait_until(lambda: self.log.count(text) >= count)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, *, token: str | None = None, **arguments: Any
    ) -> urllib3.BaseHTTPResponse:
        """`path` below the v2 prefix, unless it is one of the few that are not."""
        # A connection for each request, so that none is tied to a process that goes away.
        headers = {"Connection": "close"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        whole = path if path.startswith(("/_matrix", "/health", "/ready")) else V2 + path
        return self.http.request(method, self.base_url + whole, headers=headers, **arguments)

    def get(self, path: str, **arguments: Any) -> urllib3.BaseHTTPResponse:
        return self.request("GET", path, **arguments)

    def post(self, path: str, **arguments: Any) -> urllib3.BaseHTTPResponse:
        return self.request("POST", path, **arguments)

    def request_token(
        self, token: str, email: str, client_secret: str = "secret", send_attempt: int = 1
    ) -> urllib3.BaseHTTPResponse:
        body = {"email": email, "client_secret": client_secret, "send_attempt": send_attempt}
        return self.post("/validate/email/requestToken", token=token, json=body)
