"""Servers in this process that replicate over real sockets, with a clock to advance.

a, b = nodes("a.test", "b.test")        # peers of each other
a.bind("alice@example.com", "@alice:hs.test")
a.send()                                # what a courier does every 200 ms
assert b.server.found("alice@example.com") == "@alice:hs.test"
b.network.fail_with(500)                # from now on it answers so
"""

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from parts.server import Server
from werkzeug.serving import WSGIRequestHandler, make_server

from identity.associations.service import OriginDigest
from identity.mxid import UserId
from identity.processes.courier import Courier
from identity.replication import cursors, store
from identity.replication.peer import Peer, Protocol
from identity.threepid import ThreePid


@dataclass(frozen=True)
class Asked:
    """One request that arrived; `size` as it was sent, `body` decoded."""

    name: str
    size: int
    headers: dict[str, str]
    body: dict[str, Any]


class Network:
    """Serves an application on a port of loopback, and misbehaves when told to."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._instead: Callable[..., Iterable[bytes]] | None = None
        self._closing = threading.Event()
        self.asked: list[Asked] = []
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Silent
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def names(self) -> list[str]:
        return [asked.name for asked in self.asked]

    def fail_with(self, status: int, body: Any = None) -> None:
        """Answer every request so; 200 with a body lies."""

        def answer(_environ, start_response):
            start_response(f"{status} X", [("Content-Type", "application/json")])
            return [json.dumps(body or {}).encode()]

        self._instead = answer

    def lie(self, bodies: dict[str, Any]) -> None:
        """Answer these kinds of requests with 200 and a body, and the others rightly."""

        def answer(environ, start_response):
            name = environ["PATH_INFO"].rpartition("/")[2]
            if name not in bodies:
                return self._app(environ, start_response)
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(bodies[name]).encode()]

        self._instead = answer

    def lose_answers(self) -> None:
        """Everything is carried out, and nobody hears of it."""

        def answer(environ, start_response):
            b"".join(self._app(environ, lambda *_: None))
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start_response("200 OK", [])
            return []

        self._instead = answer

    def drip(self) -> None:
        """Never come to an end, byte by byte."""

        def body() -> Iterator[bytes]:
            yield b"{"
            while not self._closing.wait(0.05):
                yield b" "

        def answer(_environ, start_response):
            start_response("200 OK", [])
            return body()

        self._instead = answer

    def flood(self) -> None:
        def answer(_environ, start_response):
            start_response("200 OK", [])
            return (b" " * 65536 for _ in range(1_000))

        self._instead = answer

    def heal(self) -> None:
        self._instead = None

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ, start_response):
        data = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        headers = {
            name.removeprefix("HTTP_"): value
            for name, value in environ.items()
            if isinstance(value, str)
        }
        text = gzip.decompress(data) if headers.get("CONTENT_ENCODING") == "gzip" else data
        self.asked.append(
            Asked(environ["PATH_INFO"].rpartition("/")[2], len(data), headers, json.loads(text))
        )
        environ["wsgi.input"] = _Replay(data)
        return (self._instead or self._app)(environ, start_response)


class _Replay:
    """A body that was read once already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int = -1) -> bytes:
        size = len(self._data) if size < 0 else size
        part, self._data = self._data[:size], self._data[size:]
        return part

    def readinto(self, buffer: bytearray) -> int:
        part = self.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)


class _Silent(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


class Node:
    """One server, its port and its courier, which does what it is told and no more."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.network = Network(server.app)
        self.couriers = [Courier(server.services, server.clock, f"{name} 0")]

    @property
    def database(self):
        return self.server.database

    @property
    def courier(self) -> Courier:
        return self.couriers[0]

    def as_peer(self) -> Peer:
        keys = self.server.services.signing_keys.all_public()
        return Peer(self.name, self.network.url, Protocol.V2, keys)

    def add_peer(self, other: "Node | Peer") -> None:
        peer = other.as_peer() if isinstance(other, Node) else other
        now_ms = self.server.clock.now_ms()
        self.database.write(lambda tx: store.put_peer(tx, peer, now_ms))

    def bind(self, address: str, mxid: str) -> None:
        self.server.bind_directly(address, mxid)

    def unbind(self, address: str, mxid: str) -> None:
        unbind = self.server.services.associations.unbind
        assert unbind(ThreePid.email(address), UserId.parse(mxid))

    def bind_many(self, count: int, mxid: str = "@many:hs.test", first: int = 0) -> None:
        wanted = {
            ThreePid.email(f"many{number}@example.com"): UserId.parse(mxid)
            for number in range(first, first + count)
        }
        associations = self.server.services.associations
        self.database.write(lambda tx: associations.publish_all(tx, wanted, tell=False))

    def send(self) -> None:
        """To every peer that is due."""
        for peer in self.courier.sending.due():
            self.courier.sending.attend(peer, lambda: False)

    def recover(self) -> None:
        for peer in self.courier.recovery.due():
            self.courier.recovery.attend(peer, lambda: False)
        self.courier.recovery.due()

    def cursor(self, peer: str) -> dict[str, Any]:
        (row,) = [row for row in self.server.rows("cursors") if row["peer"] == peer]
        return row

    def peer(self, name: str) -> dict[str, Any]:
        (row,) = [row for row in self.server.rows("peers") if row["name"] == name]
        return row

    def compare_with(self, peer: str) -> None:
        now_ms = self.server.clock.now_ms()
        self.database.write(lambda tx: cursors.demand_comparison(tx, peer, now_ms))

    def digests(self) -> dict[str, OriginDigest]:
        held = self.server.services.associations.digest()
        return {one.origin: one for one in held if one.last_id}

    def back_up(self) -> None:
        """Of SQLite."""
        with self.database.engine.connect() as connection:
            path = self.database.engine.url.database
            connection.exec_driver_sql("VACUUM INTO ?", (f"{path}.backup",))

    def restore(self) -> None:
        """What `back_up` kept is what there is."""
        with self.database.engine.connect() as connection:
            restored = connection.connection.dbapi_connection
            kept = type(restored)(f"{self.database.engine.url.database}.backup")
            kept.backup(restored)
            kept.close()

    def close(self) -> None:
        self.network.close()
