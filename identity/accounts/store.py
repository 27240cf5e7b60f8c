"""Statements over accounts and access tokens, one a function."""

from typing import Final

import sqlalchemy as sa

from identity.accounts.models import access_tokens, accounts, homeservers
from identity.database import Database, insert


def ensure_account(tx: sa.Connection, user_id: str, now_ms: int) -> bool:
    """Whether the account is new."""
    result = tx.execute(
        insert(tx, accounts).values(user_id=user_id, created_at_ms=now_ms).on_conflict_do_nothing()
    )
    return result.rowcount > 0


def ensure_homeserver(tx: sa.Connection, host: str, now_ms: int) -> None:
    """The first time that one of its accounts is seen counts."""
    tx.execute(
        insert(tx, homeservers).values(name=host, first_seen_at_ms=now_ms).on_conflict_do_nothing()
    )


def find_first_seen_at_ms(tx: sa.Connection, host: str) -> int | None:
    """Since when a homeserver has had accounts here."""
    query = sa.select(homeservers.c.first_seen_at_ms).where(homeservers.c.name == host)
    return tx.execute(query).scalar()


def insert_token(tx: sa.Connection, token_hash: bytes, user_id: str, now_ms: int) -> None:
    tx.execute(
        access_tokens.insert().values(
            token_hash=token_hash, user_id=user_id, created_at_ms=now_ms, used_at_ms=now_ms
        )
    )


def keep_newest_tokens(tx: sa.Connection, user_id: str, count: int) -> None:
    """Delete all but the `count` tokens of the user that were used last."""
    mine = access_tokens.c.user_id == user_id
    kept = (
        sa.select(access_tokens.c.token_hash)
        .where(mine)
        .order_by(access_tokens.c.used_at_ms.desc(), access_tokens.c.created_at_ms.desc())
        .limit(count)
    )
    tx.execute(access_tokens.delete().where(mine, access_tokens.c.token_hash.not_in(kept)))


def find_token(database: Database, token_hash: bytes) -> tuple[str, int] | None:
    """(user ID, used_at_ms)."""
    rows = database.fetch(_FIND_BY_HASH, (token_hash,))
    return (rows[0][0], rows[0][1]) if rows else None


def touch_token(tx: sa.Connection, token_hash: bytes, now_ms: int) -> None:
    tx.execute(
        access_tokens.update()
        .where(access_tokens.c.token_hash == token_hash)
        .values(used_at_ms=now_ms)
    )


def delete_token(tx: sa.Connection, token_hash: bytes) -> bool:
    """Whether there was one."""
    result = tx.execute(access_tokens.delete().where(access_tokens.c.token_hash == token_hash))
    return result.rowcount > 0


def delete_unused_tokens(tx: sa.Connection, *, used_before_ms: int, limit: int) -> int:
    """Up to `limit` tokens; returns how many were deleted."""
    unused = (
        sa.select(access_tokens.c.token_hash)
        .where(access_tokens.c.used_at_ms < used_before_ms)
        .limit(limit)
    )
    result = tx.execute(access_tokens.delete().where(access_tokens.c.token_hash.in_(unused)))
    return result.rowcount


_FIND_BY_HASH: Final = "SELECT user_id, used_at_ms FROM access_tokens WHERE token_hash = ?"
