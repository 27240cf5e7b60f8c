"""The hash chain over one origin's statements: pure arithmetic.

leaf = SHA-256(the signed JSON, canonical, with the origin's signature)
head = SHA-256(previous head || origin id, 8 bytes big-endian || leaf); it starts as 32 zeros.

Ids only grow and may have gaps. A forgotten statement keeps its id and leaf, so the chain
can still be checked.
"""

import hashlib
from typing import Final

EMPTY_HEAD: Final = bytes(32)


def leaf_of(signed: str) -> bytes:
    """32 bytes; `signed` is the statement's text as it was signed and stored."""
    return hashlib.sha256(signed.encode()).digest()


def next_head(head: bytes, origin_id: int, leaf: bytes) -> bytes:
    """32 bytes: the head after one more statement."""
    return hashlib.sha256(head + origin_id.to_bytes(8) + leaf).digest()
