"""Statements over the traffic of text messages, one a function.

Rows are locked from the widest scope to the narrowest, which is by the length of its name, or two
transactions could each wait for the other's row.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Final

import sqlalchemy as sa

from identity.database import insert
from identity.sms.models import sms_traffic
from identity.sms.traffic import Traffic


def find_traffic(tx: sa.Connection, scopes: Collection[str]) -> dict[str, Traffic]:
    """By scope; one that was never counted is missing."""
    return _by_scope(tx, sa.select(sms_traffic).where(sms_traffic.c.scope.in_(scopes)))


def lock_traffic(tx: sa.Connection, scopes: Collection[str]) -> dict[str, Traffic]:
    """Likewise, and nobody else counts them until the transaction ends."""
    query = sa.select(sms_traffic).where(sms_traffic.c.scope.in_(scopes))
    return _by_scope(tx, query.order_by(sa.func.length(sms_traffic.c.scope)).with_for_update())


def insert_traffic(tx: sa.Connection, traffic: Traffic) -> bool:
    """False: somebody else was first."""
    statement = insert(tx, sms_traffic).values(asdict(traffic)).on_conflict_do_nothing()
    return tx.execute(statement).rowcount > 0


def update_traffic(tx: sa.Connection, changed: Sequence[Traffic]) -> None:
    """Rows that are locked; 1 or more."""
    tx.execute(_UPDATE, [{f"new_{k}": v for k, v in asdict(row).items()} for row in changed])


def count_sent(tx: sa.Connection, scopes: Iterable[str]) -> None:
    """A provider took the message."""
    tx.execute(_COUNT_SENT, [{"counted": scope} for scope in sorted(scopes, key=len)])


def count_converted(tx: sa.Connection, scopes: Iterable[str]) -> None:
    """A code was proved; never more of them than were sent."""
    tx.execute(_COUNT_CONVERTED, [{"counted": scope} for scope in sorted(scopes, key=len)])


def traffic_but_blocks(tx: sa.Connection) -> dict[str, Traffic]:
    """The server, every country, the alarm and what an operator paused, in order."""
    query = sa.select(sms_traffic).where(sms_traffic.c.scope.not_like("%/%"))
    return _by_scope(tx, query.order_by(sms_traffic.c.scope))


def paused_blocks(tx: sa.Connection, now_ms: int, limit: int) -> list[Traffic]:
    """At most `limit` of them, in order."""
    query = (
        sa.select(sms_traffic)
        .where(sms_traffic.c.scope.like("%/%"), sms_traffic.c.paused_until_ms > now_ms)
        .order_by(sms_traffic.c.scope)
        .limit(limit)
    )
    return list(_by_scope(tx, query).values())


def lift_pauses(tx: sa.Connection, countries: Iterable[str]) -> None:
    """Of these countries, by name, and of all their blocks, as if they had never been paused."""
    of_them = [
        sms_traffic.c.scope.like(f"{country}{after}%") for country in countries for after in " /"
    ]
    tx.execute(sms_traffic.update().where(sa.or_(*of_them)).values(paused_until_ms=0))


def delete_traffic(tx: sa.Connection, scope: str) -> None:
    tx.execute(sms_traffic.delete().where(sms_traffic.c.scope == scope))


def delete_old_traffic(tx: sa.Connection, *, before_day: int, now_ms: int, limit: int) -> int:
    """Up to `limit` rows that are not paused; returns how many were deleted."""
    old = (
        sa.select(sms_traffic.c.scope)
        .where(sms_traffic.c.day < before_day, sms_traffic.c.paused_until_ms <= now_ms)
        .limit(limit)
    )
    # The condition once more, for a row may have come to life while it was waited for.
    return tx.execute(
        sms_traffic.delete().where(sms_traffic.c.scope.in_(old), sms_traffic.c.day < before_day)
    ).rowcount


def _by_scope(tx: sa.Connection, query: sa.Select[tuple[object, ...]]) -> dict[str, Traffic]:
    return {row["scope"]: Traffic(**row) for row in tx.execute(query).mappings()}


_UPDATE: Final = (
    sms_traffic.update()
    .where(sms_traffic.c.scope == sa.bindparam("new_scope"))
    .values(
        {
            column: sa.bindparam(f"new_{column.name}")
            for column in sms_traffic.columns
            if not column.primary_key
        }
    )
)
_COUNT_SENT: Final = (
    sms_traffic.update()
    .where(sms_traffic.c.scope == sa.bindparam("counted"))
    .values(sent=sms_traffic.c.sent + 1, day_sent=sms_traffic.c.day_sent + 1)
)
_COUNT_CONVERTED: Final = (
    sms_traffic.update()
    .where(
        sms_traffic.c.scope == sa.bindparam("counted"),
        sms_traffic.c.converted < sms_traffic.c.sent,
    )
    .values(converted=sms_traffic.c.converted + 1, day_converted=sms_traffic.c.day_converted + 1)
)
