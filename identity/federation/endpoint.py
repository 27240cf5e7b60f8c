"""POST requests to a server that the operator named by a URL: a peer, a provider.

Rules:
- The operator chose the host, so no address is refused; for https the certificate chain and the
  name are verified, TLS 1.2 at least.
- The deadline bounds the whole call: name look-up, connection, TLS, request, headers and body. A
  server that drips a byte now and then gains nothing by it. What is received is bounded too.
- The connection is kept for the next request, until either side closes it.
- No redirect is followed; there are no cookies and no proxies from the environment.

Source: RFC 9112; experiment E9 of the fault runs.
"""

import contextlib
import http.client
import io
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any, Final, cast
from urllib.parse import urlsplit

from identity.federation.resolver import Resolver
from identity.federation.transport import (
    MAX_OVERHEAD_BYTES,
    CallError,
    ConnectError,
    Deadline,
    read_body,
)

# Not that of homeservers: a server that the operator keeps is near, or away.
CONNECT_TIMEOUT_S: Final = 3.0
_USER_AGENT: Final = "matrix-identity"
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Answer:
    """`body`: empty if it was not asked for."""

    status: int
    headers: Message
    body: bytes


class Endpoint:
    """One server, over one connection. For one thread at a time."""

    def __init__(self, url: str, tls: ssl.SSLContext, resolver: Resolver) -> None:
        """`url`: http or https, checked by whoever took it; its path comes before every target."""
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or _PORTS[parts.scheme]
        self._prefix = parts.path.rstrip("/")
        self._tls = tls if parts.scheme == "https" else None
        self._resolver = resolver
        self._stream: _Stream | None = None

    def post(
        self,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        max_body_bytes: int,
        deadline: Deadline,
    ) -> Answer:
        """The answer, whatever its status. `max_body_bytes` 0: its body is not read.

        A request that meets a connection which the server has closed meanwhile is sent again, so
        it must do no harm the second time. Raises: ConnectError; CallError.
        """
        if self._stream is not None:
            with contextlib.suppress(_Stale):
                return self._post(self._stream, target, headers, body, max_body_bytes, deadline)
        self._stream = _Stream(self._connect(deadline))
        return self._post(self._stream, target, headers, body, max_body_bytes, deadline)

    def close(self) -> None:
        """Let go of the connection; the next request opens another."""
        if self._stream is not None:
            self._stream.hang_up()
            self._stream = None

    def _post(
        self,
        stream: "_Stream",
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        max_body_bytes: int,
        deadline: Deadline,
    ) -> Answer:
        stream.begin(deadline, max_body_bytes + MAX_OVERHEAD_BYTES)
        connection = http.client.HTTPConnection(self._host, self._port)
        # http.client asks no more of a socket than a stream has.
        connection.sock = cast("socket.socket", stream)
        with contextlib.ExitStack() as unless_kept:
            unless_kept.callback(self.close)
            try:
                connection.putrequest("POST", self._prefix + target, skip_accept_encoding=True)
                for name, value in {"User-Agent": _USER_AGENT, **headers}.items():
                    connection.putheader(name, value)
                connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body)
                with connection.getresponse() as answer:
                    read = read_body(answer, max_body_bytes) if max_body_bytes else b""
                    if max_body_bytes and not answer.will_close:
                        unless_kept.pop_all()
                    return Answer(answer.status, answer.headers, read)
            except TimeoutError as error:
                raise CallError("timed out", timed_out=True) from error
            except OSError as error:
                # RemoteDisconnected is one: the connection ended where an answer should begin.
                raise (CallError if stream.received else _Stale)("connection lost") from error
            except (http.client.HTTPException, ValueError) as error:
                raise CallError("malformed answer") from error

    def _connect(self, deadline: Deadline) -> socket.socket:
        failure = ConnectError("no address")
        try:
            addresses = self._resolver.addresses(self._host, deadline.left_s())
        except TimeoutError as error:
            raise ConnectError("name look-up timed out", timed_out=True) from error
        except OSError as error:
            raise ConnectError("name not found") from error
        for address in addresses:
            try:
                timeout_s = min(CONNECT_TIMEOUT_S, deadline.left_s())
                plain = socket.create_connection((str(address), self._port), timeout_s)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return plain if self._tls is None else self._wrap(plain, self._tls, deadline)
            except TimeoutError:
                failure = ConnectError("connection timed out", timed_out=True)
            except ssl.SSLCertVerificationError:
                failure = ConnectError("certificate not valid")
            except ssl.SSLError:
                failure = ConnectError("TLS failed")
            except OSError:
                failure = ConnectError("connection refused")
        raise failure

    def _wrap(self, plain: socket.socket, tls: ssl.SSLContext, deadline: Deadline) -> ssl.SSLSocket:
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(plain.close)
            stream = tls.wrap_socket(
                plain, server_hostname=self._host, do_handshake_on_connect=False
            )
            on_failure.callback(stream.close)
            # Bounded in total, as OpenSSL asks for more than one read.
            stream.settimeout(min(CONNECT_TIMEOUT_S, deadline.left_s()))
            stream.do_handshake()
            on_failure.pop_all()
        return stream


class _Stale(CallError):
    """The connection ended before anything was answered."""


class _Stream(io.RawIOBase):
    """What http.client needs of a socket, bounded in time and received bytes for each request.

    http.client closes it before the body is read; `hang_up` is what ends the connection.
    """

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._deadline = Deadline(0.0)
        self._bytes_left = 0
        self.received = False

    def begin(self, deadline: Deadline, max_bytes: int) -> None:
        self._deadline, self._bytes_left, self.received = deadline, max_bytes, False

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._socket.settimeout(self._deadline.left_s())
            rest = rest[self._socket.send(rest) :]

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(self._deadline.left_s())
        received = self._socket.recv_into(buffer)
        self.received = self.received or received > 0
        self._bytes_left -= received
        if self._bytes_left < 0:
            raise CallError("answer too large")
        return received

    def close(self) -> None:
        """Nothing: see above."""

    def hang_up(self) -> None:
        self._socket.close()
