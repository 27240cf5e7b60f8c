"""Statements over peppers and the lookup index, one a function."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from identity.database import Database, insert_many
from identity.lookup.models import lookup_index, peppers

# How many values one IN list may hold: well below the limits of both databases.
_CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class Pepper:
    """One generation of the index. Times in ms since the epoch."""

    pepper_id: int
    text: str
    ready_at_ms: int | None
    retires_at_ms: int | None
    indexed_to: bytes | None


def all_peppers(tx: sa.Connection) -> list[Pepper]:
    """Every generation that has rows in the index, oldest first."""
    query = sa.select(peppers).order_by(peppers.c.pepper_id)
    return [
        Pepper(
            row.pepper_id,
            row.pepper,
            row.ready_at_ms,
            row.retires_at_ms,
            None if row.indexed_to is None else bytes(row.indexed_to),
        )
        for row in tx.execute(query)
    ]


def insert_pepper(
    tx: sa.Connection, pepper_id: int, text: str, now_ms: int, *, ready: bool
) -> None:
    tx.execute(
        peppers.insert().values(
            pepper_id=pepper_id,
            pepper=text,
            created_at_ms=now_ms,
            ready_at_ms=now_ms if ready else None,
        )
    )


def set_indexed_to(tx: sa.Connection, pepper_id: int, threepid: bytes) -> None:
    query = peppers.update().where(peppers.c.pepper_id == pepper_id)
    tx.execute(query.values(indexed_to=threepid))


def set_ready(tx: sa.Connection, pepper_id: int, now_ms: int) -> None:
    query = peppers.update().where(peppers.c.pepper_id == pepper_id)
    tx.execute(query.values(ready_at_ms=now_ms))


def retire_others(tx: sa.Connection, pepper_id: int, retires_at_ms: int) -> None:
    tx.execute(
        peppers.update()
        .where(peppers.c.pepper_id < pepper_id, peppers.c.retires_at_ms.is_(None))
        .values(retires_at_ms=retires_at_ms)
    )


def delete_pepper(tx: sa.Connection, pepper_id: int) -> None:
    tx.execute(peppers.delete().where(peppers.c.pepper_id == pepper_id))


def delete_tags_of(tx: sa.Connection, pepper_id: int, limit: int) -> int:
    """Delete up to `limit` rows of one generation; returns how many."""
    chosen = sa.select(lookup_index.c.tag).where(lookup_index.c.pepper_id == pepper_id).limit(limit)
    result = tx.execute(
        lookup_index.delete().where(
            lookup_index.c.pepper_id == pepper_id, lookup_index.c.tag.in_(chosen)
        )
    )
    return result.rowcount


def put_tags(tx: sa.Connection, rows: Sequence[tuple[int, bytes, bytes]]) -> None:
    """`rows`: (pepper id, tag, blind index of the 3PID)."""
    insert_many(
        tx,
        "INSERT INTO lookup_index (pepper_id, tag, threepid) VALUES (?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        rows,
    )


def delete_tags(tx: sa.Connection, rows: Sequence[tuple[int, bytes]]) -> None:
    """`rows`: (pepper id, tag)."""
    if rows:
        tx.execute(
            lookup_index.delete().where(
                lookup_index.c.pepper_id == sa.bindparam("of_pepper"),
                lookup_index.c.tag == sa.bindparam("of_tag"),
            ),
            [{"of_pepper": pepper_id, "of_tag": tag} for pepper_id, tag in rows],
        )


def clear_index(tx: sa.Connection) -> None:
    tx.execute(lookup_index.delete())


def find_bound(
    database: Database, pepper_id: int, tags: Sequence[bytes], now_ms: int
) -> dict[bytes, str]:
    """Tag to the MXID that is bound now."""
    found: dict[bytes, str] = {}
    for start in range(0, len(tags), _CHUNK):
        chunk = tags[start : start + _CHUNK]
        rows = database.fetch(_find_bound(len(chunk)), (pepper_id, *chunk, now_ms, now_ms))
        found.update((bytes(tag), mxid) for tag, mxid in rows)
    return found


@functools.cache
def _find_bound(count: int) -> str:
    # Only question marks are put in.
    return f"""
        SELECT lookup_index.tag, associations.mxid
        FROM lookup_index JOIN associations ON associations.threepid = lookup_index.threepid
        WHERE lookup_index.pepper_id = ? AND lookup_index.tag IN ({", ".join("?" * count)})
          AND associations.mxid IS NOT NULL
          AND associations.not_before_ms <= ? AND associations.not_after_ms >= ?
        """  # noqa: S608
