"""What a homeserver's /.well-known/matrix/server says, and for how long to believe it.

Rules:
- the body is JSON whatever its Content-Type; `m.server` is a server name;
- Cache-Control and Expires are honoured between 5 minutes and 48 hours; 24 hours without them;
- a failure is remembered for 2 minutes, doubling while it lasts, to at most an hour;
- a random part is taken off each lifetime, so that caches filled together do not empty together.

Source: Matrix server-server API, "Server discovery" and GET /.well-known/matrix/server; RFC 9111.
"""

import re
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Final

from identity import strict_json
from identity.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from identity.errors import InvalidParameter
from identity.mxid import ServerName

PATH: Final = "/.well-known/matrix/server"
MAX_BODY_BYTES: Final = 50 * 1024

DEFAULT_LIFETIME_MS: Final = DAY_MS
MAX_LIFETIME_MS: Final = 2 * DAY_MS
MIN_LIFETIME_MS: Final = 5 * MINUTE_MS
FIRST_FAILURE_LIFETIME_MS: Final = 2 * MINUTE_MS
MAX_FAILURE_LIFETIME_MS: Final = HOUR_MS
MAX_JITTER: Final = 0.1

# Ten digits of seconds are three centuries; more are not worth reading.
_MAX_AGE: Final = re.compile(r'max-age="?([0-9]{1,10})', re.ASCII)


def parse(body: bytes) -> ServerName:
    """The server that `m.server` delegates to. Raises: NotJson, InvalidParameter."""
    value = strict_json.decode(body)
    if not isinstance(value, dict):
        raise InvalidParameter
    return ServerName.parse(value.get("m.server", ""))


def lifetime_ms(headers: Message, now_ms: int, jitter: float) -> int:
    """How long a valid answer may be used. `jitter`: 0 to `MAX_JITTER`, the share taken off."""
    lifetime = int(_stated_lifetime_ms(headers, now_ms) * (1 - jitter))
    return max(MIN_LIFETIME_MS, lifetime)


def failure_lifetime_ms(failures: int, jitter: float) -> int:
    """How long not to ask again after `failures` failures in a row, one at least."""
    # Far beyond the ceiling the exponent stops growing, so that the number stays small.
    doubled = FIRST_FAILURE_LIFETIME_MS * 2 ** min(failures - 1, 10)
    return int(min(doubled, MAX_FAILURE_LIFETIME_MS) * (1 - jitter))


def _stated_lifetime_ms(headers: Message, now_ms: int) -> int:
    """At most `MAX_LIFETIME_MS`; 0 or less where the answer is not to be kept."""
    directives = [
        directive.strip().lower()
        for line in headers.get_all("Cache-Control", [])
        for directive in line.split(",")
    ]
    if "no-store" in directives or "no-cache" in directives:
        return 0
    for directive in directives:
        if stated := _MAX_AGE.match(directive):
            return min(int(stated[1]) * SECOND_MS, MAX_LIFETIME_MS)
    if (expires := headers.get("Expires")) is not None:
        return min(_instant_ms(expires) - now_ms, MAX_LIFETIME_MS)
    return DEFAULT_LIFETIME_MS


def _instant_ms(date: str) -> int:
    """An HTTP date. What cannot be read counts as long past (RFC 9111, 5.3)."""
    try:
        return int(parsedate_to_datetime(date).timestamp() * SECOND_MS)
    except (ValueError, OverflowError):
        return 0
