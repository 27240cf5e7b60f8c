"""What a statement is, and which of two counts: pure.

A statement says "this 3PID belongs to this MXID", or, without an MXID, that it belongs to
nobody any more. The current view is a last-writer-wins register for each 3PID: the newest
statement of any origin counts, whatever the order of arrival and however often it arrives.

Source: Matrix Identity Service API, "Establishing associations"; MSC2134 for time stamps.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from identity.mxid import UserId
from identity.replication.chain import leaf_of
from identity.strict_json import encode_canonical
from identity.threepid import Medium, ThreePid

# 100 years of 365 days: an association is valid until it is revoked.
VALIDITY_MS: Final = 3_153_600_000_000


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
        """A statement that was checked before it was stored, so its shape is known."""
        mxid = value["mxid"]
        return cls(
            ThreePid(Medium(value["medium"]), value["address"], lowered),
            None if mxid is None else UserId.parse(mxid),
            value["ts"],
            value["not_before"],
            value["not_after"],
        )


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


def encode_signed(signed: dict[str, Any]) -> str:
    """The text that is stored and hashed."""
    return encode_canonical(signed).decode()


def newest(logged: Iterable[Logged]) -> dict[ThreePid, Logged]:
    """The statement that counts for each 3PID."""
    winners: dict[ThreePid, Logged] = {}
    for entry in logged:
        held = winners.get(entry.statement.threepid)
        if held is None or entry.version > held.version:
            winners[entry.statement.threepid] = entry
    return winners
