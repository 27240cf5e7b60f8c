"""Digests over one origin's live associations, by which two servers compare what they hold.

One digest a range of 1,000 origin ids: SHA-256 over (id, 8 bytes big-endian || leaf) of the
statements in it that win the current view as bindings, in order of id. A range without any
has no digest. What was forgotten is not live, so forgetting changes no digest.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from identity.errors import InvalidParameter
from identity.replication.batch import Known, parse_hash, parse_id

RANGE_IDS: Final = 1_000
# More digits than any id has: what is longer is cut, and is still none.
_MAX_ID_CHARACTERS: Final = 20


def digests(live: Iterable[tuple[int, bytes]]) -> dict[int, str]:
    """First id of each range to 64 hex digits; `live` is (origin id, leaf) in order of id."""
    ranges: dict[int, hashlib._Hash] = {}
    for origin_id, leaf in live:
        first = origin_id - origin_id % RANGE_IDS
        ranges.setdefault(first, hashlib.sha256()).update(origin_id.to_bytes(8) + leaf)
    return {first: digest.hexdigest() for first, digest in ranges.items()}


def differing(theirs: Mapping[int, str], ours: Mapping[int, str]) -> list[int]:
    """The first ids of the ranges that are others, or missing on one side, in order."""
    return sorted(
        first for first in theirs.keys() | ours.keys() if theirs.get(first) != ours.get(first)
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """What an origin says of its live statements. `ranges`: first id to digest."""

    last_id: int
    ranges: dict[int, str]

    @classmethod
    def decode(cls, body: Mapping[str, Any]) -> Self:
        """Raises: InvalidParameter."""
        ranges = body.get("ranges")
        if not isinstance(ranges, dict):
            raise InvalidParameter("ranges is not valid")
        decoded = {}
        for text, digest in ranges.items():
            if not (text.isascii() and text.isdigit()) or not isinstance(digest, str):
                raise InvalidParameter("ranges is not valid")
            decoded[_parse_first(int(text[:_MAX_ID_CHARACTERS]))] = digest
        return cls(parse_id(body.get("last_id"), "last_id", least=0), decoded)


@dataclass(frozen=True, slots=True)
class Named:
    """All live statements of an origin in the range that begins with `first`: id to leaf.

    `last_id`: its last id when it looked; what is younger is not spoken of.
    """

    first: int
    last_id: int
    live: dict[int, bytes]

    @classmethod
    def decode(cls, body: Mapping[str, Any]) -> Self:
        """Raises: InvalidParameter."""
        first = _parse_first(parse_id(body.get("first"), "first", least=0))
        live = body.get("live")
        if not isinstance(live, list) or not all(isinstance(one, dict) for one in live):
            raise InvalidParameter("live is not valid")
        named = {parse_id(one.get("id"), "id"): parse_hash(one.get("leaf")) for one in live}
        if not all(first <= origin_id < first + RANGE_IDS for origin_id in named):
            raise InvalidParameter("live is not valid")
        return cls(first, parse_id(body.get("last_id"), "last_id", least=0), named)

    def find_dropped(self, live: Iterable[int]) -> list[int]:
        """Of the ids that are `live` here, in this range: those that are so no more."""
        return [
            origin_id
            for origin_id in live
            if origin_id <= self.last_id and origin_id not in self.live
        ]

    def find_wanted(self, last_id: int, known: Mapping[int, Known]) -> list[int]:
        """What is lacking here, in order. `last_id`: what is held of the origin; what is behind
        that comes by itself. `known`: of what is named.

        Neither what was refused nor a fork is lacking.
        """
        return sorted(
            origin_id
            for origin_id, leaf in self.live.items()
            if origin_id <= last_id
            and (
                origin_id not in known
                or (not known[origin_id].complete and known[origin_id].leaf == leaf)
            )
        )


def _parse_first(value: int) -> int:
    if value % RANGE_IDS:
        raise InvalidParameter("A range begins with a multiple of 1000")
    return parse_id(value, "range", least=0)
