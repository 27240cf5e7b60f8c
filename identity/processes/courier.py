"""The courier: one process for what nobody waits for.

It reports which keys this host holds, purges what has expired, and carries on with a pepper
that is being indexed. Several couriers may share one database: each piece of work may be done
twice without harm.
"""

import secrets
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from identity.clock import MINUTE_MS, SECOND_MS, Clock, SystemClock
from identity.errors import StorageUnavailable
from identity.opening import open_database
from identity.processes.configuration import ConfigSource
from identity.services import Services, assemble

log = structlog.get_logger(__name__)

_TICK_SECONDS: Final = 0.2
# Notifications under way at once, and how many are taken from the outbox in one go.
CALLS: Final = 8
_LEASED_AT_ONCE: Final = 50


@dataclass(slots=True)
class Task:
    """`run` every `every_ms`; it ends soon, or looks at `stopping` itself."""

    name: str
    every_ms: int
    run: Callable[[], None]
    due_at_ms: int = 0


class Courier:
    """The tasks of one host."""

    def __init__(self, services: Services, clock: Clock) -> None:
        self._services = services
        self._clock = clock
        self._host_id = secrets.token_hex(16)
        self.stopping = threading.Event()
        self._tasks = [
            Task("heartbeat", 10 * SECOND_MS, self._report),
            Task("purge", MINUTE_MS, self.purge),
            Task("pepper", 10 * SECOND_MS, self._tend_peppers),
            Task("onbind", SECOND_MS // 5, self._deliver),
        ]
        # Homeservers are slow, and nothing else may wait for them.
        self._calls = ThreadPoolExecutor(CALLS, thread_name_prefix="onbind")
        self._free_calls = threading.BoundedSemaphore(CALLS)

    def run(self) -> None:
        """Until `stopping` is set."""
        while not self.stopping.is_set():
            self.run_due()
            self.stopping.wait(_TICK_SECONDS)
        # Else the others forget this host when it has been silent for long enough.
        with suppress(StorageUnavailable):
            self._services.signing_keys.leave(self._host_id)

        self._calls.shutdown()

    def run_due(self) -> None:
        """Run the tasks that are due now; while the database is away they are due again later."""
        now_ms = self._clock.now_ms()
        for task in self._tasks:
            # A clock that was set back must not keep a task waiting for years.
            if task.due_at_ms <= now_ms or task.due_at_ms > now_ms + task.every_ms:
                task.due_at_ms = now_ms + task.every_ms
                try:
                    task.run()
                except StorageUnavailable:
                    log.warning("task_postponed", task=task.name)

    def purge(self) -> None:
        """Delete what has expired."""
        services, retention = self._services, self._services.config.retention
        for name, purge in (
            ("sessions", lambda: services.validation.purge(retention.sessions)),
            ("access_tokens", lambda: services.accounts.purge(retention.access_tokens_unused)),
            ("limits", services.limiter.purge_expired),
            ("lookup_index", services.peppers.purge),
            ("invites", services.invites.purge),
            ("deliveries", lambda: services.notifications.purge(retention.sessions)),
        ):
            purged = self._repeat(purge)
            if purged:
                log.info("purged", kind=name, rows=purged)

    def _repeat(self, purge: Callable[[], int]) -> int:
        """Until there is nothing left to purge; returns how many rows there were."""
        total = 0
        while not self.stopping.is_set() and (purged := purge()):
            total += purged
        return total

    def _deliver(self) -> None:
        """Hand what is due to free threads; more than those could work on is left to others."""
        now_ms = self._clock.now_ms()
        if not self._free_calls.acquire(blocking=False):
            return
        self._free_calls.release()
        for leased in self._services.notifications.lease_due(_LEASED_AT_ONCE).values():
            self._free_calls.acquire()
            future = self._calls.submit(self._services.notifications.deliver, leased, now_ms)
            future.add_done_callback(self._delivered)

    def _delivered(self, future: Future[None]) -> None:
        self._free_calls.release()
        error = future.exception()
        if isinstance(error, StorageUnavailable):
            log.warning("task_postponed", task="onbind")
        elif error is not None:
            log.error("task_failed", task="onbind", exc_info=error)

    def _report(self) -> None:
        self._services.signing_keys.report(self._host_id)

    def _tend_peppers(self) -> None:
        peppers = self._services.peppers
        peppers.begin_if_older(self._services.config.lookup.pepper_rotation)
        unfinished = peppers.find_unfinished()
        if unfinished is not None:
            peppers.finish(unfinished, stopping=self.stopping.is_set)


def run_courier(source: ConfigSource) -> None:
    """Work until SIGTERM or SIGINT."""
    config = source.load()
    clock = SystemClock()
    database = open_database(config, clock, migrate=False).database
    # A client of homeservers uses a quarter of the threads that it is told of.
    services = assemble(config, database, clock, threads=4 * CALLS)
    courier = Courier(services, clock)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: courier.stopping.set())
    try:
        courier.run()
    finally:
        services.close()
