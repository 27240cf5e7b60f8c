"""Statements over cursors: how far each peer is, who sends to it, and when; one a function.

A lease makes one sender a peer, on whatever host. Every change that a sender makes is guarded by
its lease, so one that was away for too long changes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from identity.associations.models import origins, statements
from identity.database import Transaction
from identity.replication.batch import Item
from identity.replication.models import cursors, peers
from identity.replication.peer import Protocol
from identity.replication.schedule import COMPARE_EVERY_MS, LONGEST_MS

# Longer than the longest request to a peer; after it whoever sent is taken to be dead.
LEASE_MS: Final = 30_000
_WALK_ROWS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Cursor:
    """One v2 peer as its sender sees it. `head`: of our chain at `acknowledged_id`, if known."""

    peer: str
    url: str
    acknowledged_id: int
    head: bytes | None
    failures: int
    well_at_ms: int
    compared_at_ms: int | None
    is_suspended: bool


def due_peers(tx: Transaction, our_name: str, protocol: str, holder: str, now_ms: int) -> list[str]:
    """The peers of this protocol that there is something to do for, and that nobody else is at work on.

    Asked often, by all peers at once. What lies too far ahead is from before the clock was set
    back, and waits for nothing.
    """
    ours = sa.select(origins.c.last_id).where(origins.c.origin == our_name).scalar_subquery()
    compare_before_ms = now_ms - COMPARE_EVERY_MS
    query = (
        sa.select(peers.c.name)
        .join_from(peers, cursors, cursors.c.peer == peers.c.name)
        .where(
            peers.c.protocol == protocol,
            (cursors.c.next_try_at_ms <= now_ms) | (cursors.c.next_try_at_ms > now_ms + LONGEST_MS),
            _is_free(holder, now_ms),
            (cursors.c.acknowledged_id < ours)
            | cursors.c.compared_at_ms.is_(None)
            | (cursors.c.compared_at_ms <= compare_before_ms)
            | (cursors.c.compared_at_ms > now_ms),
        )
        .order_by(peers.c.name)
    )
    return list(tx.execute(query).scalars())


def lease(tx: Transaction, peer: str, holder: str, now_ms: int) -> Cursor | None:
    """Become the peer's sender for LEASE_MS; None if there is another, or no such peer."""
    taken = (
        cursors.update()
        .where(cursors.c.peer == peer, _is_free(holder, now_ms))
        .values(lease_holder=holder, leased_until_ms=now_ms + LEASE_MS)
    )
    if not tx.execute(taken).rowcount:
        return None
    query = (
        sa.select(cursors, peers.c.url, peers.c.added_at_ms, peers.c.suspended_at_ms)
        .join_from(cursors, peers, cursors.c.peer == peers.c.name)
        .where(cursors.c.peer == peer)
    )
    row = tx.execute(query).one()
    well_at_ms = row.last_success_at_ms
    return Cursor(
        peer=row.peer,
        url=row.url,
        acknowledged_id=row.acknowledged_id,
        head=None if row.head is None else bytes(row.head),
        failures=row.failures,
        well_at_ms=row.added_at_ms if well_at_ms is None else well_at_ms,
        compared_at_ms=row.compared_at_ms,
        is_suspended=row.suspended_at_ms is not None,
    )


def move(tx: Transaction, cursor: Cursor, holder: str, now_ms: int, *, keep: bool) -> bool:
    """The peer answered: it is so far. `keep`: renew the lease, else end it.

    False if the lease is ours no more, and then nothing has changed.
    """
    return _guarded(
        tx,
        cursor.peer,
        holder,
        acknowledged_id=cursor.acknowledged_id,
        head=cursor.head,
        compared_at_ms=cursor.compared_at_ms,
        leased_until_ms=now_ms + LEASE_MS if keep else 0,
        failures=0,
        next_try_at_ms=now_ms,
        last_success_at_ms=now_ms,
    )


def fail(
    tx: Transaction, peer: str, holder: str, next_try_at_ms: int, error: str, now_ms: int
) -> bool:
    """The peer did not answer, or not well: `error`, in fixed words. Ends the lease."""
    return _guarded(
        tx,
        peer,
        holder,
        leased_until_ms=0,
        failures=cursors.c.failures + 1,
        next_try_at_ms=next_try_at_ms,
        last_error=error,
        last_error_at_ms=now_ms,
    )


