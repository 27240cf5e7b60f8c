"""Statements over accepted terms, one a function."""

from collections.abc import Iterable

import sqlalchemy as sa

from identity.database import insert
from identity.terms.models import accepted_terms


def accepted_urls(tx: sa.Connection, user_id: str) -> frozenset[str]:
    query = sa.select(accepted_terms.c.url).where(accepted_terms.c.user_id == user_id)
    return frozenset(tx.execute(query).scalars())


def accept(tx: sa.Connection, user_id: str, urls: Iterable[str], now_ms: int) -> None:
    """Adds to what was accepted before; accepting again changes nothing."""
    tx.execute(
        insert(tx, accepted_terms).on_conflict_do_nothing(),
        [{"user_id": user_id, "url": url, "accepted_at_ms": now_ms} for url in urls],
    )
