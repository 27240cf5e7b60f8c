"""What a statement is, and which of two counts: pure.

A statement says "this 3PID belongs to this MXID", or, without an MXID, that it belongs to
nobody any more. The current view is a last-writer-wins register for each 3PID: the newest
statement of any origin counts, whatever the order of arrival and however often it arrives.

Source: Matrix Identity Service API, "Establishing associations"; MSC2134 for time stamps.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self, TypeVar

from identity.mxid import UserId
from identity.replication.chain import leaf_of
from identity.strict_json import encode_canonical
from identity.threepid import Medium, ThreePid

# 100 years of 365 days: an association is valid until it is revoked.
VALIDITY_MS: Final = 3_153_600_000_000
# Of the addresses that were taken, these are canonical beyond doubt, which is what most are.
_CANONICAL: Final = re.compile(r"[^+A-Z\x80-\U0010ffff][^A-Z\x80-\U0010ffff]*")
_SIGNED_KEYS: Final = ("address", "medium", "mxid", "not_after", "not_before", "ts")


_Key = TypeVar("_Key")
_Entry = TypeVar("_Entry", bound="Logged | Forgotten")


class Version(NamedTuple):
    """Orders all statements about one 3PID, wherever they were made; the greatest counts."""

    ts_ms: int
    origin: str
    origin_id: int


@dataclass(frozen=True, slots=True)
class Statement:
    """`mxid` None: a revocation, which has no validity. Times in ms since the epoch."""

    threepid: ThreePid
    mxid: UserId | None
    ts_ms: int
    not_before_ms: int | None
    not_after_ms: int | None

    @classmethod
    def make(
        cls, threepid: ThreePid, mxid: UserId | None, now_ms: int, newest_ts_ms: int | None
    ) -> Self:
        """A statement newer than `newest_ts_ms`, that of the current winner for this 3PID.

        A clock that jumps back makes no statement that would lose to an older one.
        """
        ts_ms = now_ms if newest_ts_ms is None else max(now_ms, newest_ts_ms + 1)
        if mxid is None:
            return cls(threepid, None, ts_ms, None, None)
        return cls(threepid, mxid, ts_ms, min(now_ms, ts_ms), ts_ms + VALIDITY_MS)

    def to_json(self) -> dict[str, Any]:
        """Exactly the six keys that are signed; a revocation has null for three of them."""
        return {
            "address": self.threepid.address,
            "medium": str(self.threepid.medium),
            "mxid": None if self.mxid is None else str(self.mxid),
            "not_after": self.not_after_ms,
            "not_before": self.not_before_ms,
            "ts": self.ts_ms,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], lowered: str | None = None) -> Self:
        """A statement that was checked before it was stored, so its shape is known.

        One from a Sydent is stored as it came, and its address need not be canonical.
        """
        medium, address = value["medium"], value["address"]
        if not _CANONICAL.fullmatch(address):
            address = ThreePid.parse(medium, address).address
        threepid = ThreePid(Medium(medium), address, lowered)
        if value["mxid"] is None:
            return cls(threepid, None, value["ts"], None, None)
        mxid = UserId.parse(value["mxid"])
        return cls(threepid, mxid, value["ts"], value["not_before"], value["not_after"])


@dataclass(frozen=True, slots=True)
class Logged:
    """A statement in the log of its origin. `signed`: canonical JSON with the signatures,
    exactly as it was signed; it never changes."""

    origin: str
    origin_id: int
    statement: Statement
    signed: str

    @classmethod
    def load(cls, origin: str, origin_id: int, signed: str, lowered: str | None) -> Self:
        return cls(origin, origin_id, Statement.from_json(json.loads(signed), lowered), signed)

    @property
    def version(self) -> Version:
        return Version(self.statement.ts_ms, self.origin, self.origin_id)

    @property
    def leaf(self) -> bytes:
        """32 bytes."""
        return leaf_of(self.signed)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A statement in the log of which only its 3PID, as a blind index, and its version are left.

    It counts as a revocation: what it replaced does not come back, and nobody is bound by it.
    """

    threepid: bytes
    version: Version


def encode_signed(signed: dict[str, Any]) -> str:
    """The text that is stored and hashed."""
    return encode_canonical(signed).decode()


def given_out(signed: str) -> dict[str, Any]:
    """What others are shown of a stored statement: the six keys and the signatures.

    What a Sydent signed may hold more, and that is not always for everyone.
    """
    value = json.loads(signed)
    return {key: value[key] for key in (*_SIGNED_KEYS, "signatures")}


def newest(logged: Iterable[Logged]) -> dict[ThreePid, Logged]:
    """The statement that counts for each 3PID."""
    return newest_by((entry.statement.threepid, entry) for entry in logged)


def newest_by(entries: Iterable[tuple[_Key, _Entry]]) -> dict[_Key, _Entry]:
    """The same for 3PIDs by whatever key tells them apart."""
    winners: dict[_Key, _Entry] = {}
    for key, entry in entries:
        held = winners.get(key)
        if held is None or entry.version > held.version:
            winners[key] = entry
    return winners