def release(tx: Transaction, peer: str, holder: str) -> None:
    """End the lease: whoever sees work next may do it."""
    _guarded(tx, peer, holder, leased_until_ms=0)


def renew(tx: Transaction, peer: str, holder: str, now_ms: int) -> bool:
    """The peer answered, and there is more to do. False if the lease is ours no more."""
    return _guarded(
        tx,
        peer,
        holder,
        leased_until_ms=now_ms + LEASE_MS,
        failures=0,
        last_success_at_ms=now_ms,
    )


def pass_over(tx: Transaction, peer: str, holder: str, acknowledged_id: int) -> None:
    """Nothing up to there is for this peer, so it was not asked. Ends the lease."""
    _guarded(tx, peer, holder, acknowledged_id=acknowledged_id, head=None, leased_until_ms=0)


def set_compared(tx: Transaction, peer: str, holder: str, at_ms: int, now_ms: int) -> bool:
    """The peer was compared with, as if at `at_ms`. Renews the lease, or returns False."""
    return renew(tx, peer, holder, now_ms) and _guarded(tx, peer, holder, compared_at_ms=at_ms)


def demand_comparison(tx: Transaction, peer: str, now_ms: int) -> None:
    """Compare with the peer as soon as it has everything."""
    tx.execute(
        cursors.update()
        .where(cursors.c.peer == peer)
        .values(compared_at_ms=None, next_try_at_ms=now_ms)
    )


def is_put_off(tx: Transaction, peer: str, now_ms: int) -> bool:
    """Whether the peer's next try is yet to come."""
    query = sa.select(cursors.c.next_try_at_ms > now_ms).where(cursors.c.peer == peer)
    return bool(tx.execute(query).scalar())


def wake(tx: Transaction, peer: str, now_ms: int) -> None:
    """The peer has asked something of us, so it is there: its next try is now."""
    tx.execute(
        cursors.update()
        .where(cursors.c.peer == peer, cursors.c.next_try_at_ms > now_ms)
        .values(next_try_at_ms=now_ms)
    )


def compare_soon(tx: Transaction, peer: str) -> None:
    """The peer is compared with as soon as it has everything."""
    tx.execute(cursors.update().where(cursors.c.peer == peer).values(compared_at_ms=None))


def suspend_silent(tx: Transaction, silent_since_ms: int, now_ms: int) -> list[str]:
    """Nothing waits any more for peers that were last well before `silent_since_ms`."""
    well_at_ms = sa.func.coalesce(cursors.c.last_success_at_ms, peers.c.added_at_ms)
    silent = (
        sa.select(peers.c.name)
        .join_from(peers, cursors, cursors.c.peer == peers.c.name)
        .where(peers.c.suspended_at_ms.is_(None), well_at_ms < silent_since_ms)
    )
    suspended = tx.execute(
        peers.update()
        .where(peers.c.name.in_(silent))
        .values(suspended_at_ms=now_ms)
        .returning(peers.c.name)
    )
    return list(suspended.scalars())


def rejoin(tx: Transaction, peer: str, holder: str, head: bytes, now_ms: int) -> bool:
    """A suspended peer is back, and gets everything; it is compared with as soon as it has."""
    if not _guarded(
        tx,
        peer,
        holder,
        acknowledged_id=0,
        head=head,
        compared_at_ms=None,
        last_success_at_ms=now_ms,
        failures=0,
        leased_until_ms=now_ms + LEASE_MS,
    ):
        return False
    tx.execute(peers.update().where(peers.c.name == peer).values(suspended_at_ms=None))
    return True


def waited_for(tx: Transaction) -> list[str]:
    """The v2 peers that must say how far they are before anything is stated."""
    query = (
        sa.select(peers.c.name)
        .where(peers.c.must_answer, peers.c.protocol == Protocol.V2)
        .order_by(peers.c.name)
    )
    return list(tx.execute(query).scalars())


def v2_urls(tx: Transaction) -> dict[str, str]:
    """Where each v2 peer is reached, by name."""
    query = sa.select(peers.c.name, peers.c.url).where(peers.c.protocol == Protocol.V2)
    return {row.name: row.url for row in tx.execute(query.order_by(peers.c.name))}


