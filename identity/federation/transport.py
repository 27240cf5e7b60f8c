"""One HTTPS request to one destination, over a connection that is checked and bounded.

Rules:
- the host is resolved once; each address is judged, and the one judged is the one connected
  to, so no second look-up can lead elsewhere (DNS rebinding);
- the certificate chain and the name are verified, TLS 1.2 at least; for an IP literal the
  certificate must name that address, and no SNI is sent;
- time, wire bytes and body are bounded in total, not per read: a server that sends one byte
  now and then gains nothing;
- redirects, cookies, compression and proxies from the environment do not exist here.

Source: Matrix server-server API, "TLS"; RFC 9525; RFC 9112.
"""

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from ipaddress import ip_address
from typing import Any, Final, Self, cast

from identity.config import Federation
from identity.errors import SetupError
from identity.federation.addresses import AddressPolicy, IPAddress
from identity.federation.resolver import Resolver
from identity.mxid import ServerName

CONNECT_TIMEOUT_S: Final = 5.0
# Status line, headers and the framing of chunks, on top of the body.
MAX_OVERHEAD_BYTES: Final = 16 * 1024
_USER_AGENT: Final = "matrix-identity"

Connect = Callable[[tuple[str, int], float], socket.socket]


class CallError(Exception):
    """The call gave no answer. `reason` is a few fixed words, fit for a log."""

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.timed_out = timed_out


class ConnectError(CallError):
    """Nothing of the request was sent, so another destination may be tried."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to connect, and whom to expect there.

    `host` is a DNS name or an IP literal without brackets; `tls_name` likewise, and it need
    not be the same: with an SRV record it is the name that has the record.
    """

    host: str
    port: int
    host_header: str
    tls_name: str

    @classmethod
    def direct(cls, name: ServerName, default_port: int) -> Self:
        """The host and port that the name itself gives."""
        return cls(name.host, name.port or default_port, str(name), name.host)


@dataclass(frozen=True, slots=True)
class Response:
    """`body` is empty unless it was asked for and the status is 200: what an error says is not used."""

    status: int
    headers: Message
    body: bytes


@dataclass(frozen=True, slots=True)
class Deadline:
    """An instant on the monotonic clock that several steps share."""

    at_s: float

    @classmethod
    def after(cls, duration_s: float) -> Self:
        return cls(time.monotonic() + duration_s)

    def left_s(self) -> float:
        """More than 0. Raises: TimeoutError when nothing is left."""
        left = self.at_s - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def half(self) -> "Deadline":
        """For a step that must leave time to those after it."""
        now = time.monotonic()
        return Deadline(now + (self.at_s - now) / 2)


