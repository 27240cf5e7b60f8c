"""What is wrong with a configuration, in words that an operator can act on.

All faults are collected before any is reported. A value is quoted only where it cannot be a
secret, shortened, on one line.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from identity.config.values import format_duration
from identity.errors import SetupError

MAX_SHOWN_CHARACTERS: Final = 60


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to mend. `section` is "" where the fault lies outside any, `key` likewise."""

    section: str
    key: str
    problem: str
    allowed: str = ""

    def __str__(self) -> str:
        where = " ".join(filter(None, (f"[{self.section}]" if self.section else "", self.key)))
        line = f"{where}: {self.problem}" if where else self.problem
        if self.allowed:
            line += f"; allowed: {self.allowed}"
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class ConfigError(SetupError):
    """The configuration cannot be used; `faults` is everything that is wrong with it."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class Contradiction(ValueError):
    """Values that are right one by one and wrong together: key, problem, allowed of each."""

    def __init__(self, *faults: tuple[str, str, str]) -> None:
        super().__init__("; ".join(problem for _, problem, _ in faults))
        self.faults = faults


def shown(value: object) -> str:
    """A value as the operator wrote it, more or less: one line, at most 60 characters."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        value = format_duration(value)
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 1] + "…"
