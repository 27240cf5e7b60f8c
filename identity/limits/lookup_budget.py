"""Budgets of lookups: many permits a request, and normally no write.

A process draws permits in leases of 1 % of the burst and answers from what it holds. It never
answers more than the limit allows, whatever the number of processes and however long a lease
lies unused. For that, a lease lapses with the time that its permits take to come back: its
permits cover the stretch of virtual time that ends at TAT as it was after the draw, so at most
(TAT - now) / T of them are still good. Leases of all processes cover different stretches, hence
what is in the bucket and in all leases together is never more than the burst.

Where less than a lease is left, exactly what is needed is drawn. What a process holds when it
ends is lost to the account, at most 1 % of the burst, and comes back with time.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from identity.errors import TooManyAddresses
from identity.limits.gcra import Decision, Rate
from identity.limits.service import Limiter, Subject

_LEASES_PER_BURST: Final = 100


@dataclass(slots=True)
class _Lease:
    """`ends`: for each rate of the limit, TAT after the draw and T, both in microseconds."""

    permits: int
    ends: tuple[tuple[int, int], ...]

    def left(self, now_us: int) -> int:
        still_good = min((tat_us - now_us) // interval_us for tat_us, interval_us in self.ends)
        return max(0, min(self.permits, still_good))


class LookupBudget:
    """The budgets of this process. Threads may share it; a fork may too, before its first use."""

    def __init__(self, limiter: Limiter, *, max_subjects: int = 10_000) -> None:
        """`max_subjects`: beyond that many, the leases used longest ago are dropped."""
        self._limiter = limiter
        self._max_subjects = max_subjects
        self._leases: OrderedDict[Subject, list[_Lease]] = OrderedDict()
        self._lock = threading.Lock()

    def spend(self, permits: int, *subjects: Subject) -> None:
        """Take `permits` (0 or more) of each subject, or none of any.

        Raises: LimitExceeded; TooManyAddresses when no waiting would help; StorageUnavailable
        where a limit does not fail open; KeyError for a name that is not in the catalogue.
        """
        if not self._limiter.enabled or permits == 0:
            return
        burst = min(self._burst(subject) for subject in subjects)
        if permits > burst:
            raise TooManyAddresses(burst)
        now_us = self._limiter.clock.now_ms() * 1_000
        with self._lock:
            held = {subject: self._take(subject, permits, now_us) for subject in subjects}
        try:
            self._draw(
                {
                    subject: permits - sum(count for _, count in parts)
                    for subject, parts in held.items()
                },
                permits,
            )
        except Exception:
            with self._lock:
                for parts in held.values():
                    for lease, count in parts:
                        lease.permits += count
            raise

    def _take(self, subject: Subject, wanted: int, now_us: int) -> list[tuple[_Lease, int]]:
        """Up to `wanted` of the permits held, and from which leases; the lock is held."""
        leases = [lease for lease in self._leases.pop(subject, ()) if lease.left(now_us)]
        if leases:
            self._leases[subject] = leases
        parts = []
        for lease in leases:
            left = lease.left(now_us)
            count = min(left, wanted)
            wanted -= count
            lease.permits = left - count
            parts.append((lease, count))
        return parts

    def _draw(self, shortfalls: Mapping[Subject, int], permits: int) -> None:
        """Draw what is missing: as leases if all of them can be had, else exactly that much."""
        exact = {subject: shortfall for subject, shortfall in shortfalls.items() if shortfall}
        if not exact:
            return
        leases = {
            subject: max(shortfall, self._burst(subject) // _LEASES_PER_BURST)
            for subject, shortfall in exact.items()
        }
        decision = self._limiter.attempt(leases)
        if decision.allowed:
            self._keep(leases, exact, decision)
            return
        if leases != exact:
            decision = self._limiter.attempt(exact)
        if not decision.allowed:
            # What is held may have lapsed by then, and another process holds nothing.
            held_us = max(
                (permits - shortfall) * max(rate.interval_us for rate in self._rates(subject))
                for subject, shortfall in exact.items()
            )
            raise self._limiter.refusal(exact, decision, longer_ms=-(-held_us // 1_000))

    def _keep(
        self, drawn: Mapping[Subject, int], used: Mapping[Subject, int], decision: Decision
    ) -> None:
        """Hold what was drawn beyond what is used."""
        tats_us = iter(decision.tats_us)
        with self._lock:
            for subject, permits in drawn.items():
                ends = tuple((next(tats_us), rate.interval_us) for rate in self._rates(subject))
                if permits > used[subject]:
                    lease = _Lease(permits - used[subject], ends)
                    self._leases.setdefault(subject, []).append(lease)
                    self._leases.move_to_end(subject)
            while len(self._leases) > self._max_subjects:
                self._leases.popitem(last=False)

    def _rates(self, subject: Subject) -> tuple[Rate, ...]:
        name, _ = subject
        return self._limiter.limits[name]

    def _burst(self, subject: Subject) -> int:
        return min(rate.count for rate in self._rates(subject))
