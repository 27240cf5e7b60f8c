"""When a peer that fails is tried again, and when one is given up: pure.

A peer that was well a moment ago is restarting, and is missed; one that has been away for long is
not worth a try every few seconds. Whatever it asks of us shows that it is back, and is answered by
a try at once, so the long delays cost little.
"""

from random import Random
from typing import Final

from identity.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS

FIRST_DELAY_MS: Final = SECOND_MS
# While the peer has been well lately, and after that.
LONGEST_SOON_MS: Final = 20 * SECOND_MS
LONGEST_MS: Final = 5 * MINUTE_MS
LATELY_MS: Final = 15 * MINUTE_MS
# For so long statements are kept that a silent peer has not got.
SUSPENDED_AFTER_MS: Final = 90 * DAY_MS
COMPARE_EVERY_MS: Final = HOUR_MS
# What differs may be on its way. If it still does after this, it is not.
COMPARE_AGAIN_MS: Final = MINUTE_MS
# The oldest unacknowledged statement is older: the peer lags.
LAG_MS: Final = 10 * MINUTE_MS

_MAX_DOUBLINGS: Final = 10


def delay_ms(failures: int, well_at_ms: int, now_ms: int, random: Random) -> int:
    """How long to wait after the `failures`-th failure in a row, from 1.

    `well_at_ms`: when the peer last took something, or was added. Up to a quarter less, so that a
    peer which comes back is not asked by everyone at once.
    """
    longest = LONGEST_SOON_MS if now_ms - well_at_ms < LATELY_MS else LONGEST_MS
    delay = min(FIRST_DELAY_MS * 2 ** min(failures - 1, _MAX_DOUBLINGS), longest)
    return int(delay * random.uniform(0.75, 1.0))


def is_comparison_due(compared_at_ms: int | None, now_ms: int) -> bool:
    """A clock that was set back must not put it off for years."""
    return compared_at_ms is None or not 0 <= now_ms - compared_at_ms < COMPARE_EVERY_MS
