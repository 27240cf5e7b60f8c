"""Servers that replicate with each other: `identity serve` each, on SQLite, peers all round.

    with cluster(3) as servers:
        servers[0].bind("a@example.org", "@a:example.org")
        wait_until_equal(servers)

With a `network` each lives on a host of its own. Statements are made through the internal API, so
what was answered with 200 was acknowledged to somebody.
"""

import contextlib
import json
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, Self

import urllib3
from parts import namespaces
from parts.namespaces import Host, Network
from parts.processes import RunningServer, free_port, identity
from run import NOT_RUN

from identity.associations.statement import Logged, Version, encode_signed, newest
from identity.replication.peer import Peer, Protocol
from identity.threepid import ThreePid

INTERNAL = "/_matrix/identity/internal"
# The homeserver of all users: nobody is called, for the address is not allowed.
NO_HOMESERVER = "127.0.0.1:1"


def need_namespaces() -> None:
    """Or end the program."""
    if reason := namespaces.missing():
        print(reason)
        sys.exit(NOT_RUN)


class Replica:
    """One server of a cluster."""

    def __init__(
        self, name: str, folder: Path, host: Host | None, settings: Mapping[str, str]
    ) -> None:
        self.name = name
        self.host = host
        self._internal_port = free_port()
        self.running = RunningServer(
            folder,
            {
                "SERVER__NAME": name,
                "SERVER__WORKERS": "1",
                "INTERNAL__LISTEN": f"127.0.0.1:{self._internal_port}",
                "RATE_LIMITS__ENABLED": "false",
                **settings,
            },
            prefix=host.command if host else (),
        )
        if host:
            self.running.settings["SERVER__LISTEN"] = f"0.0.0.0:{self.running.port}"

    @property
    def url(self) -> str:
        """Where its peers reach it."""
        return f"http://{self.host.address if self.host else '127.0.0.1'}:{self.running.port}"

    @contextlib.contextmanager
    def at_home(self) -> Iterator[None]:
        """This thread is where the server is."""
        with self.host.entered() if self.host else contextlib.nullcontext():
            yield

    def start(self) -> None:
        with self.at_home():
            self.running.start()

    def as_peer(self, **changes: Any) -> Peer:
        keys = self.running.inside.services.signing_keys.all_public()
        return Peer(self.name, self.url, Protocol.V2, keys, **changes)

    def meet(self, peer: Peer) -> None:
        self.running.inside.services.peers.add(peer)

    def bind(self, address: str, mxid: str) -> dict[str, Any]:
        """The statement. Raises: urllib3's HTTPError where nobody answers; Refused."""
        return self._call("bind", address, mxid)

    def unbind(self, address: str, mxid: str) -> None:
        self._call("unbind", address, mxid)

    def _call(self, what: str, address: str, mxid: str) -> dict[str, Any]:
        body = {"medium": "email", "address": address, "mxid": mxid}
        url = f"http://127.0.0.1:{self._internal_port}{INTERNAL}/{what}"
        with self.at_home():
            answer = self.running.http.request("POST", url, json=body)
        if answer.status != 200:
            raise Refused(answer.status)
        return answer.json()

    def digest(self) -> list[dict[str, Any]]:
        """What `identity db digest` prints, of each origin that has stated something."""
        ended = identity("db", "digest", folder=self.running.folder, settings=self.running.settings)
        assert ended.returncode == 0, ended.stderr
        origins = [json.loads(line) for line in ended.stdout.splitlines()]
        return [origin for origin in origins if origin["last_id"]]

    def heads(self) -> dict[str, tuple[int, str]]:
        """Of each origin that has stated something: last id and head."""
        return {
            row["origin"]: (row["last_id"], row["head"].hex())
            for row in self.running.inside.rows("origins")
            if row["last_id"]
        }

    def log(self) -> list[Logged]:
        """All statements that it holds with their texts."""
        return [
            Logged.load(row["origin"], row["origin_id"], row["signed"], None)
            for row in self.running.inside.rows("statements")
            if row["signed"] is not None
        ]

    def view(self) -> dict[bytes, tuple[Version, str | None]]:
        """By blind index."""
        return {
            row["threepid"]: (Version(row["ts_ms"], row["origin"], row["origin_id"]), row["mxid"])
            for row in self.running.inside.rows("associations")
        }

    def alarms(self) -> dict[tuple[str, str], int]:
        """By peer and kind: how often."""
        return {
            (row["peer"], row["kind"]): row["count"] for row in self.running.inside.rows("alarms")
        }

    def blind_index(self, threepid: ThreePid) -> bytes:
        return self.running.inside.database.keys.blind_index(threepid)


