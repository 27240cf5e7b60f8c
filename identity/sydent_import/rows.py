"""The rows of a Sydent's database that are taken over, with whatever is in them: pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

# What a Sydent takes where neither its database nor its configuration says where a peer is.
_PEER_PORT: Final = 1001


@dataclass(frozen=True, slots=True)
class Stated:
    """One association. `row`: its number in the table, `origin_id`: at its origin.

    `signed`: its JSON as text; None for one of Sydent's own that it no longer holds as signed:
    a revocation, or what a peer's revocation has removed.
    """

    row: int
    origin: str
    origin_id: int
    medium: Any
    address: Any
    mxid: Any
    ts_ms: Any
    not_before_ms: Any
    not_after_ms: Any
    signed: Any


@dataclass(frozen=True, slots=True)
class StoredInvite:
    """`key`: the public ephemeral key made with it, if that is known. Times in seconds."""

    row: int
    medium: Any
    address: Any
    room_id: Any
    sender: Any
    token: Any
    received_s: Any
    sent_s: Any
    key: Any


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """`keys`: its public keys, in any encoding."""

    row: int
    name: Any
    port: Any
    last_sent: Any
    active: bool
    keys: tuple[Any, ...]

    def url(self, urls: Mapping[str, str]) -> str:
        return urls.get(self.name) or f"https://{self.name}:{self.port or _PEER_PORT}"
