"""The supervisor: starts the children, restarts those that crash, passes signals on.

- SIGTERM or SIGINT: the children finish what they are doing, then all is over.
- SIGHUP: the configuration is read again. If it is faulty nothing changes; else the web
  processes are replaced without losing a request, and the courier is started anew.
- A child that cannot even start (its port is taken, a file is missing) ends the server.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from identity.config import ConfigError
from identity.errors import SetupError
from identity.processes.configuration import ConfigSource
from identity.processes.courier import run_courier
from identity.processes.web import run_web

log = structlog.get_logger(__name__)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
# A child that lived for less than this did not start; one that crashes later is restarted.
_STARTED_SECONDS: Final = 5.0
_RESTART_DELAY_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 40.0
_PR_SET_PDEATHSIG: Final = 1


@dataclass(slots=True)
class Child:
    """`run` works until it is told to stop. `reloads`: SIGHUP is enough for a new configuration."""

    name: str
    run: Callable[[ConfigSource], None]
    reloads: bool
    pid: int = 0
    started_at: float = field(default=0.0)


class Supervisor:
    def __init__(self, source: ConfigSource) -> None:
        self._source = source
        self._children = [
            Child("web", run_web, reloads=True),
            Child("courier", run_courier, reloads=False),
        ]
        self._exit_status: int | None = None
        self._restart_at: dict[str, float] = {}

    def run(self) -> int:
        """Serve; returns the exit status."""
        # Signals wait until we ask for them, so that none comes between two steps.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for child in self._children:
            self._start(child)
        while self._exit_status is None:
            received = signal.sigtimedwait(_SIGNALS, self._patience())
            if received is not None:
                self._handle(received.si_signo)
            self._reap()
            self._restart_due()
        self._stop_all()
        return self._exit_status

    def _start(self, child: Child) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _be_child(child, self._source, parent)
        child.pid, child.started_at = pid, time.monotonic()
        log.debug("child_started", child=child.name, pid=pid)

    def _handle(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._exit_status = 0
        elif number == signal.SIGHUP:
            self._reload()

    def _reload(self) -> None:
        try:
            self._source.load()
        except ConfigError as error:
            for fault in error.faults:
                log.warning("reload_refused", fault=str(fault))
            return
        log.info("reloading")
        for child in self._children:
            if child.pid:
                # A courier that ends in good order is started again at once.
                os.kill(child.pid, signal.SIGHUP if child.reloads else signal.SIGTERM)

    def _reap(self) -> None:
        for child in self._children:
            if not child.pid:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, exit_code: int) -> None:
        child.pid = 0
        lived = time.monotonic() - child.started_at
        if exit_code > 0 and lived < _STARTED_SECONDS:
            log.error("child_failed", child=child.name, exit_code=exit_code)
            self._exit_status = 1
            return
        if exit_code != 0:
            log.error("child_crashed", child=child.name, exit_code=exit_code)
        delay = 0.0 if exit_code == 0 or lived >= _STARTED_SECONDS else _RESTART_DELAY_SECONDS
        self._restart_at[child.name] = time.monotonic() + delay

    def _restart_due(self) -> None:
        for child in self._children:
            if not child.pid and self._restart_at.get(child.name, 0.0) <= time.monotonic():
                self._start(child)

    def _patience(self) -> float:
        """How long to wait for a signal: until a child is to be restarted, if one is."""
        waiting = [self._restart_at[child.name] for child in self._children if not child.pid]
        return max(0.0, min(waiting, default=time.monotonic() + 3600.0) - time.monotonic())

    def _stop_all(self) -> None:
        for child in self._children:
            if child.pid:
                os.kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while any(child.pid for child in self._children):
            for child in self._children:
                if child.pid and os.waitpid(child.pid, os.WNOHANG)[0]:
                    child.pid = 0
            if not any(child.pid for child in self._children):
                return
            if time.monotonic() > deadline:
                break
            signal.sigtimedwait(_SIGNALS, deadline - time.monotonic())
        for child in self._children:
            if child.pid:
                log.error("child_killed", child=child.name)
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)


def _be_child(child: Child, source: ConfigSource, parent: int) -> None:
    """What the forked process does; it never returns."""
    status = 1
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _die_with(parent)
        child.run(source)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except SetupError as error:
        log.error("child_cannot_run", child=child.name, reason=str(error))  # noqa: TRY400 - the reason says all
    except BaseException as error:
        log.exception("child_error", child=child.name, exc_info=error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _die_with(parent: int) -> None:
    """Stop when the supervisor is gone, however it went. Linux only; elsewhere children of a
    killed supervisor stay."""
    if sys.platform != "linux":
        return
    libc: Any = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        # It died before we asked.
        os.kill(os.getpid(), signal.SIGTERM)
