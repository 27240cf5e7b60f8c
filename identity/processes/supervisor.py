"""The supervisor: holds the port, starts the children, restarts those that crash.

- Whatever would keep the server from running is found before the first child is started, and
  is a SetupError.
- The port is open for as long as the server runs: while a child is replaced, callers wait.
- SIGTERM or SIGINT: the children finish what they are doing, then all is over.
- SIGHUP: the configuration and all that it names are read again. If anything is faulty nothing
  changes; else the web processes are replaced without losing a request, and the courier is
  started anew.
"""

import ctypes
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from socket import AF_INET, AF_INET6, create_server, has_dualstack_ipv6, socket
from typing import Any, Final

import structlog

from identity import logs
from identity.config import Config, ConfigError
from identity.config.values import Listen
from identity.errors import IdentityError, SetupError
from identity.processes.configuration import ConfigSource
from identity.processes.courier import look_around, run_courier
from identity.processes.web import INTERNAL, SYDENT, Site, load_app, run_web
from identity.replication.sydent.tls import server_context

log = structlog.get_logger(__name__)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
# What crashes again and again in less than this is not restarted at once.
_LIVED_SECONDS: Final = 5.0
_RESTART_DELAY_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 40.0
_BACKLOG: Final = 2048
_PR_SET_PDEATHSIG: Final = 1
_SIDES: Final = {"internal": INTERNAL, "replication": SYDENT}


@dataclass(slots=True)
class Child:
    """`run` works until it is told to stop. `reloads`: SIGHUP is enough for a new configuration."""

    name: str
    run: Callable[[], None]
    reloads: bool
    pid: int = 0
    started_at: float = field(default=0.0)
    restart_at: float = field(default=0.0)


class Supervisor:
    def __init__(self, source: ConfigSource) -> None:
        """Raises: SetupError, StorageUnavailable when the server cannot run."""
        self._source = source
        # One courier follows another, and takes over its leases at once.
        self._host_id = secrets.token_hex(16)
        config = source.load()
        _try_out(config)
        # Before we listen: servers that start at once need not wait for each other.
        look_around(config)
        self._address = config.server.listen
        self._listener = _listen("server", self._address)
        self._children = [
            Child("web", self._run_web, reloads=True),
            Child("courier", self._run_courier, reloads=False),
        ]
        self._side_addresses = _side_addresses(config)
        for section, address in self._side_addresses.items():
            run = partial(self._run_side, _listen(section, address), _SIDES[section])
            self._children.append(Child(section, run, reloads=True))
        self._exit_status: int | None = None

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
        log.info("stopping")
        self._stop_all()
        return self._exit_status

    def _run_web(self) -> None:
        run_web(self._source, self._listener)

    def _run_side(self, listener: socket, site: Site) -> None:
        self._listener.close()
        run_web(self._source, listener, site)

    def _run_courier(self) -> None:
        self._listener.close()
        run_courier(self._source, self._host_id)

    def _start(self, child: Child) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _be_child(child, parent)
        child.pid, child.started_at = pid, time.monotonic()
        log.debug("child_started", child=child.name, pid=pid)

    def _handle(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._exit_status = 0
        elif number == signal.SIGHUP:
            self._reload()

    def _reload(self) -> None:
        try:
            config = self._source.read()
            _try_out(config)
            moved = config.server.listen != self._address
            listener = _listen("server", config.server.listen) if moved else self._listener
        except ConfigError as error:
            for fault in error.faults:
                log.warning("reload_refused", fault=str(fault))
            return
        except (SetupError, IdentityError) as error:
            log.warning("reload_refused", fault=str(error))
            return
        logs.configure(config.logging.level, config.logging.format)
        log.info("reloading")
        if _side_addresses(config) != self._side_addresses:
            note = "[internal] and [replication] listen change with the next start"
            log.warning("restart_needed", note=note)
        if moved:
            self._listener.close()
            self._address, self._listener = config.server.listen, listener
        for child in self._children:
            if child.pid:
                # What ends in good order is started again at once.
                by_signal = child.reloads and not moved
                os.kill(child.pid, signal.SIGHUP if by_signal else signal.SIGTERM)

    def _reap(self) -> None:
        for child in self._children:
            if not child.pid:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, exit_code: int) -> None:
        child.pid = 0
        now = time.monotonic()
        # Told to stop, it may not yet have come to where it would do so in good order.
        told = exit_code in (0, -signal.SIGTERM)
        if not told:
            log.error("child_crashed", child=child.name, exit_code=exit_code)
        at_once = told or now - child.started_at >= _LIVED_SECONDS
        child.restart_at = now if at_once else now + _RESTART_DELAY_SECONDS

    def _restart_due(self) -> None:
        for child in self._children:
            if not child.pid and child.restart_at <= time.monotonic():
                self._start(child)

    def _patience(self) -> float:
        """How long to wait for a signal: until a child is to be restarted, if one is."""
        waiting = [child.restart_at for child in self._children if not child.pid]
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
            signal.sigtimedwait(_SIGNALS, max(0.0, deadline - time.monotonic()))
        for child in self._children:
            if child.pid:
                log.error("child_killed", child=child.name)
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)


def _try_out(config: Config) -> None:
    """Raises: SetupError, StorageUnavailable for what a child would stumble over."""
    load_app(config)
    if config.replication.listen is not None:
        server_context(config.replication)


def _side_addresses(config: Config) -> dict[str, Listen]:
    """Where there are listeners besides the public one, by section."""
    listens = {"internal": config.internal.listen, "replication": config.replication.listen}
    return {section: listen for section, listen in listens.items() if listen is not None}


def _listen(section: str, address: Listen) -> socket:
    """A socket that takes connections. Raises: SetupError."""
    family = AF_INET6 if ":" in address.host else AF_INET
    try:
        listener = create_server(
            (address.host, address.port),
            family=family,
            backlog=_BACKLOG,
            dualstack_ipv6=family is AF_INET6 and has_dualstack_ipv6(),
        )
    except OSError as error:
        # create_server() says again which address it was.
        reason = str(error.strerror).partition(" (while")[0]
        raise SetupError(f"[{section}] listen: {address}: {reason}") from None
    log.info(
        "listening", section=section, address=str(Listen(address.host, listener.getsockname()[1]))
    )
    return listener


def _be_child(child: Child, parent: int) -> None:
    """What the forked process does; it never returns."""
    status = 1
    try:
        # Ctrl-C is for the supervisor: gunicorn would drop what is in flight.
        os.setpgid(0, 0)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # A reload waits until the child can do it; by default the signal would kill.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(_SIGNALS) - {signal.SIGHUP})
        _die_with(parent)
        child.run()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except (SetupError, IdentityError) as error:
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
