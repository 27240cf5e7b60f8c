"""Statements over the log, the origins and the current view, one a function."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from identity.associations.models import associations, origins, statements
from identity.associations.statement import Forgotten, Logged, Version
from identity.database import insert, insert_many
from identity.errors import Recovering
from identity.replication.batch import Item
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


@dataclass(frozen=True, slots=True)
class Origin:
    """How far the log of one origin is here."""

    last_id: int
    head: bytes


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
    Raises: Recovering, of our own ids, while others may hold statements under them.
    """
    query = (
        origins.update()
        .where(origins.c.origin == origin)
        .values(last_id=origins.c.last_id + count)
        .returning(origins.c.last_id, origins.c.head, origins.c.recovering)
    )
    row = tx.execute(query).one()
    if row.recovering:
        raise Recovering
    return row.last_id - count, bytes(row.head)


def set_recovering(tx: sa.Connection, origin: str, *, recovering: bool) -> bool:
    """Begin or end to hold back new statements; whether that is a change."""
    is_other = origins.c.recovering.is_not(recovering)
    query = origins.update().where(origins.c.origin == origin, is_other)
    return tx.execute(query.values(recovering=recovering)).rowcount > 0


def is_recovering(tx: sa.Connection, origin: str) -> bool:
    query = sa.select(origins.c.recovering).where(origins.c.origin == origin)
    return bool(tx.execute(query).scalar_one())


def lock_origin(tx: sa.Connection, origin: str) -> Origin:
    """The origin, which is there, locked until the end of the transaction."""
    row = tx.execute(sa.select(origins).where(origins.c.origin == origin).with_for_update()).one()
    return Origin(row.last_id, bytes(row.head))


def find_origin(tx: sa.Connection, origin: str) -> Origin | None:
    row = tx.execute(sa.select(origins).where(origins.c.origin == origin)).first()
    return None if row is None else Origin(row.last_id, bytes(row.head))


def set_origin(tx: sa.Connection, origin: str, last_id: int, head: bytes) -> None:
    query = origins.update().where(origins.c.origin == origin)
    tx.execute(query.values(last_id=last_id, head=head))


def set_head(tx: sa.Connection, origin: str, head: bytes) -> None:
    tx.execute(origins.update().where(origins.c.origin == origin).values(head=head))


def lock_origins(tx: sa.Connection) -> None:
    """Wait for every transaction that is appending statements, and hold up those that follow."""
    tx.execute(sa.select(origins.c.origin).order_by(origins.c.origin).with_for_update()).all()


def append(tx: sa.Connection, keys: StorageKeys, entries: Sequence[Logged]) -> None:
    insert_many(
        tx,
        "INSERT INTO statements (origin, origin_id, threepid, ts_ms, leaf, signed, lowered)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (
                entry.origin,
                entry.origin_id,
                keys.blind_index(entry.statement.threepid),
                entry.statement.ts_ms,
                entry.leaf,
                keys.seal("statements.signed", entry.signed.encode()),
                None
                if (lowered := entry.statement.threepid.lowered) is None
                else keys.seal("statements.lowered", lowered.encode()),
            )
            for entry in entries
        ],
    )


def append_leaves(tx: sa.Connection, origin: str, items: Sequence[Item]) -> None:
    """Statements of which only id and leaf are kept."""
    if items:
        rows = [
            {"origin": origin, "origin_id": item.origin_id, "leaf": item.leaf} for item in items
        ]
        tx.execute(statements.insert(), rows)


def refill(tx: sa.Connection, keys: StorageKeys, entries: Sequence[Logged]) -> None:
    """Give statements their text back that are in the log by their leaf."""
    if not entries:
        return
    query = statements.update().where(
        statements.c.origin == sa.bindparam("of_origin"),
        statements.c.origin_id == sa.bindparam("of_id"),
        statements.c.leaf == sa.bindparam("of_leaf"),
    )
    rows = [_row(keys, entry) for entry in entries]
    for row in rows:
        row |= {name: row.pop(key) for name, key in _REFILLED.items()}
    tx.execute(query, rows)


def forget(tx: sa.Connection, origin: str, origin_ids: Sequence[int]) -> None:
    """Take away what these statements say; their ids, leaves, 3PIDs and versions stay."""
    for start in range(0, len(origin_ids), _CHUNK):
        tx.execute(
            statements.update()
            .where(
                statements.c.origin == origin,
                statements.c.origin_id.in_(origin_ids[start : start + _CHUNK]),
            )
            .values(signed=None, lowered=None)
        )


def find_leaves(
    tx: sa.Connection, origin: str, origin_ids: Sequence[int]
) -> dict[int, tuple[bytes, bool]]:
    """Of those in the log: id to leaf, and whether the text is there."""
    found: dict[int, tuple[bytes, bool]] = {}
    for start in range(0, len(origin_ids), _CHUNK):
        query = sa.select(
            statements.c.origin_id,
            statements.c.leaf,
            statements.c.signed.is_not(None).label("complete"),
        ).where(
            statements.c.origin == origin,
            statements.c.origin_id.in_(origin_ids[start : start + _CHUNK]),
        )
        found |= {row.origin_id: (bytes(row.leaf), bool(row.complete)) for row in tx.execute(query)}
    return found


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


