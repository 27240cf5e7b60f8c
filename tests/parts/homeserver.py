"""A homeserver to call: real TLS and HTTP on loopback, in a thread, with failure switches.

    with FakeHomeserver() as homeserver:
        homeserver.openid_users["token"] = "@alice:localhost"
        ... call https://localhost:<homeserver.port>, trusting homeserver.ca_file ...
        assert homeserver.requests[0].target == "/..."

It answers /.well-known/matrix/server, the OpenID userinfo, onbind and its keys; any path can be
given another answer in `answers`, fixed or computed from the request. It signs requests with
`signing_keys`: see parts.xmatrix.
"""

import atexit
import functools
import json
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import trustme
from signedjson.key import encode_verify_key_base64, generate_signing_key
from signedjson.sign import sign_json

WELL_KNOWN = "/.well-known/matrix/server"
USERINFO = "/_matrix/federation/v1/openid/userinfo"
ONBIND = "/_matrix/federation/v1/3pid/onbind"
KEYS = "/_matrix/key/v2/server"

# Names that a homeserver's certificate is for, when a test does not care.
NAMES = ("localhost", "127.0.0.1", "::1", "hs.test", "*.hs.test")


@functools.cache
def authority() -> trustme.CA:
    """The one CA of a test session."""
    return trustme.CA()


@functools.cache
def ca_file() -> Path:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "ca.pem"
    authority().cert_pem.write_to_path(path)
    return path


@dataclass(frozen=True)
class Request:
    method: str
    target: str  # as it was sent: path and query, still encoded
    headers: Message
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path


@dataclass(frozen=True)
class Reply:
    """An answer. A body in pieces is sent without Content-Length; `raw` is sent as it is."""

    status: int = 200
    body: bytes | Iterable[bytes] = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    raw: Iterable[bytes] | None = None

    @classmethod
    def json(cls, value: Any, status: int = 200, **headers: str) -> Self:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | named)


Answer = Reply | Callable[[Request], Reply]


class FakeHomeserver:
    """`names` are those of its certificate."""

    def __init__(
        self, *names: str, bind: str = "127.0.0.1", expired: bool = False, trusted: bool = True
    ) -> None:
        self.requests: list[Request] = []
        self.sni_names: list[str | None] = []
        self.openid_users: dict[str, str] = {}
        self.well_known: Answer = Reply(404)
        self.onbind: Answer = Reply()
        self.server_name = "hs.test"
        self.signing_keys = [generate_signing_key("a_1")]
        self.old_keys: list[Any] = []
        self.keys_valid_until_ms = 253_402_300_799_000  # the end of the year 9999
        self.answers: dict[str, Answer] = {}
        self.hold: threading.Event | None = None  # every answer waits until it is set
        self.deaf: threading.Event | None = None  # no body is read until it is set
        self.sent_bytes = 0
        self.ca_file = ca_file()
        self._arrived = threading.Condition()
        self._stopped = threading.Event()

        issuer = authority() if trusted else trustme.CA()
        not_after = datetime.now(UTC) - timedelta(days=1) if expired else None
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issuer.issue_cert(*(names or NAMES), not_after=not_after).configure_cert(self.tls)
        self.tls.sni_callback = lambda _socket, name, _context: self.sni_names.append(name)

        self._server = _Server(bind, self)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    def wait_for_requests(self, count: int, timeout_s: float = 5) -> None:
        """Until `count` requests have arrived, answered or not."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.requests) >= count, timeout_s)

    def drip(self, data: bytes, every_s: float = 0.02) -> Iterator[bytes]:
        """One byte at a time, for as long as the homeserver runs."""
        for byte in data:
            if self._stopped.wait(every_s):
                return
            yield bytes([byte])

    def answer(self, request: Request) -> Reply:
        with self._arrived:
            self.requests.append(request)
            self._arrived.notify_all()
        if self.hold is not None:
            self.hold.wait(30)
        own = {
            WELL_KNOWN: self.well_known,
            USERINFO: self._userinfo,
            ONBIND: self.onbind,
            KEYS: lambda _: Reply.json(self.key_document()),
        }
        answer = (own | self.answers).get(request.path, Reply.json({"errcode": "M_X"}, 404))
        return answer if isinstance(answer, Reply) else answer(request)

    def key_document(self, signers: Iterable[Any] | None = None, **changes: Any) -> dict[str, Any]:
        """What it publishes, with `changes`, signed by its keys or by other `signers`."""
        keys = {
            f"ed25519:{key.version}": {"key": encode_verify_key_base64(key.verify_key)}
            for key in self.signing_keys
        }
        old_keys = {
            f"ed25519:{key.version}": {
                "key": encode_verify_key_base64(key.verify_key),
                "expired_ts": 1_532_645_052_628,
            }
            for key in self.old_keys
        }
        document = {
            "server_name": self.server_name,
            "verify_keys": keys,
            "old_verify_keys": old_keys,
            "valid_until_ts": self.keys_valid_until_ms,
            **changes,
        }
        for key in self.signing_keys if signers is None else signers:
            document = sign_json(document, self.server_name, key)
        return document

    def _userinfo(self, request: Request) -> Reply:
        tokens = parse_qs(urlsplit(request.target).query).get("access_token", [])
        if len(tokens) == 1 and tokens[0] in self.openid_users:
            return Reply.json({"sub": self.openid_users[tokens[0]]})
        error = {"errcode": "M_UNKNOWN_TOKEN", "error": "Access token unknown or expired"}
        return Reply.json(error, 401)


class _Server(ThreadingHTTPServer):
    def __init__(self, bind: str, owner: FakeHomeserver) -> None:
        self.address_family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        self.owner = owner
        super().__init__((bind, 0), _Handler)
        # The handshake is left to the thread of the connection, so none blocks the others.
        self.socket = owner.tls.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hangs up, or refuses our certificate, is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        owner = self.server.owner
        if owner.deaf is not None:
            owner.deaf.wait(30)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = owner.answer(Request(self.command, self.path, self.headers, body))
        if reply.raw is not None:
            self._send(reply.raw)
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if isinstance(reply.body, bytes):
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self._send([reply.body] if isinstance(reply.body, bytes) else reply.body)

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def _send(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self.wfile.write(piece)
            self.server.owner.sent_bytes += len(piece)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is inherited
        """Requests are recorded, not printed."""
