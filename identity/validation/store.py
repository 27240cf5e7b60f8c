"""Statements over validation sessions and tokens, one a function."""

from typing import Any

import sqlalchemy as sa

from identity.database import insert
from identity.sealing import StorageKeys
from identity.threepid import Medium, ThreePid
from identity.validation.models import sessions, tokens
from identity.validation.session import Session, Token


def find_session(tx: sa.Connection, sid: str) -> Session | None:
    row = tx.execute(sa.select(sessions).where(sessions.c.sid == sid)).first()
    return None if row is None else _session(row)


def find_newest(tx: sa.Connection, scope: bytes) -> Session | None:
    """The newest session of a scope."""
    row = tx.execute(sa.select(sessions).where(sessions.c.scope == scope)).first()
    return None if row is None else _session(row)


def lock_newest(tx: sa.Connection, scope: bytes) -> Session | None:
    """The newest session of a scope, with other requests of the scope kept waiting until the end
    of the transaction."""
    query = sa.select(sessions).where(sessions.c.scope == scope).with_for_update()
    row = tx.execute(query).first()
    return None if row is None else _session(row)


def release_scope(tx: sa.Connection, sid: str) -> None:
    tx.execute(sessions.update().where(sessions.c.sid == sid).values(scope=None))


def insert_session(tx: sa.Connection, keys: StorageKeys, session: Session, scope: bytes) -> bool:
    """False if another request began a session of this scope at the same time."""
    result = tx.execute(
        insert(tx, sessions)
        .values(
            sid=session.sid,
            scope=scope,
            owner=session.owner,
            medium=str(session.threepid.medium),
            threepid=keys.blind_index(session.threepid),
            address=session.threepid.address,
            lowered=session.threepid.lowered,
            client_secret_hash=session.client_secret_hash,
            next_link=session.next_link,
            brand=session.brand,
            created_at_ms=session.created_at_ms,
            attempts=0,
        )
        .on_conflict_do_nothing(index_elements=[sessions.c.scope])
    )
    return result.rowcount > 0


def prepare_token(
    tx: sa.Connection, sid: str, send_attempt: int, token_hash: bytes, now_ms: int
) -> None:
    tx.execute(
        tokens.insert().values(
            sid=sid,
            send_attempt=send_attempt,
            token_hash=token_hash,
            prepared_at_ms=now_ms,
            live=False,
        )
    )


def make_token_live(tx: sa.Connection, token_hash: bytes) -> None:
    tx.execute(tokens.update().where(tokens.c.token_hash == token_hash).values(live=True))


def delete_token(tx: sa.Connection, sid: str, token_hash: bytes) -> None:
    """Of a message that was not sent; a session that has no other token goes with it."""
    # Locked first: a token that is being prepared just now has to be seen below.
    tx.execute(sa.select(sessions.c.sid).where(sessions.c.sid == sid).with_for_update()).all()
    tx.execute(tokens.delete().where(tokens.c.token_hash == token_hash))
    tx.execute(
        sessions.delete().where(
            sessions.c.sid == sid,
            sessions.c.validated_at_ms.is_(None),
            ~sa.exists().where(tokens.c.sid == sessions.c.sid),
        )
    )


def tokens_of(tx: sa.Connection, sid: str) -> list[Token]:
    """Few: what may be sent for one address is limited."""
    query = sa.select(tokens).where(tokens.c.sid == sid)
    return [_token(row) for row in tx.execute(query)]


def count_attempt(tx: sa.Connection, sid: str, maximum: int) -> bool:
    """Take one of the session's attempts; False if they are used up."""
    result = tx.execute(
        sessions.update()
        .where(sessions.c.sid == sid, sessions.c.attempts < maximum)
        .values(attempts=sessions.c.attempts + 1)
    )
    return result.rowcount > 0


def give_attempt_back(tx: sa.Connection, sid: str) -> None:
    tx.execute(
        sessions.update().where(sessions.c.sid == sid).values(attempts=sessions.c.attempts - 1)
    )


def set_validated(tx: sa.Connection, sid: str, now_ms: int) -> bool:
    """The first time counts; False if it was validated before."""
    result = tx.execute(
        sessions.update()
        .where(sessions.c.sid == sid, sessions.c.validated_at_ms.is_(None))
        .values(validated_at_ms=now_ms)
    )
    return result.rowcount > 0


def delete_old_sessions(tx: sa.Connection, *, before_ms: int, limit: int) -> int:
    """Up to `limit` of those created and, if at all, validated before; returns how many."""
    latest = sa.func.coalesce(sessions.c.validated_at_ms, sessions.c.created_at_ms)
    old = (
        sa.select(sessions.c.sid)
        .where(sessions.c.created_at_ms < before_ms, latest < before_ms)
        .limit(limit)
    )
    result = tx.execute(sessions.delete().where(sessions.c.sid.in_(old)))
    return result.rowcount


def _session(row: Any) -> Session:
    return Session(
        sid=row.sid,
        owner=row.owner,
        threepid=ThreePid(Medium(row.medium), row.address, row.lowered),
        client_secret_hash=bytes(row.client_secret_hash),
        created_at_ms=row.created_at_ms,
        validated_at_ms=row.validated_at_ms,
        attempts=row.attempts,
        next_link=row.next_link,
        brand=row.brand,
    )


def _token(row: Any) -> Token:
    return Token(
        token_hash=bytes(row.token_hash),
        send_attempt=row.send_attempt,
        prepared_at_ms=row.prepared_at_ms,
        live=row.live,
    )