class Refused(Exception):
    """The server did not take a statement."""


@contextlib.contextmanager
def cluster(
    count: int, *, network: Network | None = None, **settings: str
) -> Iterator[list[Replica]]:
    """`count` servers that run and know each other, gone afterwards."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [
            Replica(
                f"{letter}.example.org",
                folder / letter,
                network.host(f"10.0.0.{number}") if network else None,
                settings,
            )
            for number, letter in enumerate("abcdefgh"[:count], start=1)
        ]
        for server in servers:
            stack.callback(server.running.close)
            server.start()
        for server in servers:
            for peer in servers:
                if peer is not server:
                    server.meet(peer.as_peer())
        yield servers


def wait_until_equal(servers: list[Replica], timeout_s: float) -> float:
    """Until all hold the same of every origin, as `identity db digest` confirms; after how long."""
    began_s = time.monotonic()
    while any(server.heads() != servers[0].heads() for server in servers):
        if time.monotonic() - began_s > timeout_s:
            heads = {server.name: server.heads() for server in servers}
            raise AssertionError(f"not equal after {timeout_s} s: {heads}")
        time.sleep(0.1)
    took_s = time.monotonic() - began_s
    digests = [server.digest() for server in servers]
    assert all(digest == digests[0] for digest in digests), digests
    return took_s


def check_converged(servers: list[Replica], acknowledged: list[dict[str, Any]]) -> int:
    """Nothing acknowledged is lost, and each view is that of the newest statements, so that what
    was revoked stays revoked. Returns how many statements there are."""
    logs = [{entry.signed for entry in server.log()} for server in servers]
    assert all(log == logs[0] for log in logs), "the logs differ"
    missing = {encode_signed(signed) for signed in acknowledged} - logs[0]
    assert not missing, f"{len(missing)} acknowledged statements are lost"
    winners = newest(servers[0].log())
    for server in servers:
        expected = {
            server.blind_index(threepid): (
                entry.version,
                None if entry.statement.mxid is None else str(entry.statement.mxid),
            )
            for threepid, entry in winners.items()
        }
        assert server.view() == expected, f"{server.name} has another view"
        assert not server.alarms(), server.alarms()
    return len(logs[0])


class Writer:
    """Somebody who states through one server at a steady rate: half of it about 3PIDs that others
    state about, too, and a part of it revocations."""

    def __init__(self, server: Replica, every_s: float, seed: int = 1) -> None:
        self.server = server
        self.acknowledged: list[dict[str, Any]] = []
        self.failures: Counter[str] = Counter()
        self._every_s = every_s
        self._random = Random(f"{seed} {server.name}")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        next_s = time.monotonic()
        while not self._over.wait(max(0.0, next_s - time.monotonic())):
            next_s += self._every_s
            try:
                self._write()
            except (urllib3.exceptions.HTTPError, Refused) as error:
                self.failures[str(error)[:80]] += 1

    def _write(self) -> None:
        chance = self._random.random
        shared = chance() < 0.5
        number = self._random.randrange(20)
        address = f"{'shared' if shared else self.server.name[0]}{number}@example.org"
        # One for each server, so that they disagree.
        mxid = f"@{self.server.name[0]}{self._random.randrange(3)}:{NO_HOMESERVER}"
        if chance() < 0.3:
            self.server.unbind(address, mxid)
        else:
            self.acknowledged.append(self.server.bind(address, mxid))


class LagWatch:
    """How long after its acknowledgement each statement of one server is held by another."""

    def __init__(self, sender: Replica, receiver: Replica) -> None:
        self.lags_s: list[float] = []
        self._sender, self._receiver = sender, receiver
        self._waiting: deque[tuple[int, float]] = deque()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Statements that are not there yet count as late as they are."""
        self._over.set()
        self._thread.join()
        self.lags_s += [time.monotonic() - since_s for _, since_s in self._waiting]

    def percentile_s(self, share: float) -> float:
        ordered = sorted(self.lags_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    def _run(self) -> None:
        seen_id = self._last_id(self._sender)
        while not self._over.wait(0.05):
            last_id, now_s = self._last_id(self._sender), time.monotonic()
            self._waiting += [(origin_id, now_s) for origin_id in range(seen_id + 1, last_id + 1)]
            seen_id = last_id
            held_id, now_s = self._last_id(self._receiver), time.monotonic()
            while self._waiting and self._waiting[0][0] <= held_id:
                self.lags_s.append(now_s - self._waiting.popleft()[1])

    def _last_id(self, server: Replica) -> int:
        return server.heads().get(self._sender.name, (0, ""))[0]
