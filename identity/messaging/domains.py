"""Which e-mail domains are served: pure.

A pattern is a domain, or `*.` and a domain for everything below it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from identity.errors import InvalidEmail


@dataclass(frozen=True, slots=True)
class DomainPolicy:
    """`allowed` empty: all that are not denied."""

    allowed: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()

    def check(self, domain: str) -> None:
        """Raises: InvalidEmail."""
        if _matches(self.denied, domain) or (self.allowed and not _matches(self.allowed, domain)):
            raise InvalidEmail("E-mail addresses of that domain are not accepted here")


def _matches(patterns: Iterable[str], domain: str) -> bool:
    return any(
        domain.endswith(pattern[1:]) if pattern.startswith("*.") else domain == pattern
        for pattern in patterns
    )
