"""Lines of a report, and the running of probes: side by side, each until a common deadline.

A probe is a function that gives lines. It may wait for the network, so it runs in a thread
that is left behind when the time is up. A fault in one never hides the others.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Line:
    """One finding; `FAIL` means that the server would not run, or not do all of its work."""

    level: Literal["ok", "warn", "FAIL"]
    text: str

    def __str__(self) -> str:
        return f"{self.level:<4} {self.text}"


# What is tried, for the line that says that it did not end; and the trial.
Probe: TypeAlias = tuple[str, Callable[[], Iterable[Line]]]


def ok(text: str) -> Line:
    return Line("ok", text)


def warn(text: str) -> Line:
    return Line("warn", text)


def fail(text: str) -> Line:
    return Line("FAIL", text)


def run_probes(probes: Sequence[Probe], *, deadline_s: float) -> list[Line]:
    """What all probes say, in their order, after at most `deadline_s` seconds."""
    ends_at = time.monotonic() + deadline_s
    running = [(name, _start(trial)) for name, trial in probes]
    lines: list[Line] = []
    for name, outcome in running:
        try:
            lines += outcome.result(max(0.0, ends_at - time.monotonic()))
        except TimeoutError:
            lines.append(fail(f"{name}: no answer within {deadline_s:g} s"))
        except Exception as error:  # noqa: BLE001 - the other probes still have something to say
            lines.append(fail(f"{name}: {type(error).__name__}"))
    return lines


def _start(trial: Callable[[], Iterable[Line]]) -> Future[list[Line]]:
    outcome: Future[list[Line]] = Future()

    def run() -> None:
        try:
            outcome.set_result(list(trial()))
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            outcome.set_exception(error)

    # A daemon: one that hangs must not keep the command from ending.
    threading.Thread(target=run, daemon=True).start()
    return outcome
