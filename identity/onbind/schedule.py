"""What the answer of a homeserver means, and when to try again: pure.

Source: decisions on `onbind` in docs/spec-divergences.md; AMB-04 of the requirements.
"""

from enum import Enum
from random import Random
from typing import Final

from identity.clock import HOUR_MS, SECOND_MS

MAX_TRIES: Final = 20
FIRST_DELAY_MS: Final = 4 * SECOND_MS
LONGEST_DELAY_MS: Final = 6 * HOUR_MS

# POST, which all homeservers that are known serve, then PUT, which the specification has.
METHODS: Final = ("POST", "PUT")

_TRY_OTHER: Final = frozenset({404, 405, 501})
_TRY_AGAIN: Final = frozenset({408, 425, 429})


class Verdict(Enum):
    """What to do after one answer. TRY_OTHER: the other method, and after both give up."""

    DELIVERED = "delivered"
    TRY_OTHER = "other"
    TRY_AGAIN = "again"
    FINAL = "final"


def judge(status: int) -> Verdict:
    if 200 <= status < 300:
        return Verdict.DELIVERED
    if status in _TRY_OTHER:
        return Verdict.TRY_OTHER
    if 400 <= status < 500 and status not in _TRY_AGAIN:
        return Verdict.FINAL
    return Verdict.TRY_AGAIN


def delay_ms(tries: int, random: Random) -> int | None:
    """How long to wait after the `tries`-th failure, from 1; None: give up.

    4 seconds, doubling to 6 hours, up to a quarter less, so that a homeserver that comes back is
    not asked everything at once.
    """
    if tries >= MAX_TRIES:
        return None
    delay = min(FIRST_DELAY_MS * 2 ** (tries - 1), LONGEST_DELAY_MS)
    return int(delay * random.uniform(0.75, 1.0))
