"""What a fake of an SMS provider is made of: a small HTTP server on loopback, in a thread.

It has switches for all that can go wrong on the way, and keeps what it accepted. A process of its
own, such as `identity serve`, can send to it, too: `settings` is what that takes.
"""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import trustme
from parts.homeserver import Reply, Request, authority


@dataclass(frozen=True)
class Text:
    """A message as a provider took it over. `sender`: number, sender id or messaging service."""

    to: str
    sender: str
    body: str

    @property
    def code(self) -> str:
        """The code, as a phone reads it from the last line."""
        return self.body.splitlines()[-1].rpartition("#")[2]


class FakeProvider:
    """`take(request)` answers what arrives, and appends what it accepts to `texts`."""

    def __init__(
        self,
        take: Callable[[Request], Reply],
        *,
        tls: bool = False,
        trusted: bool = True,
        expired: bool = False,
    ) -> None:
        self.texts: list[Text] = []
        self.requests: list[Request] = []
        self.connections = 0
        self.answer: Reply | None = None  # instead of the right one; nothing is accepted then
        self.hangs = False  # the request is read and accepted, and never answered
        self.hangs_after_head = False
        self.drops = False  # likewise, and the connection closed
        self.drip_s: float | None = None  # the pause before each byte of the answer
        self.hold: threading.Event | None = None  # every answer waits until it is set
        self._take = take
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._server = _Server(self)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            issuer = authority() if trusted else trustme.CA()
            not_after = datetime.now(UTC) - timedelta(days=1) if expired else None
            issuer.issue_cert("localhost", not_after=not_after).configure_cert(context)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port: int = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 5) -> None:
        """Until `condition` holds; it is tried after each connection and each request."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s)

    def note(self, change: Callable[[], Any]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    def handle(self, request: Request) -> Reply:
        with self._changed:
            self.requests.append(request)
            reply = self.answer or self._take(request)
            self._changed.notify_all()
        if self.hold is not None:
            self.hold.wait(30)
        return reply

    def wait_for_the_end(self, timeout_s: float = 30) -> bool:
        return self._stopped.wait(timeout_s)


class _Server(ThreadingHTTPServer):
    def __init__(self, owner: FakeProvider) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.owner.note(lambda: setattr(self.owner, "connections", self.owner.connections + 1))
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hangs up, or refuses our certificate, is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        owner = self.server.owner
        body = self.rfile.read(int(self.headers["Content-Length"]))
        reply = owner.handle(Request(self.command, self.path, self.headers, body))
        if owner.hangs:
            owner.wait_for_the_end()
        elif not owner.drops:
            with suppress(OSError):
                for piece in self._pieces(reply):
                    self.wfile.write(piece)

    def do_GET(self) -> None:
        self.headers["Content-Length"] = self.headers.get("Content-Length", "0")
        self.do_POST()

    def _pieces(self, reply: Reply) -> Iterator[bytes]:
        owner = self.server.owner
        body = reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)
        headers = {"Content-Length": str(len(body)), **reply.headers}
        lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {v}" for name, v in headers.items())]
        head = "\r\n".join([*lines, "", ""]).encode()
        whole = b"".join(reply.raw) if reply.raw is not None else head + body
        if owner.hangs_after_head:
            yield head
            owner.wait_for_the_end()
        elif owner.drip_s is None:
            yield whole
        else:
            for byte in whole:
                if owner.wait_for_the_end(owner.drip_s):
                    return
                yield bytes([byte])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is inherited
        """Requests are recorded, not printed."""
