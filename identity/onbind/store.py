"""Statements over the outbox, one a function."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from identity.database import select_many
from identity.onbind.models import deliveries
from identity.onbind.schedule import LONGEST_DELAY_MS

# How many values one IN list may hold: well below the limits of both databases.
_CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class Delivery:
    """One row; `invite`: the token hash of the invitation, None for the bare binding."""

    delivery_id: str
    threepid: bytes
    mxid: str
    signed: str
    invite: bytes | None
    created_at_ms: int
    tries: int
    next_try_at_ms: int | None
    leased_until_ms: int
    outcome: str | None
    last_error: str | None


def insert_delivery(tx: sa.Connection, delivery: Delivery) -> None:
    tx.execute(
        deliveries.insert().values(
            delivery_id=delivery.delivery_id,
            threepid=delivery.threepid,
            mxid=delivery.mxid,
            signed=delivery.signed,
            invite=delivery.invite,
            created_at_ms=delivery.created_at_ms,
            tries=0,
            next_try_at_ms=delivery.next_try_at_ms,
            leased_until_ms=delivery.leased_until_ms,
        )
    )


def end_out_of_date(tx: sa.Connection, threepid: bytes, mxid: str | None) -> None:
    """The 3PID now belongs to `mxid`: nobody is told any more that it is another's.

    With the dead letters about it, so that they are not brought back; those of invitations in
    any case, for what still waits is told anew.
    """
    dead = deliveries.c.outcome == "dead"
    of_another = sa.true() if mxid is None else deliveries.c.mxid != mxid
    tx.execute(
        deliveries.update()
        .where(
            deliveries.c.threepid == threepid,
            deliveries.c.next_try_at_ms.is_not(None) | dead,
            of_another | (dead & deliveries.c.invite.is_not(None)),
        )
        .values(next_try_at_ms=None, outcome="stale")
    )


def open_invites(tx: sa.Connection, threepid: bytes) -> set[bytes]:
    """The invitations, by token hash, that are on their way."""
    query = sa.select(deliveries.c.invite).where(
        deliveries.c.threepid == threepid,
        deliveries.c.next_try_at_ms.is_not(None),
        deliveries.c.invite.is_not(None),
    )
    return {bytes(invite) for invite in tx.execute(query).scalars()}


def concerned(tx: sa.Connection, threepids: Sequence[bytes], now_ms: int) -> set[bytes]:
    """Those of the 3PIDs that an invitation waits for, or that a notification is not ended about."""
    found: set[bytes] = set()
    for start in range(0, len(threepids), _CHUNK):
        chunk = threepids[start : start + _CHUNK]
        rows = select_many(tx, _concerned(len(chunk)), (*chunk, now_ms, *chunk))
        found |= {bytes(threepid) for (threepid,) in rows}
    return found


@functools.cache
def _concerned(count: int) -> str:
    # Only question marks are put in.
    marks = ", ".join("?" * count)
    return f"""
        SELECT threepid FROM invites
        WHERE threepid IN ({marks}) AND live AND delivered_at_ms IS NULL
          AND revoked_at_ms IS NULL AND expires_at_ms > ?
        UNION
        SELECT threepid FROM deliveries
        WHERE threepid IN ({marks}) AND (next_try_at_ms IS NOT NULL OR outcome = 'dead')
        """  # noqa: S608


def is_any_due(tx: sa.Connection, now_ms: int) -> bool:
    """Asked often, so without a lock."""
    query = sa.select(sa.literal(1)).where(*_is_due(now_ms)).limit(1)
    return tx.execute(query).scalar() is not None


def lease_due(tx: sa.Connection, now_ms: int, leased_until_ms: int, limit: int) -> list[Delivery]:
    """Take up to `limit` deliveries that are due and that nobody else holds.

    In this order: what was tried least, so that homeservers that do not answer hold up nobody
    else; then what has been due for longest.
    """
    due = (
        sa.select(deliveries.c.delivery_id)
        .where(*_is_due(now_ms))
        .order_by(deliveries.c.tries, deliveries.c.next_try_at_ms)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    leased = tx.execute(
        deliveries.update()
        .where(deliveries.c.delivery_id.in_(due))
        .values(leased_until_ms=leased_until_ms)
        .returning(deliveries)
    )
    return sorted(map(_delivery, leased), key=lambda each: (each.tries, each.next_try_at_ms))


def is_open(tx: sa.Connection, delivery_id: str) -> bool:
    """Whether it is still to be told: it may have gone out of date since it was leased."""
    query = sa.select(sa.literal(1)).where(
        deliveries.c.delivery_id == delivery_id, deliveries.c.next_try_at_ms.is_not(None)
    )
    return tx.execute(query).scalar() is not None


def end(tx: sa.Connection, delivery_id: str, outcome: str, error: str | None) -> None:
    """What went out of date in the meantime stays so, unless it was delivered all the same."""
    is_open = deliveries.c.next_try_at_ms.is_not(None)
    tx.execute(
        deliveries.update()
        .where(
            deliveries.c.delivery_id == delivery_id,
            sa.true() if outcome == "delivered" else is_open,
        )
        .values(
            next_try_at_ms=None,
            leased_until_ms=0,
            outcome=outcome,
            last_error=error,
            tries=deliveries.c.tries + 1,
        )
    )


def postpone(tx: sa.Connection, delivery_id: str, next_try_at_ms: int, error: str) -> None:
    tx.execute(
        deliveries.update()
        .where(deliveries.c.delivery_id == delivery_id, deliveries.c.next_try_at_ms.is_not(None))
        .values(
            next_try_at_ms=next_try_at_ms,
            leased_until_ms=0,
            last_error=error,
            tries=deliveries.c.tries + 1,
        )
    )


def put_off(tx: sa.Connection, delivery: Delivery, next_try_at_ms: int) -> None:
    """Release the lease, unless it is over and another's, without counting a try."""
    tx.execute(
        deliveries.update()
        .where(
            deliveries.c.delivery_id == delivery.delivery_id,
            deliveries.c.next_try_at_ms.is_not(None),
            deliveries.c.leased_until_ms == delivery.leased_until_ms,
        )
        .values(next_try_at_ms=next_try_at_ms, leased_until_ms=0)
    )