class Transport:
    """Makes requests. One per process; holds no connection between requests."""

    def __init__(
        self,
        settings: Federation,
        resolver: Resolver,
        connect: Connect = socket.create_connection,
    ) -> None:
        """Raises: SetupError when `ca_file` cannot be used."""
        self._policy = AddressPolicy(settings.allow_private_addresses, settings.denied_networks)
        self._tls = tls_context(settings)
        self._tls.sslsocket_class = _BoundedSocket
        self._resolver = resolver
        self._connect = connect

    def get(
        self, destination: Destination, target: str, max_body_bytes: int, deadline: Deadline
    ) -> Response:
        """GET `target`, a path with its query, percent-encoded.

        Raises: ConnectError; CallError.
        """
        return self._call("GET", destination, target, None, max_body_bytes, deadline)

    def send(
        self, method: str, destination: Destination, target: str, json: bytes, deadline: Deadline
    ) -> Response:
        """Send `json` to `target`. Of the answer only the head is waited for and read: with its
        status the homeserver has decided, and what is wrong with the rest must change nothing.

        Raises: ConnectError; CallError.
        """
        return self._call(method, destination, target, json, 0, deadline)

    def _call(
        self,
        method: str,
        destination: Destination,
        target: str,
        json: bytes | None,
        max_body_bytes: int,
        deadline: Deadline,
    ) -> Response:
        stream = self._open(destination, deadline)
        stream.bytes_left = max_body_bytes + MAX_OVERHEAD_BYTES
        connection = http.client.HTTPConnection(destination.tls_name, destination.port)
        connection.sock = stream
        with contextlib.closing(connection):
            try:
                connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
                connection.putheader("Host", destination.host_header)
                connection.putheader("User-Agent", _USER_AGENT)
                connection.putheader("Accept", "application/json")
                connection.putheader("Accept-Encoding", "identity")
                connection.putheader("Connection", "close")
                if json is not None:
                    connection.putheader("Content-Type", "application/json")
                    connection.putheader("Content-Length", str(len(json)))
                connection.endheaders(json)
                with connection.getresponse() as answer:
                    wanted = max_body_bytes > 0 and answer.status == 200
                    body = read_body(answer, max_body_bytes) if wanted else b""
                    return Response(answer.status, answer.headers, body)
            except TimeoutError as error:
                raise CallError("timed out", timed_out=True) from error
            except OSError as error:
                raise CallError("connection lost") from error
            except (http.client.HTTPException, ValueError) as error:
                raise CallError("malformed answer") from error

    def _open(self, destination: Destination, deadline: Deadline) -> "_BoundedSocket":
        failure = ConnectError("no address")
        for address in self._resolve(destination.host, deadline):
            if not self._policy.allows(address):
                failure = ConnectError("address not allowed")
                continue
            try:
                return self._connect_to(address, destination, deadline)
            except TimeoutError:
                failure = ConnectError("connection timed out", timed_out=True)
            except ssl.SSLCertVerificationError:
                failure = ConnectError("certificate not valid")
            except ssl.SSLError:
                failure = ConnectError("TLS failed")
            except OSError:
                failure = ConnectError("connection refused")
        raise failure

    def _resolve(self, host: str, deadline: Deadline) -> list[IPAddress]:
        with contextlib.suppress(ValueError):
            return [ip_address(host)]
        try:
            return self._resolver.addresses(host, deadline.left_s())
        except TimeoutError as error:
            raise ConnectError("name look-up timed out", timed_out=True) from error
        except OSError as error:
            raise ConnectError("name not found") from error

    def _connect_to(
        self, address: IPAddress, destination: Destination, deadline: Deadline
    ) -> "_BoundedSocket":
        timeout_s = min(CONNECT_TIMEOUT_S, deadline.left_s())
        plain = self._connect((str(address), destination.port), timeout_s)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(plain.close)
            # RFC 6066: the name in SNI, and in certificates, has no final dot.
            name = destination.tls_name.removesuffix(".")
            stream = cast(
                "_BoundedSocket",
                self._tls.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False),
            )
            on_failure.callback(stream.close)
            stream.deadline = deadline
            stream.settimeout(deadline.left_s())
            stream.do_handshake()
            on_failure.pop_all()
        return stream


class _BoundedSocket(ssl.SSLSocket):
    """A TLS socket whose time and received bytes are bounded over its whole life."""

    deadline: Deadline
    bytes_left: int

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        self.settimeout(self.deadline.left_s())
        received = super().recv_into(buffer, nbytes, flags)
        self.bytes_left -= received
        if self.bytes_left < 0:
            raise CallError("answer too large")
        return received

    def send(self, data: Any, flags: int = 0) -> int:
        self.settimeout(self.deadline.left_s())
        return super().send(data, flags)


def tls_context(settings: Federation) -> ssl.SSLContext:
    """How certificates are checked. Raises: SetupError when `ca_file` cannot be used."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    if settings.ca_file is not None:
        try:
            context.load_verify_locations(settings.ca_file)
        except OSError as error:
            raise SetupError(
                f"federation.ca_file: {settings.ca_file} holds no certificates that can be read"
            ) from error
    if not settings.verify_certificates:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def read_body(answer: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """All of it. Raises: CallError for more than `max_bytes`, for less than was announced."""
    if answer.getheader("Content-Encoding", "identity").strip().lower() != "identity":
        raise CallError("content encoding not asked for")
    body = bytearray()
    # A chunked answer may be read in pieces, hence the loop.
    while len(body) <= max_bytes and (piece := answer.read(max_bytes + 1 - len(body))):
        body += piece
    if len(body) > max_bytes:
        raise CallError("answer too large")
    if answer.length:
        raise CallError("answer cut short")
    return bytes(body)
