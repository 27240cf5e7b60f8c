"""A validation session and its rules: pure.

Rules:
- A session lives for a fixed time from its creation, and once validated for the same time
  from its validation. Nothing else prolongs it.
- Every submitted token is counted before it is looked at. When the count is used up the
  session is locked, for the right token too.
- A session that an account requested can be bound only by that account; one without an owner
  (made through the legacy API) by whoever knows sid and client secret.
- Of the tokens that were mailed, each counts until the session ends. Of the codes that were sent
  to a phone, which are short, only the newest counts, and for ten minutes.
- A message is sent only for a send attempt greater than the highest so far of the same owner,
  address and client secret.

Source: Matrix Identity Service API, "Establishing associations".
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from identity.clock import MINUTE_MS
from identity.errors import (
    InvalidParameter,
    SessionExpired,
    SessionNotValidated,
    SessionUnknown,
    WrongValidationToken,
)
from identity.mxid import UserId
from identity.threepid import Medium, ThreePid

_SID_BYTES: Final = 16
_EMAIL_TOKEN_BYTES: Final = 24
_CODE_DIGITS: Final = 6
# From decision 4 of the project's security page; NIST SP 800-63B allows as much at the most.
CODE_LIFETIME_MS: Final = 10 * MINUTE_MS
# For so long a message may be on its way; no sender takes longer to accept or refuse it.
SENDING_MS: Final = 10 * MINUTE_MS
MAX_NEXT_LINK_CHARACTERS: Final = 2_048
MAX_SEND_ATTEMPT: Final = 2**53 - 1
_OPAQUE: Final = re.compile(r"[0-9a-zA-Z.=_-]{1,255}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Token:
    """One that was sent for a session (`live`), or is on its way, or never left."""

    token_hash: bytes
    send_attempt: int
    prepared_at_ms: int
    live: bool

    def may_have_been_sent(self, now_ms: int) -> bool:
        """One that stayed prepared for long belongs to a process that died."""
        return self.live or self.prepared_at_ms >= now_ms - SENDING_MS


@dataclass(frozen=True, slots=True)
class Session:
    """One row as it was read. Times in ms since the epoch.

    `owner`: MXID of the account that requested it, None through the legacy API.
    `attempts`: tokens that were submitted and not found right.
    """

    sid: str
    owner: str | None
    threepid: ThreePid
    client_secret_hash: bytes
    created_at_ms: int
    validated_at_ms: int | None
    attempts: int
    next_link: str | None
    brand: str | None

    def check_live(self, now_ms: int, lifetime_ms: int) -> None:
        """Raises: SessionExpired."""
        since_ms = self.created_at_ms if self.validated_at_ms is None else self.validated_at_ms
        if now_ms > since_ms + lifetime_ms:
            raise SessionExpired

    def is_live(self, now_ms: int, lifetime_ms: int) -> bool:
        try:
            self.check_live(now_ms, lifetime_ms)
        except SessionExpired:
            return False
        return True

    def check_attempts(self, maximum: int) -> None:
        """Raises: WrongValidationToken when the session is locked."""
        if self.attempts >= maximum:
            raise WrongValidationToken

    def get_validated_at_ms(self) -> int:
        """Raises: SessionNotValidated."""
        if self.validated_at_ms is None:
            raise SessionNotValidated
        return self.validated_at_ms

    def check_caller(self, caller: UserId | None) -> None:
        """`caller`: the account that asks; None where the API knows no accounts.

        Raises: SessionUnknown, so that another account cannot tell that it exists.
        """
        if caller is not None and self.owner is not None and self.owner != str(caller):
            raise SessionUnknown

    def may_be_bound_to(self, mxid: UserId) -> bool:
        return self.owner is None or self.owner == str(mxid)


def new_sid() -> str:
    """22 characters of the sid grammar: 128 random bits."""
    return secrets.token_urlsafe(_SID_BYTES)


def new_token(medium: Medium) -> str:
    """For a mail, 32 URL-safe characters: 192 random bits. For a phone, 6 digits."""
    if medium is Medium.EMAIL:
        return secrets.token_urlsafe(_EMAIL_TOKEN_BYTES)
    return f"{secrets.randbelow(10**_CODE_DIGITS):0{_CODE_DIGITS}}"


def highest_attempt(tokens: Sequence[Token], now_ms: int) -> int:
    """The highest send attempt whose message was sent, or may be on its way; -1 if none."""
    return max((t.send_attempt for t in tokens if t.may_have_been_sent(now_ms)), default=-1)


def accepted_hashes(medium: Medium, tokens: Sequence[Token], now_ms: int) -> list[bytes]:
    """The tokens of a session that count now.

    One that is prepared and presented did arrive, so it counts like one that is live.
    """
    if medium is Medium.EMAIL:
        return [token.token_hash for token in tokens]
    # In the order of attempts they were prepared; by their times they need not be, since these
    # come from the clocks of several hosts.
    newest = highest_attempt(tokens, now_ms)
    return [
        token.token_hash
        for token in tokens
        if token.send_attempt == newest
        and token.may_have_been_sent(now_ms)
        and now_ms <= token.prepared_at_ms + CODE_LIFETIME_MS
    ]


def parse_client_secret(text: str) -> str:
    """1 to 255 of [0-9a-zA-Z.=_-]. Raises: InvalidParameter."""
    if not _OPAQUE.fullmatch(text):
        raise InvalidParameter("client_secret must be 1 to 255 of [0-9a-zA-Z.=_-]")
    return text


def is_sid(text: str) -> bool:
    """Whether it could be a sid at all: whatever else is just unknown."""
    return _OPAQUE.fullmatch(text) is not None


def parse_send_attempt(value: int | str) -> int:
    """An integer or, as matrix-js-sdk sends it, a decimal string; 0 to 2^53-1.

    Raises: InvalidParameter.
    """
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) <= 16):
            raise InvalidParameter("send_attempt must be an integer")
        value = int(value)
    if isinstance(value, bool) or not 0 <= value <= MAX_SEND_ATTEMPT:
        raise InvalidParameter("send_attempt must be an integer")
    return value


def parse_next_link(text: str, allowed_hosts: tuple[str, ...]) -> str:
    """An absolute http(s) URL without credentials; `allowed_hosts` empty: any host.

    Browsers read some URLs otherwise than the standards do (backslashes, control characters,
    several slashes), so whatever two readers could disagree about is refused.
    Raises: InvalidParameter.
    """
    fault = InvalidParameter("next_link is not acceptable")
    if len(text) > MAX_NEXT_LINK_CHARACTERS or not text.isprintable():
        raise fault
    if re.search(r"[\s\\]", text) or not re.match(r"https?://[^/?#]", text, re.IGNORECASE):
        raise fault
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise fault from None
    if not host or "@" in parts.netloc or "%" in parts.netloc:
        raise fault
    if allowed_hosts and host not in {allowed.lower() for allowed in allowed_hosts}:
        raise fault
    return text
