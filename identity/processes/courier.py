"""The courier: one process for what nobody waits for.

It sends to peers and to homeservers, reports which keys this host holds, purges what has expired,
and carries on with a pepper that is being indexed. What takes long has a thread of its own, and
holds up nothing else. Several couriers may share one database: each piece of work may be done
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
from identity.config import Config
from identity.errors import StorageUnavailable
from identity.federation.resolver import SystemResolver
from identity.opening import open_database
from identity.processes.configuration import ConfigSource
from identity.processes.replicator import Replicator
from identity.replication.client import PeerClients
from identity.replication.forgetting import Forgetting
from identity.replication.recovery import Recovery
from identity.replication.sending import Sending
from identity.replication.sydent.client import SydentClients
from identity.replication.sydent.sending import SydentSending
from identity.services import Services, assemble

log = structlog.get_logger(__name__)

_TICK_SECONDS: Final = 0.2
# Notifications under way at once.
CALLS: Final = 32


@dataclass(slots=True)
class Task:
    """`run` every `every_ms`; it ends soon, or looks at `stopping` itself."""

    name: str
    every_ms: int
    run: Callable[[], None]
    due_at_ms: int = 0


class Courier:
    """The tasks of one host."""

    def __init__(self, services: Services, clock: Clock, host_id: str | None = None) -> None:
        """`host_id`: of no other courier that is alive. Leases under it are ours."""
        self._services = services
        self._clock = clock
        self._host_id = host_id or secrets.token_hex(16)
        self.stopping = threading.Event()
        config = services.config
        our_name = str(config.server.name)
        self.clients = _peer_clients(services)
        self.recovery = _recovery(services, self.clients)
        self.sending = Sending(
            services.database,
            self.clients,
            self.recovery,
            our_name,
            config.replication.batch_size,
            clock,
            self._host_id,
        )
        sydent_sending = SydentSending(
            services.database,
            services.signing_keys,
            SydentClients(config.replication, SystemResolver()),
            our_name,
            config.replication.batch_size,
            clock,
            self._host_id,
        )
        self._replicator = Replicator([self.recovery, self.sending, sydent_sending], self.stopping)
        self.forgetting = Forgetting(
            services.database, our_name, config.retention.revocations, clock
        )
        self._prompt = [
            Task("heartbeat", 10 * SECOND_MS, self._report),
            Task("onbind", SECOND_MS // 5, self._deliver),
            Task("quarantine", SECOND_MS, self._take_due),
        ]
        self._patient = [
            Task("purge", MINUTE_MS, self.purge),
            Task("pepper", 10 * SECOND_MS, self._tend_peppers),
        ]
        # Homeservers are slow, and nothing else may wait for them.
        self._calls = ThreadPoolExecutor(CALLS, thread_name_prefix="onbind")
        self._free_calls = threading.BoundedSemaphore(CALLS)

    def run(self) -> None:
        """Until `stopping` is set."""
        threads = [
            threading.Thread(target=self._watch, args=(work,), name=name)
            for name, work in (
                ("replication", self._replicator.run),
                ("patient", lambda: self._repeat_due(self._patient)),
            )
        ]
        for thread in threads:
            thread.start()
        self._repeat_due(self._prompt)
        # Else the others forget this host when it has been silent for long enough.
        with suppress(StorageUnavailable):
            self._services.signing_keys.leave(self._host_id)
        self._calls.shutdown()
        for thread in threads:
            thread.join()

    def run_due(self) -> None:
        """Run every task that is due now."""
        self._run_due([*self._prompt, *self._patient])

    def _watch(self, work: Callable[[], None]) -> None:
        """Where a thread ends by a fault, the whole courier does, and is started again."""
        try:
            work()
        except Exception as error:
            log.exception("courier_stops", exc_info=error)
            self.stopping.set()

    def _repeat_due(self, tasks: list[Task]) -> None:
        while not self.stopping.is_set():
            self._run_due(tasks)
            self.stopping.wait(_TICK_SECONDS)

    def _run_due(self, tasks: list[Task]) -> None:
        """While the database is away they are due again later."""
        now_ms = self._clock.now_ms()
        for task in tasks:
            # A clock that was set back must not keep a task waiting for years.
            if task.due_at_ms <= now_ms or task.due_at_ms > now_ms + task.every_ms:
                task.due_at_ms = now_ms + task.every_ms
                try:
                    task.run()
                except StorageUnavailable:
                    log.warning("task_postponed", task=task.name)

    def purge(self) -> None:
        """Delete what has expired, and forget what need not be known any more."""
        self.sending.suspend_silent()
        self.forgetting.note_milestones()
        services, retention = self._services, self._services.config.retention
        for name, purge in (
            ("sessions", lambda: services.validation.purge(retention.sessions)),
            ("access_tokens", lambda: services.accounts.purge(retention.access_tokens_unused)),
            ("limits", services.limiter.purge_expired),
            ("sms_traffic", services.sms_defence.purge),
            ("lookup_index", services.peppers.purge),
            ("invites", services.invites.purge),
            ("deliveries", lambda: services.notifications.purge(retention.sessions)),
            ("statements", self.forgetting.forget),
            ("refused_statements", self.forgetting.forget_refused),
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
        """Lease as many as there are free threads, so that nobody waits here, nor they for us."""
        now_ms, free = self._clock.now_ms(), 0
        while self._free_calls.acquire(blocking=False):
            free += 1
        groups = []
        try:
            if free:
                groups = list(self._services.notifications.lease_due(free).values())
        finally:
            for _ in range(free - len(groups)):
                self._free_calls.release()
        for leased in groups:
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

    def _take_due(self) -> None:
        self._repeat(self._services.receiver.take_due)

    def _tend_peppers(self) -> None:
        peppers = self._services.peppers
        peppers.begin_if_older(self._services.config.lookup.pepper_rotation)
        unfinished = peppers.find_unfinished()
        if unfinished is not None:
            peppers.finish(unfinished, stopping=self.stopping.is_set)


def look_around(config: Config) -> None:
    """Ask the peers whether we were restored from a backup: before anything can be stated.

    Raises: SetupError, StorageUnavailable.
    """
    clock = SystemClock()
    services = assemble(config, open_database(config, clock, migrate=False).database, clock)
    try:
        _recovery(services, _peer_clients(services)).look_around()
    finally:
        # A connection may not be shared by two processes, and a fork follows.
        services.close()


def _recovery(services: Services, clients: PeerClients) -> Recovery:
    return Recovery(
        services.database,
        services.signing_keys,
        services.associations,
        services.receiver,
        clients,
        str(services.config.server.name),
        services.clock,
    )


def _peer_clients(services: Services) -> PeerClients:
    config = services.config
    return PeerClients(
        config.federation,
        SystemResolver(),
        str(config.server.name),
        services.signing_keys.get_active,
    )


def run_courier(source: ConfigSource, host_id: str) -> None:
    """Work until SIGTERM or SIGINT."""
    config = source.load()
    clock = SystemClock()
    database = open_database(config, clock, migrate=False).database
    # A client of homeservers uses a quarter of the threads that it is told of.
    services = assemble(config, database, clock, threads=4 * CALLS)
    courier = Courier(services, clock, host_id)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: courier.stopping.set())
    try:
        if config.metrics.listen is not None:
            # Only who is scraped need load it.
            from identity.processes.metrics import serve_metrics  # noqa: PLC0415

            serve_metrics(config.metrics.listen, services.peers)
        courier.run()
    finally:
        services.close()
