"""Spares our threads a server that does not answer.

After three time-outs in a row a server is not asked for 10 seconds; then one more time-out
closes the door again, and any answer opens it for good.
"""

import threading
from dataclasses import dataclass
from typing import Final

from identity.clock import SECOND_MS, Clock
from identity.lru import LruCache

TIMEOUTS_TO_OPEN: Final = 3
OPEN_MS: Final = 10 * SECOND_MS
MAX_NAMES: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Record:
    timeouts: int
    last_at_ms: int


class Breaker:
    """Counts time-outs in a row by name. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: LruCache[str, _Record] = LruCache(MAX_NAMES)
        self._lock = threading.Lock()

    def is_open(self, name: str) -> bool:
        """Whether `name` is not to be called now."""
        record = self._records.find(name)
        if record is None or record.timeouts < TIMEOUTS_TO_OPEN:
            return False
        # A clock that was set back must not keep the breaker open.
        return 0 <= self._clock.now_ms() - record.last_at_ms < OPEN_MS

    def record(self, name: str, *, timed_out: bool) -> None:
        """One call ended; everything but a time-out counts as an answer."""
        if not timed_out:
            self._records.discard(name)
            return
        with self._lock:
            known = self._records.find(name)
            timeouts = known.timeouts + 1 if known else 1
            self._records.put(name, _Record(timeouts, self._clock.now_ms()))
