"""Statements over peers, quarantine and alarms, and over the copies of their logs; one a function.

Cursors, which senders write, are in `cursors`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from identity.associations import store as associations_store
from identity.associations.models import statements
from identity.database import Transaction, insert
from identity.replication.batch import Item, Known
from identity.replication.models import (
    alarms,
    cursors,
    peer_keys,
    peers,
    quarantine,
    replacements,
)
from identity.replication.peer import Peer, Protocol, Reason, Refusal, Scope, Supersede

# How many values one IN list may hold: well below the limits of both databases.
_CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A refused statement. `signed` None: only its leaf is known."""

    origin: str
    origin_id: int
    leaf: bytes
    reason: Reason
    signed: str | None


class Status(NamedTuple):
    """What senders have to do with one peer. Times in ms since the epoch."""

    acknowledged_id: int
    failures: int
    last_success_at_ms: int | None
    last_error: str | None
    last_error_at_ms: int | None
    suspended_at_ms: int | None
    must_answer: bool


# --- peers --------------------------------------------------------------------------------


def all_peers(tx: Transaction) -> list[Peer]:
    """In the order of their names."""
    return list(_peers(tx, sa.true()))


def find_peer(tx: Transaction, name: str) -> Peer | None:
    return next(_peers(tx, peers.c.name == name), None)


def put_peer(tx: Transaction, peer: Peer, now_ms: int) -> None:
    """Add the peer, or make it what is said now. Its cursor stays, unless nothing waits for it
    any more: then it gets everything again."""
    values = {
        "url": peer.url,
        "protocol": peer.protocol,
        "supersede": peer.supersede,
        "media": " ".join(sorted(peer.scope.media)),
        "domains": " ".join(sorted(peer.scope.domains)),
        "prefixes": " ".join(peer.scope.prefixes),
    }
    tx.execute(
        cursors.delete().where(
            cursors.c.peer == peer.name,
            sa.exists().where(peers.c.name == peer.name, peers.c.suspended_at_ms.is_not(None)),
        )
    )
    tx.execute(
        insert(tx, peers)
        .values(name=peer.name, added_at_ms=now_ms, must_answer=False, **values)
        .on_conflict_do_update(index_elements=["name"], set_={**values, "suspended_at_ms": None})
    )
    tx.execute(
        insert(tx, cursors)
        .values(
            peer=peer.name, acknowledged_id=0, leased_until_ms=0, failures=0, next_try_at_ms=now_ms
        )
        .on_conflict_do_update(
            index_elements=["peer"], set_={"failures": 0, "next_try_at_ms": now_ms}
        )
    )
    tx.execute(peer_keys.delete().where(peer_keys.c.peer == peer.name))
    for key_id, public_key in peer.keys.items():
        put_key(tx, peer.name, key_id, public_key)


def delete_peer(tx: Transaction, name: str) -> bool:
    """With what is kept because it is a peer, its statements excepted; whether there was one."""
    deleted = tx.execute(peers.delete().where(peers.c.name == name)).rowcount > 0
    tx.execute(quarantine.delete().where(quarantine.c.origin == name))
    tx.execute(alarms.delete().where(alarms.c.peer == name))
    tx.execute(replacements.delete().where(replacements.c.peer == name))
    return deleted


def put_key(tx: Transaction, peer: str, key_id: str, public_key: bytes) -> None:
    tx.execute(
        insert(tx, peer_keys)
        .values(peer=peer, key_id=key_id, public_key=public_key)
        .on_conflict_do_update(index_elements=["peer", "key_id"], set_={"public_key": public_key})
    )


def delete_key(tx: Transaction, peer: str, key_id: str) -> bool:
    query = peer_keys.delete().where(peer_keys.c.peer == peer, peer_keys.c.key_id == key_id)
    return tx.execute(query).rowcount > 0


def set_must_answer(tx: Transaction, peer: str, *, must_answer: bool) -> bool:
    query = peers.update().where(peers.c.name == peer)
    return tx.execute(query.values(must_answer=must_answer)).rowcount > 0


def find_status(tx: Transaction, name: str) -> Status:
    query = (
        sa.select(cursors, peers.c.suspended_at_ms, peers.c.must_answer)
        .join_from(cursors, peers, cursors.c.peer == peers.c.name)
        .where(peers.c.name == name)
    )
    row = tx.execute(query).one()
    return Status(**{field: getattr(row, field) for field in Status._fields})


