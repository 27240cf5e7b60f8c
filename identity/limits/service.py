"""Spending from rate limits by their names.

Call it before a transaction of your own is opened: it opens one, and keeps what was spent
whatever becomes of yours. Never charge after the act that a limit protects; where only
failures count, `spend` first and `refund` after a success, so that no number of requests at
once gets past the limit.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import structlog

from identity.clock import Clock
from identity.errors import LimitExceeded, StorageUnavailable
from identity.limits.catalogue import CATALOGUE, Limits
from identity.limits.gcra import Charge, Decision
from identity.limits.store import MemoryStorage, Storage
from identity.sealing import StorageKeys

log = structlog.get_logger(__name__)

# The name of a limit, and who is counted: an account, a canonical address, a host.
Subject: TypeAlias = tuple[str, str]


class Limiter:
    """All limits of this server. Threads may share it."""

    def __init__(
        self,
        limits: Limits,
        storage: Storage,
        clock: Clock,
        keys: StorageKeys,
        *,
        enabled: bool = True,
    ) -> None:
        """`keys`: subjects are stored as keyed hashes; `enabled` False lets everything pass."""
        self.limits = limits
        self.clock = clock
        self.enabled = enabled
        self._storage = storage
        self._keys = keys
        self._fallback = MemoryStorage()
        self._storage_lost = False

    def spend(self, *subjects: Subject) -> None:
        """Take one permit of each subject, or none of any.

        Raises: LimitExceeded; StorageUnavailable where a limit does not fail open; KeyError for
        a name that is not in the catalogue.
        """
        if not self.enabled or not subjects:
            return
        costs = dict.fromkeys(subjects, 1)
        decision = self.attempt(costs)
        if not decision.allowed:
            raise self.refusal(costs, decision)

    def uses_up(self, subject: Subject) -> bool:
        """Take one permit if there is one; whether none is left now, by any of its rates.

        Raises: as `spend`, but for LimitExceeded.
        """
        if not self.enabled:
            return False
        costs = {subject: 1}
        decision = self.attempt(costs)
        now_us = self.clock.now_ms() * 1_000
        return not decision.allowed or any(
            charge.wait_us(tat_us, now_us)
            for (_, charge), tat_us in zip(self._charges(costs), decision.tats_us, strict=True)
        )

    def refund(self, *subjects: Subject) -> None:
        """Give back what `spend` took a moment ago. Never fails: at worst it stays spent."""
        if not self.enabled or not subjects:
            return
        charges = [charge for _, charge in self._charges(dict.fromkeys(subjects, 1))]
        try:
            self._storage.refund(charges)
        except StorageUnavailable:
            log.warning("limit_refund_lost", limits=[name for name, _ in subjects])

    def attempt(self, costs: Mapping[Subject, int]) -> Decision:
        """Spend a cost for each subject if all pass. The decision has, subject by subject, one
        entry for each rate of the limit.

        Raises: as `spend`, but for LimitExceeded; ValueError for a cost above a limit's burst.
        """
        names, charges = zip(*self._charges(costs), strict=True)
        return self._spend_or_fall_back(names, charges)

    def refusal(
        self, costs: Mapping[Subject, int], decision: Decision, *, longer_ms: int = 0
    ) -> LimitExceeded:
        """What to raise for costs that were refused; it is logged which limits did so."""
        names = (name for name, _ in self._charges(costs))
        exceeded = {name for name, wait_us in zip(names, decision.waits_us, strict=True) if wait_us}
        retry_after_ms = decision.retry_after_ms + longer_ms
        log.info("limit_exceeded", limits=sorted(exceeded), retry_after_ms=retry_after_ms)
        return LimitExceeded(retry_after_ms)

    def purge_expired(self) -> int:
        """For the courier; to be called again at once while it returns 10,000.

        Raises: StorageUnavailable.
        """
        return self._storage.purge_expired(self.clock.now_ms())

    def _charges(self, costs: Mapping[Subject, int]) -> Iterator[tuple[str, Charge]]:
        for (name, who), cost in costs.items():
            for rate in self.limits[name]:
                # By period, for a bucket holds time: with another count it goes on as it is.
                key = self._keys.keyed_hash("rate limit", name, str(rate.period_ms), who)
                yield name, rate.charge(key, cost)

    def _spend_or_fall_back(self, names: Sequence[str], charges: Sequence[Charge]) -> Decision:
        now_ms = self.clock.now_ms()
        try:
            decision = self._storage.spend(now_ms, charges)
        except StorageUnavailable:
            if not self._storage_lost:
                log.warning("limit_storage_lost")
                self._storage_lost = True
            if not all(CATALOGUE[name].fails_open for name in names):
                raise
            return self._fallback.spend(now_ms, charges)
        if self._storage_lost:
            log.warning("limit_storage_back")
            self._storage_lost = False
        return decision