def lagging_peers(tx: Transaction, our_name: str, before_ms: int) -> list[str]:
    """The peers, by any protocol, that lack a statement of ours from before that time.

    One that was added since is being filled, and one that is suspended is not waited for.
    """
    oldest_ts_ms = (
        sa.select(statements.c.ts_ms)
        .where(
            statements.c.origin == our_name,
            statements.c.origin_id > cursors.c.acknowledged_id,
        )
        .order_by(statements.c.origin_id)
        .limit(1)
        .correlate(cursors)
        .scalar_subquery()
    )
    query = (
        sa.select(peers.c.name)
        .join_from(peers, cursors, cursors.c.peer == peers.c.name)
        .where(
            peers.c.suspended_at_ms.is_(None),
            peers.c.added_at_ms < before_ms,
            oldest_ts_ms < before_ms,
        )
        .order_by(peers.c.name)
    )
    return list(tx.execute(query).scalars())


def own_state(tx: Transaction, our_name: str) -> tuple[int, bytes]:
    """(last id, head of the chain) of our own statements."""
    query = sa.select(origins.c.last_id, origins.c.head).where(origins.c.origin == our_name)
    row = tx.execute(query).one()
    return row.last_id, bytes(row.head)


def own_after(tx: Transaction, our_name: str, after: int, last_id: int, limit: int) -> list[Item]:
    """Our statements with ids above `after`, up to `last_id`, in order."""
    query = (
        sa.select(statements.c.origin_id, statements.c.leaf, statements.c.signed)
        .where(
            statements.c.origin == our_name,
            statements.c.origin_id > after,
            statements.c.origin_id <= last_id,
        )
        .order_by(statements.c.origin_id)
        .limit(limit)
    )
    return [Item(row.origin_id, bytes(row.leaf), row.signed) for row in tx.execute(query)]


def own_by_id(tx: Transaction, our_name: str, origin_ids: Sequence[int]) -> list[Item]:
    """Those of our statements, at most 1,000, in order; forgotten ones are left out."""
    query = (
        sa.select(statements.c.origin_id, statements.c.leaf, statements.c.signed)
        .where(
            statements.c.origin == our_name,
            statements.c.origin_id.in_(origin_ids),
            statements.c.signed.is_not(None),
        )
        .order_by(statements.c.origin_id)
    )
    return [Item(row.origin_id, bytes(row.leaf), row.signed) for row in tx.execute(query)]


def is_own_leaf(tx: Transaction, our_name: str, threepid: bytes, leaf: bytes) -> bool:
    """Whether this statement about a 3PID is in our log, under whatever id."""
    query = sa.select(sa.literal(1)).where(
        statements.c.threepid == threepid,
        statements.c.origin == our_name,
        statements.c.leaf == leaf,
    )
    return tx.execute(query).first() is not None


def own_leaves(tx: Transaction, our_name: str, up_to: int) -> Iterator[tuple[int, bytes]]:
    """(id, leaf) of our statements from the first to `up_to`, in order."""
    last = 0
    while True:
        query = (
            sa.select(statements.c.origin_id, statements.c.leaf)
            .where(
                statements.c.origin == our_name,
                statements.c.origin_id > last,
                statements.c.origin_id <= up_to,
            )
            .order_by(statements.c.origin_id)
            .limit(_WALK_ROWS)
        )
        rows = tx.execute(query).all()
        if not rows:
            return
        for row in rows:
            yield row.origin_id, bytes(row.leaf)
        last = rows[-1].origin_id


def _is_free(holder: str, now_ms: int) -> sa.ColumnElement[bool]:
    until = cursors.c.leased_until_ms
    # Further ahead than the clocks of two hosts may differ, it is that of a clock set back since.
    return (until <= now_ms) | (until > now_ms + 2 * LEASE_MS) | (cursors.c.lease_holder == holder)


def _guarded(tx: Transaction, peer: str, holder: str, **values: Any) -> bool:
    changed = tx.execute(
        cursors.update()
        .where(cursors.c.peer == peer, cursors.c.lease_holder == holder)
        .values(**values)
    )
    return changed.rowcount > 0