def find_lag(tx: Transaction, our_name: str, after: int) -> tuple[int, int | None]:
    """How many of our statements have ids above `after`, and the ts of the first that has one."""
    behind = (statements.c.origin == our_name) & (statements.c.origin_id > after)
    count = tx.execute(sa.select(sa.func.count()).select_from(statements).where(behind))
    oldest = (
        sa.select(statements.c.ts_ms)
        .where(behind, statements.c.ts_ms.is_not(None))
        .order_by(statements.c.origin_id)
        .limit(1)
    )
    return int(count.scalar_one()), tx.execute(oldest).scalar()


# --- what is held of an origin ------------------------------------------------------------


def find_refused(
    tx: Transaction, origin: str, origin_ids: Sequence[int]
) -> dict[tuple[int, bytes], Reason]:
    """By id and leaf: those of these statements that are in quarantine."""
    found: dict[tuple[int, bytes], Reason] = {}
    for start in range(0, len(origin_ids), _CHUNK):
        query = sa.select(quarantine.c.origin_id, quarantine.c.leaf, quarantine.c.reason).where(
            quarantine.c.origin == origin,
            quarantine.c.origin_id.in_(origin_ids[start : start + _CHUNK]),
        )
        for row in tx.execute(query):
            found[row.origin_id, bytes(row.leaf)] = Reason(row.reason)
    return found


def find_known(tx: Transaction, origin: str, origin_ids: Sequence[int]) -> dict[int, Known]:
    """What is held under these ids."""
    refused = find_refused(tx, origin, origin_ids)
    return {
        origin_id: Known(leaf, complete or (origin_id, leaf) in refused)
        for origin_id, (leaf, complete) in associations_store.find_leaves(
            tx, origin, origin_ids
        ).items()
    }


def items_after(tx: Transaction, origin: str, after: int, limit: int) -> list[Item]:
    """An origin's statements as they are held here, refused ones too, in order of id."""
    query = (
        sa.select(statements.c.origin_id, statements.c.leaf, statements.c.signed, quarantine.c.item)
        .select_from(
            statements.outerjoin(
                quarantine,
                (quarantine.c.origin == statements.c.origin)
                & (quarantine.c.origin_id == statements.c.origin_id)
                & (quarantine.c.leaf == statements.c.leaf),
            )
        )
        .where(statements.c.origin == origin, statements.c.origin_id > after)
        .order_by(statements.c.origin_id)
        .limit(limit)
    )
    return [
        Item(row.origin_id, bytes(row.leaf), row.item if row.signed is None else row.signed)
        for row in tx.execute(query)
    ]


# --- quarantine ---------------------------------------------------------------------------


def put_refused(
    tx: Transaction,
    origin: str,
    refused: Sequence[tuple[Item, Refusal]],
    now_ms: int,
    *,
    with_text: bool,
) -> None:
    """`with_text`: what they say is kept, to be judged again."""
    if refused:
        tx.execute(
            insert(tx, quarantine).on_conflict_do_nothing(),
            [
                {
                    "origin": origin,
                    "origin_id": item.origin_id,
                    "leaf": item.leaf,
                    "reason": refusal.reason,
                    "item": item.signed if with_text else None,
                    "received_at_ms": now_ms,
                    # Of a mere leaf nothing can be judged again.
                    "due_at_ms": refusal.due_at_ms if with_text else None,
                }
                for item, refusal in refused
            ],
        )


def set_refusal(tx: Transaction, held: Quarantined, refusal: Refusal) -> None:
    tx.execute(
        quarantine.update()
        .where(*_is(held))
        .values(reason=refusal.reason, due_at_ms=refusal.due_at_ms)
    )


def release(tx: Transaction, released: Iterable[Quarantined]) -> None:
    for held in released:
        tx.execute(quarantine.delete().where(*_is(held)))


def count_texts(tx: Transaction, origin: str) -> int:
    """How many refused statements of an origin are kept with what they say."""
    query = sa.select(sa.func.count()).where(
        quarantine.c.origin == origin, quarantine.c.item.is_not(None)
    )
    return int(tx.execute(query).scalar_one())


