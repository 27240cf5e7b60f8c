"""Asking a peer: one signed request, and its answer; see docs/replication.md.

The operator chose the peer and its URL. What a peer answers is bounded, decoded strictly and parsed
before it is used; what it says in an error is read for `last_id` and `errcode` only.

Source: Matrix server-server API, "Request Authentication".
"""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from identity.config import Federation
from identity.errors import NotJson
from identity.federation import xmatrix
from identity.federation.endpoint import Endpoint
from identity.federation.resolver import Resolver
from identity.federation.transport import CallError, Deadline, tls_context
from identity.signing import SigningKey
from identity.strict_json import decode

PATH: Final = "/_matrix/identity/replicate/v2/"
# Less than a lease, so that nobody else sends meanwhile.
PUSH_S: Final = 25.0
# `state`, when this server is being started.
STATE_S: Final = 5.0
# As much as a batch may hold, and its frame.
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
COMPRESSED_FROM_BYTES: Final = 64 * 1024
# Signatures and hashes do not get smaller by trying harder, and peers are often near.
_COMPRESSION_LEVEL: Final = 1
# What a peer may say is wrong, in its own words; any other errcode is not repeated.
_ERRCODES: Final = frozenset(
    {
        "M_UNKNOWN_PEER",
        "M_UNAUTHORIZED",
        "M_FORBIDDEN",
        "M_TOO_LARGE",
        "M_NOT_JSON",
        "M_BAD_JSON",
        "M_INVALID_PARAM",
        "M_UNRECOGNIZED",
        "M_LIMIT_EXCEEDED",
        "M_UNKNOWN",
    }
)


class PeerError(Exception):
    """The peer gave no usable answer. `reason`: a few fixed words, fit for a log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Conflicted:
    """409: the peer holds our statements up to `last_id`, and not those before the push."""

    last_id: int


class PeerClient:
    """Makes the requests to one peer, over one connection. For one thread at a time."""

    def __init__(
        self,
        endpoint: Endpoint,
        url: str,
        peer: str,
        our_name: str,
        key: Callable[[], SigningKey],
    ) -> None:
        self.url = url
        self._endpoint = endpoint
        self._peer = peer
        self._our_name = our_name
        self._key = key

    def close(self) -> None:
        self._endpoint.close()

    def ask(self, name: str, content: bytes, timeout_s: float) -> dict[str, Any] | Conflicted:
        """`content`: the request, as canonical JSON. Raises: PeerError."""
        uri = PATH + name
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Authorization": self._authorization(uri, content),
        }
        body = content
        if len(content) > COMPRESSED_FROM_BYTES:
            body = gzip.compress(content, _COMPRESSION_LEVEL, mtime=0)
            headers["Content-Encoding"] = "gzip"
        try:
            answer = self._endpoint.post(
                uri, headers, body, MAX_ANSWER_BYTES, Deadline.after(timeout_s)
            )
        except CallError as error:
            raise PeerError(error.reason) from error
        value = _find_object(answer.body)
        if answer.status == 409 and value is not None:
            return Conflicted(natural(value.get("last_id")))
        if answer.status != 200:
            errcode = (value or {}).get("errcode")
            known = f" {errcode}" if errcode in _ERRCODES else ""
            raise PeerError(f"answered {answer.status}{known}")
        if value is None:
            raise PeerError("malformed answer")
        return value

    def _authorization(self, uri: str, content: bytes) -> str:
        key = self._key()
        message = xmatrix.signed_message("POST", uri, self._our_name, self._peer, content)
        return (
            f'X-Matrix origin="{self._our_name}",destination="{self._peer}",'
            f'key="{key.key_id}",sig="{key.sign_message(message)}"'
        )


class PeerClients:
    """Makes clients. One per process."""

    def __init__(
        self,
        settings: Federation,
        resolver: Resolver,
        our_name: str,
        key: Callable[[], SigningKey],
    ) -> None:
        """`key`: the one to sign with now. Raises: SetupError when `ca_file` cannot be used."""
        self._tls = tls_context(settings)
        self._resolver = resolver
        self._our_name = our_name
        self._key = key

    def open(self, peer: str, url: str) -> PeerClient:
        """It connects when it is first asked."""
        endpoint = Endpoint(url, self._tls, self._resolver)
        return PeerClient(endpoint, url, peer, self._our_name, self._key)


def natural(value: object) -> int:
    """An integer from 0. Raises: PeerError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise PeerError("malformed answer")
    return value


def _find_object(body: bytes) -> dict[str, Any] | None:
    try:
        value = decode(body)
    except NotJson:
        return None
    return value if isinstance(value, dict) else None