def put_current(
    tx: sa.Connection, winners: Mapping[bytes, Logged | Forgotten], held: Collection[bytes]
) -> bool:
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
    written = insert_many(
        tx,
        "INSERT INTO associations"
        " (threepid, ts_ms, origin, origin_id, mxid, not_before_ms, not_after_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [tuple(row.values()) for row in added],
    )
    return written == len(added)


def find_logged(tx: sa.Connection, version: Version) -> Logged | None:
    """None too where the statement is forgotten."""
    query = sa.select(statements).where(
        statements.c.origin == version.origin, statements.c.origin_id == version.origin_id
    )
    row = tx.execute(query).first()
    return None if row is None else _logged(row)


def find_all_logged(
    tx: sa.Connection, versions: Iterable[Version]
) -> dict[tuple[str, int], Logged]:
    """The same of many, by origin and id; those that are forgotten are left out."""
    ids: dict[str, list[int]] = {}
    for version in versions:
        ids.setdefault(version.origin, []).append(version.origin_id)
    found = {}
    for origin, origin_ids in ids.items():
        for start in range(0, len(origin_ids), _CHUNK):
            query = sa.select(statements).where(
                statements.c.origin == origin,
                statements.c.origin_id.in_(origin_ids[start : start + _CHUNK]),
            )
            for row in tx.execute(query):
                if logged := _logged(row):
                    found[origin, row.origin_id] = logged
    return found


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


def read_log(tx: sa.Connection, batch: int) -> Iterator[list[Logged | Forgotten]]:
    """The whole log, in batches, in order of origin and id, without what is a leaf alone."""
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
        yield [
            _logged(row)
            or Forgotten(bytes(row.threepid), Version(row.ts_ms, row.origin, row.origin_id))
            for row in rows
            if row.threepid is not None
        ]
        last = (rows[-1].origin, rows[-1].origin_id)


def clear_current(tx: sa.Connection) -> None:
    tx.execute(associations.delete())


def count_live(tx: sa.Connection) -> int:
    """How many 3PIDs are bound."""
    query = sa.select(sa.func.count()).where(associations.c.mxid.is_not(None))
    return int(tx.execute(query).scalar_one())


def count_log(tx: sa.Connection) -> int:
    """Without what is a leaf alone."""
    query = sa.select(sa.func.count()).where(statements.c.threepid.is_not(None))
    return int(tx.execute(query).scalar_one())


def origin_states(tx: sa.Connection) -> list[tuple[str, int, bytes]]:
    """(origin, last id, head of the chain) of every origin."""
    query = sa.select(origins).order_by(origins.c.origin)
    return [(row.origin, row.last_id, bytes(row.head)) for row in tx.execute(query)]


def live_leaves(
    tx: sa.Connection, origin: str, first: int = 0, end: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """(origin id, leaf) of the origin's statements that are current bindings, in order of id.

    Of all of them, or of those with `first` <= id < `end`.
    """
    query = (
        sa.select(statements.c.origin_id, statements.c.leaf)
        .select_from(statements.join(associations, _IS_WINNER))
        .where(
            statements.c.origin == origin,
            statements.c.origin_id >= first,
            sa.true() if end is None else statements.c.origin_id < end,
            associations.c.mxid.is_not(None),
        )
        .order_by(statements.c.origin_id)
    )
    for row in tx.execute(query):
        yield row.origin_id, bytes(row.leaf)


def threepids_of(tx: sa.Connection, origin: str, origin_ids: Sequence[int]) -> list[bytes]:
    """Blind indexes of the 3PIDs that these statements are about."""
    found: list[bytes] = []
    for start in range(0, len(origin_ids), _CHUNK):
        query = sa.select(statements.c.threepid).where(
            statements.c.origin == origin,
            statements.c.origin_id.in_(origin_ids[start : start + _CHUNK]),
            statements.c.threepid.is_not(None),
        )
        found += [bytes(threepid) for threepid in tx.execute(query).scalars()]
    return found


_IS_WINNER: Final = (
    (statements.c.threepid == associations.c.threepid)
    & (statements.c.origin == associations.c.origin)
    & (statements.c.origin_id == associations.c.origin_id)
)
# What an update is about, by names that no column has.
_REFILLED: Final = {"of_origin": "origin", "of_id": "origin_id", "of_leaf": "leaf"}


def _row(keys: StorageKeys, entry: Logged) -> dict[str, Any]:
    return {
        "origin": entry.origin,
        "origin_id": entry.origin_id,
        "threepid": keys.blind_index(entry.statement.threepid),
        "ts_ms": entry.statement.ts_ms,
        "leaf": entry.leaf,
        "signed": entry.signed,
        "lowered": entry.statement.threepid.lowered,
    }


def _current(row: Any) -> Current:
    version = Version(row.ts_ms, row.origin, row.origin_id)
    return Current(version, row.mxid, row.not_before_ms, row.not_after_ms)


def _values(winner: Logged | Forgotten) -> dict[str, object]:
    statement = winner.statement if isinstance(winner, Logged) else None
    return {
        "ts_ms": winner.version.ts_ms,
        "origin": winner.version.origin,
        "origin_id": winner.version.origin_id,
        "mxid": None if statement is None or statement.mxid is None else str(statement.mxid),
        "not_before_ms": None if statement is None else statement.not_before_ms,
        "not_after_ms": None if statement is None else statement.not_after_ms,
    }


def _logged(row: Any) -> Logged | None:
    if row.signed is None:
        return None
    return Logged.load(row.origin, row.origin_id, row.signed, row.lowered)
