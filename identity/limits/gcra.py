"""The arithmetic of rate limits: the Generic Cell Rate Algorithm, in whole numbers.

The whole state of a bucket is one instant, the theoretical arrival time (TAT): when the
bucket will be full again. A permit costs one emission interval T = period / count. Spending
n permits moves TAT to max(TAT, now) + n·T and is allowed as long as that is at most
now + count·T; a refusal changes nothing.

What follows from it, and what the tests hold:

- `count` permits may be spent at once (the burst); they come back one by one, every T, and
  all of them within a period. So any span of time w sees at most count + w / T permits.
- A clock that goes back never gives permits back, for TAT is never lowered.
- T is rounded up to a whole microsecond, so rounding makes a limit stricter, never looser;
  a count of at most 1,000 a second keeps that below one part in a thousand.
- Hosts whose clocks differ by d see at most d / T permits more.
- A cost above `count` could never be met, however long one waits: ValueError.

Source: ATM Forum, Traffic Management Specification (af-tm-0056), "virtual scheduling algorithm";
the description of its use for web requests in `ratelimits/README.md` of Let's Encrypt's Boulder.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from identity.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS

MAX_PERIOD_MS = 366 * DAY_MS
MAX_COUNT_PER_SECOND = 1_000

_UNITS_MS = {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_RATE = re.compile(r"([0-9]{1,12})/([0-9]{0,8})([smhd])", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` permits at once, coming back evenly so that all are back after `period_ms`."""

    count: int
    period_ms: int

    def __post_init__(self) -> None:
        """Raises: ValueError when count or period is out of bounds."""
        if self.count < 1:
            raise ValueError("the count must be 1 or more")
        if not SECOND_MS <= self.period_ms <= MAX_PERIOD_MS:
            raise ValueError("the period must be between 1s and 366d")
        if self.count * SECOND_MS > self.period_ms * MAX_COUNT_PER_SECOND:
            raise ValueError(f"at most {MAX_COUNT_PER_SECOND} a second can be counted")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one rate: `<count>/<unit>` or `<count>/<n><unit>`, units s, m, h and d.

        Raises: ValueError with a message that names the text.
        """
        match = _RATE.fullmatch(text)
        if match is None:
            raise ValueError(f'"{text[:40]}" is not a rate; write "5/h" or "30/10m" (s, m, h, d)')
        count, units, unit = match.groups()
        try:
            return cls(int(count), int(units or 1) * _UNITS_MS[unit])
        except ValueError as error:
            raise ValueError(f'"{text}": {error}') from None

    @classmethod
    def parse_list(cls, text: str) -> tuple[Self, ...]:
        """Read rates that hold together, as "5/h, 10/d"; at least one, each with its own period.

        Raises: ValueError with a message that names the part that is wrong.
        """
        rates = tuple(cls.parse(part.strip()) for part in text.split(","))
        if len({rate.period_ms for rate in rates}) < len(rates):
            raise ValueError(f'"{text[:80]}" gives two rates for the same period')
        return rates

    def __str__(self) -> str:
        """The shortest text that `parse` reads back as this rate."""
        for unit in "dhms":
            units, rest = divmod(self.period_ms, _UNITS_MS[unit])
            if not rest:
                return f"{self.count}/{units if units > 1 else ''}{unit}"
        raise ValueError("a period is a whole number of seconds")

    @property
    def interval_us(self) -> int:
        """T: how long one permit takes to come back, rounded up."""
        return -(-self.period_ms * 1_000 // self.count)

    def charge(self, key: bytes, permits: int) -> "Charge":
        """`permits` of the bucket `key`.

        Raises: ValueError when `permits` is below 1, or above the burst: that could never pass.
        """
        if not 1 <= permits <= self.count:
            raise ValueError(f"{permits} permits can never be had from a limit of {self}")
        return Charge(key, permits * self.interval_us, self.count * self.interval_us)


@dataclass(frozen=True, slots=True)
class Charge:
    """What a spend asks of one bucket.

    `key`: which bucket; `cost_us`: how far TAT moves; `burst_us`: how far ahead of now it may lie.
    """

    key: bytes
    cost_us: int
    burst_us: int

    def tat_after_us(self, tat_us: int | None, now_us: int) -> int:
        """TAT once this is spent; `tat_us` is None for a bucket never used."""
        return max(tat_us or 0, now_us) + self.cost_us

    def wait_us(self, tat_us: int | None, now_us: int) -> int:
        """How long until this may be spent; 0: now."""
        return max(0, self.tat_after_us(tat_us, now_us) - now_us - self.burst_us)


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of charges spent together: either all of them or none.

    `tats_us`: TAT of each bucket after the spend, in the order of the charges; empty if refused.
    `waits_us`: how long each charge has to wait; all 0 if allowed.
    """

    tats_us: tuple[int, ...]
    waits_us: tuple[int, ...]

    @property
    def allowed(self) -> bool:
        return not any(self.waits_us)

    @property
    def retry_after_ms(self) -> int:
        """The first whole millisecond after which the same spend passes, if nobody else spends."""
        return -(-max(self.waits_us) // 1_000)


def decide(charges: Sequence[Charge], tats_us: Sequence[int | None], now_ms: int) -> Decision:
    """Spend all of `charges` or none; `tats_us` are the buckets as they are, in the same order."""
    now_us = now_ms * 1_000
    pairs = list(zip(charges, tats_us, strict=True))
    waits_us = tuple(charge.wait_us(tat_us, now_us) for charge, tat_us in pairs)
    if any(waits_us):
        return Decision((), waits_us)
    return Decision(
        tuple(charge.tat_after_us(tat_us, now_us) for charge, tat_us in pairs), waits_us
    )
