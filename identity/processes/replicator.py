"""The part of the courier that sends to peers: a thread for each, so that none waits for another.

One query sees the work for all peers of a protocol; it is asked every 200 ms.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final, Protocol

import structlog

from identity.errors import StorageUnavailable

log = structlog.get_logger(__name__)

POLL_SECONDS: Final = 0.2
# Peers that are sent to at once, on this host.
PEERS_AT_ONCE: Final = 64


class Sender(Protocol):
    """Sends by one protocol."""

    def due(self) -> list[str]:
        """The peers that there is something to do for."""

    def attend(self, peer: str, is_stopping: Callable[[], bool]) -> None:
        """Do it, unless another host is at it."""


class Replicator:
    """Watches for work and hands it out, until `stopping` is set."""

    def __init__(self, senders: list[Sender], stopping: threading.Event) -> None:
        self._senders = senders
        self._stopping = stopping
        self._pool = ThreadPoolExecutor(PEERS_AT_ONCE, thread_name_prefix="peer")
        self._attended: set[tuple[Sender, str]] = set()

    def run(self) -> None:
        """Until `stopping` is set and what is under way has ended."""
        while not self._stopping.is_set():
            try:
                self._hand_out()
            except StorageUnavailable:
                log.warning("task_postponed", task="replication")
            self._stopping.wait(POLL_SECONDS)
        self._pool.shutdown()

    def _hand_out(self) -> None:
        for sender in self._senders:
            for peer in sender.due():
                if (sender, peer) not in self._attended:
                    self._attended.add((sender, peer))
                    future = self._pool.submit(sender.attend, peer, self._stopping.is_set)
                    future.add_done_callback(partial(self._ended, sender, peer))

    def _ended(self, sender: Sender, peer: str, future: Future[None]) -> None:
        self._attended.discard((sender, peer))
        error = future.exception()
        if isinstance(error, StorageUnavailable):
            log.warning("task_postponed", task="replication", peer=peer)
        elif error is not None:
            log.error("task_failed", task="replication", peer=peer, exc_info=error)
