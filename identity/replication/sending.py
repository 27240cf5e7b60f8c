"""Use cases of a sender: bring each v2 peer up to our last statement.

How it goes: a lease in `cursors` makes one sender a peer. What follows the cursor is read and
encoded, then sent, and only the answer moves the cursor, in a transaction that renews the lease.
A process that dies in between leaves a lease that runs out, and the same batch is sent again,
which changes nothing at a peer that has it.

The peer may say that it holds less than we think: it was restored, and the cursor goes back. Or
more than we have: we were restored, and state nothing before we have our own statements back.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random, SystemRandom
from typing import Any

import structlog

from identity.clock import Clock
from identity.database import Database, Transaction
from identity.errors import Recovering, StorageUnavailable
from identity.replication import cursors
from identity.replication.batch import Answer, Batch, Restored, acknowledge, cut
from identity.replication.chain import EMPTY_HEAD, next_head
from identity.replication.client import (
    PUSH_S,
    STATE_S,
    Conflicted,
    PeerClient,
    PeerClients,
    PeerError,
    natural,
)
from identity.replication.cursors import Cursor
from identity.replication.healing import Healing
from identity.replication.peer import Protocol, Reason
from identity.replication.recovery import Recovery
from identity.replication.schedule import (
    COMPARE_AGAIN_MS,
    COMPARE_EVERY_MS,
    SUSPENDED_AFTER_MS,
    delay_ms,
    is_comparison_due,
)

log = structlog.get_logger(__name__)


class Sending:
    """Sends to v2 peers. One per process; `attend` is called by one thread a peer."""

    def __init__(
        self,
        database: Database,
        clients: PeerClients,
        recovery: Recovery,
        our_name: str,
        batch_size: int,
        clock: Clock,
        holder: str,
        random: Random | None = None,
    ) -> None:
        """`holder`: the name under which we hold leases, ours alone."""
        self._database = database
        self._clients = clients
        self._recovery = recovery
        self._our_name = our_name
        self._batch_size = batch_size
        self._clock = clock
        self._holder = holder
        self._random = random or SystemRandom()
        self._healing = Healing(database, our_name)
        # By peer. A connection outlives a quiet moment.
        self._open: dict[str, PeerClient] = {}

    def due(self) -> list[str]:
        """The peers that there is something to do for: one cheap query."""
        now_ms = self._clock.now_ms()
        return self._database.read(
            lambda tx: cursors.due_peers(tx, self._our_name, Protocol.V2, self._holder, now_ms)
        )

    def attend(self, peer: str, is_stopping: Callable[[], bool]) -> None:
        """Send until the peer has everything or fails, unless another host is at it."""
        now_ms = self._clock.now_ms()
        cursor = self._database.write(lambda tx: cursors.lease(tx, peer, self._holder, now_ms))
        if cursor is None:
            return
        client = self._open.get(peer)
        if client is None or client.url != cursor.url:
            client = self._open[peer] = self._clients.open(peer, cursor.url)
        try:
            following: Cursor | None = cursor
            while following is not None and not is_stopping():
                cursor = following
                following = self._step(client, cursor)
            if following is not None:
                # We are told to stop; nobody need wait for the end of the lease.
                self._database.write(lambda tx: cursors.release(tx, peer, self._holder))
        except PeerError as error:
            client.close()
            self._fail(cursor, error.reason)
        except StorageUnavailable:
            raise
        except Exception:
            # A fault of ours: it is told once a try, and not five times a second.
            self._fail(cursor, "failed here")
            raise

    def suspend_silent(self) -> None:
        """Peers that have been silent for 90 days count for nothing until they come back."""
        now_ms = self._clock.now_ms()
        for peer in self._database.write(
            lambda tx: cursors.suspend_silent(tx, now_ms - SUSPENDED_AFTER_MS, now_ms)
        ):
            log.error("peer_suspended", peer=peer)

    def _step(self, client: PeerClient, cursor: Cursor) -> Cursor | None:
        """One thing after the other; the cursor after it, None where there is no more to do.

        Raises: PeerError.
        """
        if cursor.is_suspended:
            return self._rejoin(client, cursor)
        batch = self._database.read(lambda tx: self._next_batch(tx, cursor))
        if not batch.items:
            return self._heal(client, cursor)
        said = client.ask("push", batch.encode(), PUSH_S)
        answer = _parse_answer(said)
        own_last_id = self._own_last_id()
        acknowledged_id = self._acknowledge(cursor, batch, answer, own_last_id)
        if acknowledged_id is None:
            raise PeerError("malformed answer")
        self._look_at_refused(client, cursor.peer, batch, said)
        return self._move(cursor, batch, acknowledged_id, own_last_id)

    def _acknowledge(
        self, cursor: Cursor, batch: Batch, answer: Answer, own_last_id: int
    ) -> int | None:
        """The cursor after an answer, None where that cannot be. Raises: PeerError."""
        verdict = acknowledge(batch, answer, own_last_id)
        if isinstance(verdict, Restored):
            log.error("restored_from_backup", peer=cursor.peer, held_id=verdict.held_id)
            self._recovery.attend(cursor.peer, lambda: False)
            raise PeerError("holds more of ours than we have")
        return verdict

    def _own_last_id(self) -> int:
        last_id, _ = self._database.read(lambda tx: cursors.own_state(tx, self._our_name))
        return last_id

    def _look_at_refused(
        self,
        client: PeerClient,
        peer: str,
        batch: Batch,
        said: dict[str, Any] | Conflicted,
    ) -> None:
        """Before the cursor passes them. Raises: PeerError."""
        refused = {} if isinstance(said, Conflicted) else _parse_refused(said, batch)
        if not refused:
            return
        log.error("statements_refused", peer=peer, reasons=dict(Counter(refused.values())))
        forked = [origin_id for origin_id, reason in refused.items() if reason is Reason.FORK]
        if forked:
            try:
                self._recovery.restate(client, peer, forked)
            except Recovering:
                raise PeerError("we are recovering") from None

    def _next_batch(self, tx: Transaction, cursor: Cursor) -> Batch:
        """What follows the cursor, as much as one request may hold; empty if nothing does."""
        own_last_id, own_head = cursors.own_state(tx, self._our_name)
        after = cursor.acknowledged_id
        items = cut(
            cursors.own_after(tx, self._our_name, after, own_last_id, self._batch_size),
            self._batch_size,
        )
        if not items or items[-1].origin_id == own_last_id:
            return Batch(after, items, own_head)
        head = cursor.head
        if head is None:
            # After a rewind. The head there was never kept, and follows from all before.
            head = EMPTY_HEAD
            for origin_id, leaf in cursors.own_leaves(tx, self._our_name, after):
                head = next_head(head, origin_id, leaf)
        for item in items:
            head = next_head(head, item.origin_id, item.leaf)
        return Batch(after, items, head)

    def _move(
        self, cursor: Cursor, batch: Batch, acknowledged_id: int, own_last_id: int
    ) -> Cursor | None:
        """The cursor goes where the peer says it is; None if the lease is over."""
        if acknowledged_id < batch.after:
            log.warning("peer_rewound", peer=cursor.peer, to=acknowledged_id, before=batch.after)
            # What replaced some of what it holds may be forgotten here, and is not sent to it.
            cursor = replace(cursor, compared_at_ms=None)
        heads = {0: EMPTY_HEAD, batch.last_id: batch.head}
        now_ms = self._clock.now_ms()
        moved = replace(
            cursor,
            acknowledged_id=acknowledged_id,
            head=heads.get(acknowledged_id),
            failures=0,
            well_at_ms=now_ms,
        )
        # Where there is no more to do the lease ends at once: whoever sees work next may do it.
        more = acknowledged_id < own_last_id or is_comparison_due(moved.compared_at_ms, now_ms)
        held = self._database.write(
            lambda tx: cursors.move(tx, moved, self._holder, now_ms, keep=more)
        )
        return moved if held and more else None

    def _heal(self, client: PeerClient, cursor: Cursor) -> Cursor | None:
        """The peer has everything: compare with it now and then."""
        peer = cursor.peer
        if self._healing.mend_next(client, peer):
            now_ms = self._clock.now_ms()
            held = self._database.write(lambda tx: cursors.renew(tx, peer, self._holder, now_ms))
            return replace(cursor, failures=0, well_at_ms=now_ms) if held else None
        if not is_comparison_due(cursor.compared_at_ms, self._clock.now_ms()):
            self._database.write(lambda tx: cursors.release(tx, peer, self._holder))
            return None
        compared = self._healing.compare(client, peer)
        # It may have been restored since it took our last statement, or we may.
        asked, own_last_id = Batch(cursor.acknowledged_id, (), None), self._own_last_id()
        answer = Answer(taken=False, last_id=compared.held_id)
        rewound_id = self._acknowledge(cursor, asked, answer, own_last_id)
        if rewound_id is not None:
            return self._move(cursor, asked, rewound_id, own_last_id)
        now_ms = self._clock.now_ms()
        at_ms = now_ms - COMPARE_EVERY_MS + COMPARE_AGAIN_MS if compared.again_soon else now_ms
        held = self._database.write(
            lambda tx: cursors.set_compared(tx, peer, self._holder, at_ms, now_ms)
        )
        return (
            replace(cursor, compared_at_ms=at_ms, failures=0, well_at_ms=now_ms) if held else None
        )

    def _rejoin(self, client: PeerClient, cursor: Cursor) -> Cursor | None:
        """A suspended peer that answers gets everything, and is compared with: what it has may
        have been replaced by what was forgotten meanwhile."""
        client.ask("state", b"{}", STATE_S)
        now_ms = self._clock.now_ms()
        if not self._database.write(
            lambda tx: cursors.rejoin(tx, cursor.peer, self._holder, EMPTY_HEAD, now_ms)
        ):
            return None
        log.info("peer_rejoined", peer=cursor.peer)
        return replace(
            cursor,
            acknowledged_id=0,
            head=EMPTY_HEAD,
            failures=0,
            well_at_ms=now_ms,
            compared_at_ms=None,
            is_suspended=False,
        )

    def _fail(self, cursor: Cursor, error: str) -> None:
        now_ms = self._clock.now_ms()
        delay = delay_ms(cursor.failures + 1, cursor.well_at_ms, now_ms, self._random)
        self._database.write(
            lambda tx: cursors.fail(tx, cursor.peer, self._holder, now_ms + delay, error, now_ms)
        )
        log.warning("peer_failed", peer=cursor.peer, reason=error, delay_ms=delay)


def _parse_refused(said: dict[str, Any], batch: Batch) -> dict[int, Reason]:
    """Of what was sent, by id. Raises: PeerError."""
    try:
        refused = {one["id"]: Reason(one["reason"]) for one in said.get("refused", [])}
    except (TypeError, KeyError, ValueError):
        raise PeerError("malformed answer") from None
    return {
        item.origin_id: refused[item.origin_id] for item in batch.items if item.origin_id in refused
    }


def _parse_answer(value: dict[str, Any] | Conflicted) -> Answer:
    """Raises: PeerError."""
    if isinstance(value, Conflicted):
        return Answer(taken=False, last_id=value.last_id)
    return Answer(taken=True, last_id=natural(value.get("last_id")))
