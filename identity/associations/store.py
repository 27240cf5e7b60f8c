"""Statements over the log, the origins and the current view, one a function."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from identity.associations.models import associations, origins, statements
from identity.associations.statement import Logged, Version
from identity.database import insert
from identity.replication.chain import EMPTY_HEAD
from identity.sealing import StorageKeys

# How many values one IN list may hold: well below the limits of both databases.
_CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class Current:
    """The current view of one 3PID; `mxid` None: it was revoked. Times in ms since the epoch."""

    version: Version
    mxid: str | None
    not_before_ms: int | None
    not_after_ms: int | None

    def is_live(self, now_ms: int) -> bool:
        """Whether somebody is bound now."""
        return (
            self.mxid is not None
            and self.not_before_ms is not None
            and self.not_after_ms is not None
            and self.not_before_ms <= now_ms <= self.not_after_ms
        )


def ensure_origin(tx: sa.Connection, origin: str) -> None:
    """An origin is there before its first statement, so that its lock can be taken."""
    tx.execute(
        insert(tx, origins)
        .values(origin=origin, last_id=0, head=EMPTY_HEAD)
        .on_conflict_do_nothing()
    )


def allocate_ids(tx: sa.Connection, origin: str, count: int) -> tuple[int, bytes]:
    """Lock the origin until the end of the transaction and take its next `count` ids.

    Returns the id before the first of them, and the head of the chain there. Whoever waits
    here commits later and has higher ids, so a reader never skips one that commits late.
    """
    query = (
        origins.update()
        .where(origins.c.origin == origin)
        .values(last_id=origins.c.last_id + count)
        .returning(origins.c.last_id, origins.c.head)
    )
    row = tx.execute(query).one()
    return row.last_id - count, bytes(row.head)


def set_head(tx: sa.Connection, origin: str, head: bytes) -> None:
    tx.execute(origins.update().where(origins.c.origin == origin).values(head=head))


def lock_origins(tx: sa.Connection) -> None:
    """Wait for every transaction that is appending statements, and hold up those that follow."""
    tx.execute(sa.select(origins.c.origin).order_by(origins.c.origin).with_for_update()).all()


def append(tx: sa.Connection, keys: StorageKeys, entries: Sequence[Logged]) -> None:
    tx.execute(
        statements.insert(),
        [
            {
                "origin": entry.origin,
                "origin_id": entry.origin_id,
                "threepid": keys.blind_index(entry.statement.threepid),
                "ts_ms": entry.statement.ts_ms,
                "leaf": entry.leaf,
                "signed": entry.signed,
                "lowered": entry.statement.threepid.lowered,
            }
            for entry in entries
        ],
    )


def lock_current(tx: sa.Connection, threepids: Sequence[bytes]) -> dict[bytes, Current]:
    """The current view of these blind indexes, locked until the end of the transaction.

    In order, so that two transactions cannot wait for each other.
    """
    found: dict[bytes, Current] = {}
    ordered = sorted(threepids)
    for start in range(0, len(ordered), _CHUNK):
        query = (
            sa.select(associations)
            .where(associations.c.threepid.in_(ordered[start : start + _CHUNK]))
            .order_by(associations.c.threepid)
            .with_for_update()
        )
        found |= {bytes(row.threepid): _current(row) for row in tx.execute(query)}
    return found


def find_current(tx: sa.Connection, threepid: bytes) -> Current | None:
    row = tx.execute(sa.select(associations).where(associations.c.threepid == threepid)).first()
    return None if row is None else _current(row)


def put_current(tx: sa.Connection, winners: dict[bytes, Logged], held: Collection[bytes]) -> bool:
    """Write the winners. `held`: the 3PIDs that had a row when `lock_current` looked.

    False if one of the others has got a row meanwhile: nobody could lock what was not there.
    """
    rows = {blind: _values(winner) for blind, winner in winners.items()}
    changed = [{"blind": blind, **row} for blind, row in rows.items() if blind in held]
    added = [{"threepid": blind, **row} for blind, row in rows.items() if blind not in held]
    if changed:
        tx.execute(
            associations.update().where(associations.c.threepid == sa.bindparam("blind")), changed
        )
    if not added:
        return True
    result = tx.execute(insert(tx, associations).on_conflict_do_nothing(), added)
    return result.rowcount == len(added)


def find_logged(tx: sa.Connection, version: Version) -> Logged | None:
    """None too where the statement is forgotten."""
    query = sa.select(statements).where(
        statements.c.origin == version.origin, statements.c.origin_id == version.origin_id
    )
    row = tx.execute(query).first()
    return None if row is None else _logged(row)


def live_after(tx: sa.Connection, threepid: bytes, limit: int) -> list[tuple[bytes, Logged]]:
    """(blind index, winning statement) of the bound 3PIDs behind `threepid`, in that order."""
    query = (
        sa.select(statements)
        .select_from(associations.join(statements, _IS_WINNER))
        .where(associations.c.mxid.is_not(None), associations.c.threepid > threepid)
        .order_by(associations.c.threepid)
        .limit(limit)
    )
    return [(bytes(row.threepid), logged) for row in tx.execute(query) if (logged := _logged(row))]


def read_log(tx: sa.Connection, batch: int) -> Iterator[list[Logged]]:
    """What is not forgotten of the whole log, in batches, in order of origin and id."""
    last = ("", 0)
    while True:
        query = (
            sa.select(statements)
            .where(sa.tuple_(statements.c.origin, statements.c.origin_id) > sa.tuple_(*last))
            .order_by(statements.c.origin, statements.c.origin_id)
            .limit(batch)
        )
        rows = tx.execute(query).all()
        if not rows:
            return
        yield [logged for row in rows if (logged := _logged(row))]
        last = (rows[-1].origin, rows[-1].origin_id)


def clear_current(tx: sa.Connection) -> None:
    tx.execute(associations.delete())


def count_live(tx: sa.Connection) -> int:
    """How many 3PIDs are bound."""
    query = sa.select(sa.func.count()).where(associations.c.mxid.is_not(None))
    return int(tx.execute(query).scalar_one())


def count_log(tx: sa.Connection) -> int:
    return int(tx.execute(sa.select(sa.func.count()).select_from(statements)).scalar_one())


def origin_states(tx: sa.Connection) -> list[tuple[str, int, bytes]]:
    """(origin, last id, head of the chain) of every origin."""
    query = sa.select(origins).order_by(origins.c.origin)
    return [(row.origin, row.last_id, bytes(row.head)) for row in tx.execute(query)]


def live_leaves(tx: sa.Connection, origin: str) -> Iterator[tuple[int, bytes]]:
    """(origin id, leaf) of the origin's statements that are current bindings, in order of id."""
    query = (
        sa.select(statements.c.origin_id, statements.c.leaf)
        .select_from(associations.join(statements, _IS_WINNER))
        .where(associations.c.mxid.is_not(None), statements.c.origin == origin)
        .order_by(statements.c.origin_id)
    )
    for row in tx.execute(query):
        yield row.origin_id, bytes(row.leaf)


_IS_WINNER: Final = (statements.c.origin == associations.c.origin) & (
    statements.c.origin_id == associations.c.origin_id
)


def _current(row: Any) -> Current:
    version = Version(row.ts_ms, row.origin, row.origin_id)
    return Current(version, row.mxid, row.not_before_ms, row.not_after_ms)


def _values(winner: Logged) -> dict[str, object]:
    statement = winner.statement
    return {
        "ts_ms": statement.ts_ms,
        "origin": winner.origin,
        "origin_id": winner.origin_id,
        "mxid": None if statement.mxid is None else str(statement.mxid),
        "not_before_ms": statement.not_before_ms,
        "not_after_ms": statement.not_after_ms,
    }


def _logged(row: Any) -> Logged | None:
    if row.signed is None:
        return None
    return Logged.load(row.origin, row.origin_id, row.signed, row.lowered)
