"""gunicorn's worker with threads, made proof against clients that take their time.

- A request must have arrived whole within 10 s of its first byte, however it drips in, and
  each part of an answer must be taken within 10 s; else the connection is closed.
- Nothing waits for a client outside of a request: the thread that would serves all of them.
- A client whose next request follows at once keeps its thread, while no other waits for one: to
  hand the connection back and get it again costs as much as to answer a lookup.
- A request that is no HTTP is answered in JSON like any other, and what it says is not logged:
  the line at fault may hold a token.
- With TLS, the handshake is part of the arrival, and a connection is for one request.

Source: security.md, decision 11 and threat 37.
"""

import errno
import json
import secrets
import select
import socket
import ssl
import time
from contextlib import suppress
from typing import Any, Final

import structlog
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.gthread import TConn, ThreadWorker

log = structlog.get_logger(__name__)

ARRIVAL_SECONDS: Final = 10.0
DEPARTURE_SECONDS: Final = 10.0
NOTIFY_SECONDS: Final = 1.0
LINGER_MS: Final = 1

_TOO_LONG: Final = {
    LimitRequestLine: (414, "URI Too Long"),
    LimitRequestHeaders: (431, "Request Header Fields Too Large"),
}


class Worker(ThreadWorker):
    _notified_at = 0.0

    def notify(self) -> None:
        """Tell the arbiter that this worker is alive. It has half a minute for that; gunicorn would
        do so twice in each request."""
        now = time.monotonic()
        if now - self._notified_at >= NOTIFY_SECONDS:
            self._notified_at = now
            super().notify()

    def handle(self, conn: TConn) -> bool:
        """Requests of a connection, in a thread of the pool; whether to keep the connection."""
        if not isinstance(conn.sock, ClientSocket):
            # With TLS the connection itself wraps it, and begins the handshake.
            conn.sock = ClientSocket(fileno=conn.sock.detach())
        conn.sock.begin_request()
        try:
            keep = super().handle(conn)
            # What is neither True nor False is a connection that has not asked for anything yet.
            while keep is True and self._is_idle() and conn.sock.asks_again():
                conn.sock.begin_request()
                keep = super().handle(conn)
            return keep
        finally:
            conn.sock.end_request()

    def _is_idle(self) -> bool:
        """Whether no other connection waits for a thread, and nobody for our end."""
        waiting = self.tpool._work_queue  # noqa: SLF001 - there is no other way to ask
        return self.alive and waiting.empty()

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer what never became a request of the application."""
        del req, addr
        if isinstance(exc, ssl.SSLError):
            # Nobody whom an answer could be sent to.
            log.info("tls_failed", reason=exc.reason)
            return
        request_id = secrets.token_hex(8)
        if isinstance(exc, ParseException):
            status, reason = _TOO_LONG.get(type(exc), (400, "Bad Request"))
            name = type(exc).__name__
            log.info("request_malformed", request_id=request_id, reason=name, status=status)
        else:
            status, reason = 500, "Internal Server Error"
            log.error("request_failed", request_id=request_id, exc_info=exc)
        with suppress(OSError):
            client.sendall(_answer(status, reason, request_id))


class ClientSocket(socket.socket):
    """A client's connection. Threads use it one after the other."""

    # When the request must have arrived; None until its first byte is waited for.
    _ends_at: float | None = 0.0

    def asks_again(self) -> bool:
        """Whether more arrives, or the end does, within LINGER_MS."""
        arrival = select.poll()
        arrival.register(self, select.POLLIN)
        return bool(arrival.poll(LINGER_MS))

    def begin_request(self) -> None:
        self._ends_at = None

    def end_request(self) -> None:
        self._ends_at = 0.0

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """What has come, within the time that is left. Raises: ConnectionResetError after it."""
        now = time.monotonic()
        if self._ends_at is None:
            self._ends_at = now + ARRIVAL_SECONDS
        left = self._ends_at - now
        if left > 0:
            # It has usually come already, and setting a time-out costs more than reading.
            with suppress(BlockingIOError):
                return super().recv(size, flags | socket.MSG_DONTWAIT)
        self.settimeout(max(0.0, left))
        try:
            return super().recv(size, flags)
        except (TimeoutError, BlockingIOError):
            raise _gone() from None
        finally:
            self.settimeout(None)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        sent = 0
        with suppress(BlockingIOError):
            sent = super().send(data, flags | socket.MSG_DONTWAIT)
        if sent == len(data):
            return
        self.settimeout(DEPARTURE_SECONDS)
        try:
            super().sendall(memoryview(data)[sent:], flags)
        except TimeoutError:
            raise _gone() from None
        finally:
            self.settimeout(None)


class TlsSocket(ssl.SSLSocket):
    """The same over TLS, for a connection of one request."""

    _ends_at: float = 0.0

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - so it is declared
        self._ends_at = time.monotonic() + ARRIVAL_SECONDS
        self.settimeout(ARRIVAL_SECONDS)
        try:
            super().do_handshake(block)
        except TimeoutError:
            raise _gone() from None

    def end_request(self) -> None:
        self._ends_at = 0.0

    def recv(self, size: int = 1024, flags: int = 0) -> bytes:
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise _gone()
        self.settimeout(left)
        try:
            return super().recv(size, flags)
        except TimeoutError:
            raise _gone() from None

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.settimeout(DEPARTURE_SECONDS)
        try:
            super().sendall(data, flags)
        except TimeoutError:
            raise _gone() from None


def _gone() -> ConnectionResetError:
    """For gunicorn, a client that is too slow has gone; that is no news to it."""
    return ConnectionResetError(errno.ECONNRESET, "The client is too slow")


def _answer(status: int, reason: str, request_id: str) -> bytes:
    body = json.dumps({"errcode": "M_UNKNOWN", "error": reason}).encode()
    head = (
        f"HTTP/1.1 {status} {reason}",
        "Connection: close",
        "Content-Type: application/json",
        "Access-Control-Allow-Origin: *",
        f"Content-Length: {len(body)}",
        f"X-Request-Id: {request_id}",
    )
    return "\r\n".join([*head, "", ""]).encode() + body
