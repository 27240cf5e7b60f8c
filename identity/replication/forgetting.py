"""Use cases of forgetting: removal removes.

Rules:
- Superseded statements and revocations are kept until everyone who must have them has had them for
  `retention.revocations`; then they become id and leaf, here as at every peer.
- A milestone is a note, made now and then, of how far everyone was at that time. What lies at or
  below one that is old enough may be forgotten, unless it is a current binding.
- A peer that was silent for 90 days is not waited for. When it comes back it gets everything, and
  repair drops what it still holds of what is gone.
- A refused statement loses its text after the same time.

Each step is one short transaction, and does no harm when it is done twice.

Source: decision 5.
"""

from datetime import timedelta
from typing import Final

from identity.clock import HOUR_MS, Clock
from identity.database import PURGE_ROWS, Database, Transaction
from identity.replication import milestones

# By so much more may something be kept than it must.
_NOTE_EVERY_MS: Final = HOUR_MS
# How many ids one step looks at, most of which are current bindings.
_STEP_IDS: Final = 10_000


class Forgetting:
    """Forgets what need not be known any more. One per process."""

    def __init__(
        self, database: Database, our_name: str, retention: timedelta, clock: Clock
    ) -> None:
        self._database = database
        self._our_name = our_name
        self._retention_ms = retention // timedelta(milliseconds=1)
        self._clock = clock
        # Up to which id the log of each origin was looked at in this round.
        self._looked_at: dict[str, int] = {}

    def note_milestones(self) -> None:
        """Note how far everyone is, if the last note is old enough."""
        now_ms = self._clock.now_ms()
        newest_ms = self._database.read(milestones.newest_at_ms)
        if newest_ms is not None and 0 <= now_ms - newest_ms < self._note_every_ms:
            return

        def work(tx: Transaction) -> None:
            milestones.note(tx, milestones.reached(tx, self._our_name), now_ms)
            milestones.delete_outdated(tx, now_ms - self._retention_ms)

        self._database.write(work)

    def forget(self) -> int:
        """Look at the next part of each origin's log; returns how many statements were forgotten.

        After the last part it begins again: what is a binding today may be none tomorrow.
        """
        before_ms = self._clock.now_ms() - self._retention_ms
        forgotten = 0
        for origin, last_id in self._database.read(
            lambda tx: milestones.passed(tx, before_ms)
        ).items():
            first = self._looked_at.get(origin, 0) + 1
            last = min(first + _STEP_IDS - 1, last_id)
            forgotten += self._forget_range(origin, first, last)
            self._looked_at[origin] = last if last < last_id else 0
        return forgotten

    def forget_refused(self) -> int:
        """The text of refused statements, at most PURGE_ROWS; returns how many."""
        before_ms = self._clock.now_ms() - self._retention_ms
        return self._database.write(lambda tx: milestones.forget_refused(tx, before_ms, PURGE_ROWS))

    @property
    def _note_every_ms(self) -> int:
        # A short retention, as tests and some operators have, is not made long by seldom notes.
        return min(_NOTE_EVERY_MS, self._retention_ms)

    def _forget_range(self, origin: str, first: int, last: int) -> int:
        return self._database.write(lambda tx: milestones.forget_range(tx, origin, first, last))