def refused_after(
    tx: Transaction, origin: str, after: tuple[int, bytes], limit: int
) -> list[Quarantined]:
    """An origin's refused statements that are kept with what they say, in order of id and leaf."""
    query = (
        sa.select(quarantine)
        .where(
            quarantine.c.origin == origin,
            sa.tuple_(quarantine.c.origin_id, quarantine.c.leaf) > sa.tuple_(*after),
            quarantine.c.item.is_not(None),
        )
        .order_by(quarantine.c.origin_id, quarantine.c.leaf)
        .limit(limit)
    )
    return [_quarantined(row) for row in tx.execute(query)]


def find_due(tx: Transaction, now_ms: int, limit: int) -> list[Quarantined]:
    """Statements of peers, from the future, that are so no more; asked often."""
    query = (
        sa.select(quarantine)
        .join_from(quarantine, peers, peers.c.name == quarantine.c.origin)
        .where(quarantine.c.due_at_ms <= now_ms)
        .order_by(quarantine.c.due_at_ms)
        .limit(limit)
    )
    return [_quarantined(row) for row in tx.execute(query)]


def count_refused(tx: Transaction, origin: str) -> dict[Reason, int]:
    query = (
        sa.select(quarantine.c.reason, sa.func.count().label("number"))
        .where(quarantine.c.origin == origin)
        .group_by(quarantine.c.reason)
        .order_by(quarantine.c.reason)
    )
    return {Reason(row.reason): row.number for row in tx.execute(query)}


# --- alarms -------------------------------------------------------------------------------


def raise_alarm(tx: Transaction, peer: str, kind: str, count: int, now_ms: int) -> None:
    """`count`: how often it has happened just now."""
    values = insert(tx, alarms).values(peer=peer, kind=kind, count=count, last_at_ms=now_ms)
    tx.execute(
        values.on_conflict_do_update(
            index_elements=["peer", "kind"],
            set_={"count": alarms.c.count + count, "last_at_ms": now_ms},
        )
    )


def alarms_of(tx: Transaction, peer: str) -> dict[str, tuple[int, int]]:
    """Kind to (how often, when last)."""
    query = sa.select(alarms).where(alarms.c.peer == peer).order_by(alarms.c.kind)
    return {kind: (count, last_at_ms) for _, kind, count, last_at_ms in tx.execute(query)}


def find_replacements(tx: Transaction, peer: str) -> tuple[int, int]:
    """(since when, how many): the bindings of others that the peer has replaced."""
    row = tx.execute(sa.select(replacements).where(replacements.c.peer == peer)).first()
    if row is None:
        return 0, 0
    _, since_ms, count = row
    return since_ms, count


def set_replacements(tx: Transaction, peer: str, since_ms: int, count: int) -> None:
    tx.execute(
        insert(tx, replacements)
        .values(peer=peer, since_ms=since_ms, count=count)
        .on_conflict_do_update(index_elements=["peer"], set_={"since_ms": since_ms, "count": count})
    )


def _peers(tx: Transaction, chosen: sa.ColumnElement[bool]) -> Iterator[Peer]:
    keys: dict[str, dict[str, bytes]] = {}
    query = (
        sa.select(peer_keys)
        .join_from(peer_keys, peers, peer_keys.c.peer == peers.c.name)
        .where(chosen)
        .order_by(peer_keys.c.key_id)
    )
    for row in tx.execute(query):
        keys.setdefault(row.peer, {})[row.key_id] = bytes(row.public_key)
    for row in tx.execute(sa.select(peers).where(chosen).order_by(peers.c.name)).all():
        yield Peer(
            row.name,
            row.url,
            Protocol(row.protocol),
            keys.get(row.name, {}),
            Supersede(row.supersede),
            Scope.parse(row.media.split(), row.domains.split(), row.prefixes.split()),
        )


def _is(held: Quarantined) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        quarantine.c.origin == held.origin,
        quarantine.c.origin_id == held.origin_id,
        quarantine.c.leaf == held.leaf,
    )


def _quarantined(row: Any) -> Quarantined:
    return Quarantined(row.origin, row.origin_id, bytes(row.leaf), Reason(row.reason), row.item)