def retry(tx: sa.Connection, delivery_id: str, now_ms: int) -> bool:
    """Bring a dead letter back; whether there was one."""
    result = tx.execute(
        deliveries.update()
        .where(deliveries.c.delivery_id == delivery_id, deliveries.c.outcome == "dead")
        .values(next_try_at_ms=now_ms, outcome=None, tries=0)
    )
    return result.rowcount > 0


def list_undelivered(tx: sa.Connection, limit: int) -> list[Delivery]:
    """What is on its way and what is dead, oldest first."""
    query = (
        sa.select(deliveries)
        .where(deliveries.c.next_try_at_ms.is_not(None) | (deliveries.c.outcome == "dead"))
        .order_by(deliveries.c.created_at_ms)
        .limit(limit)
    )
    return [_delivery(row) for row in tx.execute(query)]


def delete_ended(tx: sa.Connection, created_before_ms: int, limit: int) -> int:
    """Delivered and out-of-date ones; dead letters stay until an operator has seen them."""
    ended = (
        sa.select(deliveries.c.delivery_id)
        .where(
            deliveries.c.outcome.in_(("delivered", "stale")),
            deliveries.c.created_at_ms < created_before_ms,
        )
        .limit(limit)
    )
    result = tx.execute(deliveries.delete().where(deliveries.c.delivery_id.in_(ended)))
    return result.rowcount


def _is_due(now_ms: int) -> tuple[sa.ColumnElement[bool], ...]:
    # What is further ahead than anything is put off was written before the clock was set back.
    # Not only by as much as a lease is long: hosts that share leases differ by seconds.
    latest_ms = now_ms + LONGEST_DELAY_MS
    return tuple(
        (column <= now_ms) | (column > latest_ms)
        for column in (deliveries.c.next_try_at_ms, deliveries.c.leased_until_ms)
    )


def _delivery(row: Any) -> Delivery:
    return Delivery(
        delivery_id=row.delivery_id,
        threepid=bytes(row.threepid),
        mxid=row.mxid,
        signed=row.signed,
        invite=None if row.invite is None else bytes(row.invite),
        created_at_ms=row.created_at_ms,
        tries=row.tries,
        next_try_at_ms=row.next_try_at_ms,
        leased_until_ms=row.leased_until_ms,
        outcome=row.outcome,
        last_error=row.last_error,
    )
