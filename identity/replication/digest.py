"""Digests over one origin's live associations, by which two servers compare what they hold.

One digest a range of 1,000 origin ids: SHA-256 over (id, 8 bytes big-endian || leaf) of the
statements in it that win the current view as bindings, in order of id. A range without any
has no digest. What was forgotten is not live, so forgetting changes no digest.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

RANGE_IDS: Final = 1_000


def digests(live: Iterable[tuple[int, bytes]]) -> dict[int, str]:
    """First id of each range to 64 hex digits; `live` is (origin id, leaf) in order of id."""
    ranges: dict[int, hashlib._Hash] = {}
    for origin_id, leaf in live:
        first = origin_id - origin_id % RANGE_IDS
        ranges.setdefault(first, hashlib.sha256()).update(origin_id.to_bytes(8) + leaf)
    return {first: digest.hexdigest() for first, digest in ranges.items()}
