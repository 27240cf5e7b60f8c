"""How a provider can fail to take a message, and what follows from it: pure.

The question is whether the message may be under way all the same. Where nothing was accepted the
next provider is tried. Where that is unclear it is not: the limits and the spend cap count one
message a request, and a second one would cost money that nobody counted.
"""

from typing import Final

from identity.clock import HOUR_MS, MINUTE_MS, SECOND_MS

# For a provider that says "too many" and not for how long.
RETRY_AFTER_MS: Final = MINUTE_MS
MAX_RETRY_AFTER_MS: Final = HOUR_MS
_MAX_DIGITS: Final = 9


class ProviderError(Exception):
    """`reason`: a few fixed words, or an error's number, fit for a log."""

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.timed_out = timed_out


class NotAccepted(ProviderError):
    """Nothing was accepted. `retry_after_ms`: set where the provider has had too many."""

    def __init__(
        self, reason: str, *, timed_out: bool = False, retry_after_ms: int | None = None
    ) -> None:
        super().__init__(reason, timed_out=timed_out)
        self.retry_after_ms = retry_after_ms


class Unclear(ProviderError):
    """The request was sent, and what became of it is not known."""


def parse_retry_after(text: str | None) -> int:
    """After how many milliseconds to ask again, at most an hour. `text`: of the header.

    Source: RFC 9110, section 10.2.3, of which only seconds are understood.
    """
    seconds = (text or "").strip()
    if not (seconds.isascii() and seconds.isdigit() and len(seconds) <= _MAX_DIGITS):
        return RETRY_AFTER_MS
    return max(SECOND_MS, min(int(seconds) * SECOND_MS, MAX_RETRY_AFTER_MS))
