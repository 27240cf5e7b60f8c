"""How much is sent to a scope, and whether it comes to anything: pure.

Fraudsters have messages sent to numbers whose operator shares the fee with them. Nobody reads those
messages, so few of their codes come back: the share that does, the conversion, gives them away.

A scope is a block of 10,000 numbers, a country, or the whole server. A country is two: one for
accounts of known homeservers and one for all others, so that the latter cannot have it paused for
the former. The messages of a scope are counted in windows of so many. When a window is full, the
next message judges it: where less than a tenth of the codes came back, the scope is paused for an
hour. After a pause a tenth of a window is enough to judge by, until one was good.

- `admitted` counts from before a message is sent, so that no number of requests at once gets past
  the end of a window. `sent` counts the codes that a provider took, which are what is judged.
- Days are UTC. A day that has begun does not end because another host's clock is behind.

Source: security.md, decision 3 of its table of limits and threats 24 and 25; Twilio's advice to
watch conversion.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final, Self

from identity.clock import DAY_MS, HOUR_MS
from identity.errors import DestinationRejected, IdentityError, LimitExceeded
from identity.threepid import Country, ThreePid

BLOCK_WINDOW: Final = 50
COUNTRY_WINDOW: Final = 200
PAUSE_MS: Final = HOUR_MS
# Conversion below one in so many is fraud.
_ONE_IN: Final = 10
# After a pause, this part of a window is judged.
_PROBE_PART: Final = 10
# The last digits of a number, by which the numbers of a block differ: 10,000 of them.
_BLOCK_DIGITS: Final = 4
# A time that does not come: 2^53 - 1, the last that JSON carries.
NEVER_MS: Final = 2**53 - 1

SERVER: Final = "*"
# Not a scope that anything is sent to: paused while too many wrong codes are submitted.
ALARM: Final = "alarm"
_CODE: Final = "code "
# Whose messages to a country they are.
KNOWN: Final = "known"
OTHERS: Final = "others"


def block_of(number: ThreePid) -> str:
    """What all numbers of a block of 10,000 have in common: all digits but the last four."""
    return number.address[:-_BLOCK_DIGITS]


def block_scope(country: Country, block_hash: bytes) -> str:
    """`block_hash`: keyed, 32 bytes, for no digits are stored."""
    return f"{country.name}/{block_hash.hex()}"


def country_scope(country: Country, *, is_known: bool) -> str:
    """`is_known`: for accounts of known homeservers."""
    return f"{country.name} {KNOWN if is_known else OTHERS}"


def code_scope(calling_code: str) -> str:
    """What an operator pauses."""
    return _CODE + calling_code


def country_name_of(scope: str) -> str:
    """Of a block or of a country."""
    return scope.partition("/")[0].partition(" ")[0]


def share_of(scope: str) -> str | None:
    """Whose share of a country it is, if it is one."""
    share = scope.partition(" ")[2]
    return share if share in (KNOWN, OTHERS) else None


def calling_code_of(scope: str) -> str | None:
    """What an operator paused, if that is what the scope is."""
    return scope.removeprefix(_CODE) if scope.startswith(_CODE) else None


def day_of(now_ms: int) -> int:
    return now_ms // DAY_MS


def day_cap(daily_limit: int, price: float, spend_per_day: float) -> int | None:
    """How many messages a day both caps leave; None: any number. 0 is no cap."""
    caps = [daily_limit] if daily_limit else []
    if spend_per_day and price:
        # What people write in decimals is meant in decimals: 0.3 buys 3 messages at 0.1.
        caps.append(int(Decimal(str(spend_per_day)) // Decimal(str(price))))
    return min(caps, default=None)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The counts of one scope: of the window at hand, and of the day at hand."""

    scope: str
    admitted: int = 0
    sent: int = 0
    converted: int = 0
    day: int = 0
    day_admitted: int = 0
    day_sent: int = 0
    day_converted: int = 0
    paused_until_ms: int = 0

    def is_paused(self, now_ms: int) -> bool:
        return now_ms < self.paused_until_ms

    def judged(self, window: int, now_ms: int) -> Self:
        """As the next message finds it. `window`: how many messages a full one holds."""
        if self.is_paused(now_ms):
            return self
        was_paused = self.paused_until_ms != 0
        if self.admitted < (window // _PROBE_PART if was_paused else window):
            return self
        is_fraud = self.converted * _ONE_IN < self.sent
        return replace(
            self,
            admitted=0,
            sent=0,
            converted=0,
            paused_until_ms=now_ms + PAUSE_MS if is_fraud else 0,
        )

    def today(self, now_ms: int) -> Self:
        """With the counts of the day that it is."""
        today = day_of(now_ms)
        # A day ahead is that of a host whose clock is; what lies further ahead was an error.
        if today <= self.day <= today + 1:
            return self
        return replace(self, day=today, day_admitted=0, day_sent=0, day_converted=0)

    def with_one_more(self, now_ms: int) -> Self:
        """One more message is let through."""
        now = self.today(now_ms)
        return replace(now, admitted=now.admitted + 1, day_admitted=now.day_admitted + 1)

    def with_one_less(self, day: int) -> Self:
        """A message of that day was not sent after all. What has been judged stays judged."""
        of_today = self.day == day
        return replace(
            self,
            admitted=max(0, self.admitted - 1),
            day_admitted=max(0, self.day_admitted - of_today),
        )


def find_refusal(
    scopes: Iterable[Traffic], server: Traffic, cap: int | None, now_ms: int
) -> IdentityError | None:
    """Why one more message may not be sent, if so.

    `scopes`: all that it is of but the server; `server`: with the counts of today.
    """
    if any(scope.is_paused(now_ms) for scope in scopes):
        return DestinationRejected()
    if cap is not None and server.day_admitted >= cap:
        return LimitExceeded((server.day + 1) * DAY_MS - now_ms)
    return None
