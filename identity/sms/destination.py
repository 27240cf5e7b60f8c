"""Where text messages may go, and from whom they come, by calling code: pure.

A message that costs money goes nowhere until calling codes are listed, because countries that
nobody asked for are how fraud with text messages pays. Messages that become files need no list.

Source: decision 14; security.md, threat 24.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final, Self

from identity.errors import DestinationRejected
from identity.threepid import ThreePid

if TYPE_CHECKING:
    from identity.config import Config

EVERYWHERE: Final = "*"
DEFAULT: Final = "default"


class CallingCodes:
    """The calling codes that are served. A code that is denied is not, whatever is allowed."""

    def __init__(self, allowed: Collection[str], denied: Collection[str]) -> None:
        """`allowed`: calling codes without "+"; "*" for all of them. None listed: none served."""
        self._everywhere = EVERYWHERE in allowed
        self._allowed = tuple(allowed)
        self._denied = tuple(denied)

    @classmethod
    def from_config(cls, config: "Config") -> Self:
        providers = config.sms_providers
        free = bool(providers) and set(providers) == {"file"}
        allowed = config.sms.allowed_calling_codes or ((EVERYWHERE,) if free else ())
        return cls(allowed if providers else (), config.sms.denied_calling_codes)

    def check(self, number: ThreePid) -> None:
        """Raises: DestinationRejected when `number` is not served, or nobody is."""
        # No calling code is the beginning of another (ITU-T E.164), so that a prefix decides.
        if number.address.startswith(self._denied):
            raise DestinationRejected
        if not self._everywhere and not number.address.startswith(self._allowed):
            raise DestinationRejected


class Originators:
    """Who a message is from: an E.164 number with "+", a short code or a sender id."""

    def __init__(self, by_calling_code: Mapping[str, str], otherwise: str) -> None:
        """`by_calling_code`: may have "default"; `otherwise`: where that is missing, perhaps ""."""
        self._default = by_calling_code.get(DEFAULT) or otherwise
        self._by_calling_code = {
            code: originator
            for code, originator in by_calling_code.items()
            if code != DEFAULT and originator
        }

    @classmethod
    def from_config(cls, config: "Config") -> Self:
        return cls(config.sms.originators, config.sms.from_)

    def find_own(self, number: ThreePid) -> str | None:
        """The one that is listed for the calling code of `number`; the longest prefix counts."""
        prefixes = [code for code in self._by_calling_code if number.address.startswith(code)]
        return self._by_calling_code[max(prefixes, key=len)] if prefixes else None

    def find(self, number: ThreePid) -> str | None:
        """Likewise, else the one for everybody, else None."""
        return self.find_own(number) or self._default or None
