"""Statements over milestones and over what is forgotten, one a function."""

import sqlalchemy as sa

from identity.associations.models import associations, origins, statements
from identity.database import Transaction, insert
from identity.replication.models import cursors, milestones, peers, quarantine


def reached(tx: Transaction, our_name: str) -> dict[str, int]:
    """Of each origin, the id up to which everyone who must has its statements.

    Of our own that is what every peer but suspended ones has acknowledged; of another's, what we
    hold: it is for that origin to wait for its own peers.
    """
    acknowledged = (
        sa.select(sa.func.min(cursors.c.acknowledged_id))
        .join_from(cursors, peers, cursors.c.peer == peers.c.name)
        .where(peers.c.suspended_at_ms.is_(None))
        .scalar_subquery()
    )
    query = sa.select(
        origins.c.origin,
        sa.case(
            (origins.c.origin == our_name, sa.func.coalesce(acknowledged, origins.c.last_id)),
            else_=origins.c.last_id,
        ).label("origin_id"),
    )
    return {row.origin: row.origin_id for row in tx.execute(query)}


def newest_at_ms(tx: Transaction) -> int | None:
    """When milestones were noted last."""
    return tx.execute(sa.select(sa.func.max(milestones.c.at_ms))).scalar()


def note(tx: Transaction, reached_ids: dict[str, int], at_ms: int) -> None:
    """Each origin is so far now. Twice at one time, by two hosts, changes nothing."""
    rows = [
        {"origin": origin, "at_ms": at_ms, "origin_id": origin_id}
        for origin, origin_id in reached_ids.items()
    ]
    tx.execute(insert(tx, milestones).on_conflict_do_nothing(), rows)


def passed(tx: Transaction, before_ms: int) -> dict[str, int]:
    """The id that each origin had reached before that time; those that had not are left out."""
    query = (
        sa.select(milestones.c.origin, sa.func.max(milestones.c.origin_id).label("origin_id"))
        .where(milestones.c.at_ms <= before_ms)
        .group_by(milestones.c.origin)
    )
    return {row.origin: row.origin_id for row in tx.execute(query)}


def delete_outdated(tx: Transaction, before_ms: int) -> None:
    """Of those that are older, all but the newest of each origin."""
    later = milestones.alias()
    is_outdone = sa.exists().where(
        later.c.origin == milestones.c.origin,
        later.c.at_ms > milestones.c.at_ms,
        later.c.at_ms <= before_ms,
        later.c.origin_id >= milestones.c.origin_id,
    )
    tx.execute(milestones.delete().where(milestones.c.at_ms <= before_ms, is_outdone))


def forget_range(tx: Transaction, origin: str, first: int, last: int) -> int:
    """Reduce to id and leaf what is no current binding, of ids from `first` to `last`."""
    is_binding = sa.exists().where(
        associations.c.threepid == statements.c.threepid,
        associations.c.origin == statements.c.origin,
        associations.c.origin_id == statements.c.origin_id,
        associations.c.mxid.is_not(None),
    )
    forgotten = tx.execute(
        statements.update()
        .where(
            statements.c.origin == origin,
            statements.c.origin_id >= first,
            statements.c.origin_id <= last,
            statements.c.signed.is_not(None),
            ~is_binding,
        )
        .values(signed=None, lowered=None)
    )
    return forgotten.rowcount


def forget_refused(tx: Transaction, received_before_ms: int, limit: int) -> int:
    """Take the text away from what was refused so long ago; id, leaf and reason stay."""
    old = (
        sa.select(quarantine.c.origin, quarantine.c.origin_id, quarantine.c.leaf)
        .where(
            quarantine.c.item.is_not(None),
            quarantine.c.due_at_ms.is_(None),
            quarantine.c.received_at_ms < received_before_ms,
        )
        .limit(limit)
    )
    key = sa.tuple_(quarantine.c.origin, quarantine.c.origin_id, quarantine.c.leaf)
    return tx.execute(quarantine.update().where(key.in_(old)).values(item=None)).rowcount
