"""Statements over the key tables, one a function."""

from collections.abc import Iterable

import sqlalchemy as sa

from identity.database import insert
from identity.keys.models import hosts, signing_keys, storage_keys


def insert_signing_key(
    tx: sa.Connection, key_id: str, public_key: bytes, now_ms: int, *, active: bool
) -> None:
    newest_ms = tx.execute(sa.select(sa.func.max(signing_keys.c.created_at_ms))).scalar()
    # Later than all others, whatever the clock says: the newest one signs.
    created_at_ms = now_ms if newest_ms is None else max(now_ms, newest_ms + 1)
    tx.execute(
        signing_keys.insert().values(
            key_id=key_id,
            public_key=public_key,
            created_at_ms=created_at_ms,
            active_at_ms=created_at_ms if active else None,
        )
    )


def signing_key_rows(tx: sa.Connection) -> list[sa.Row[tuple[str, bytes, int | None, int | None]]]:
    """(key_id, public_key, active_at_ms, revoked_at_ms), oldest first."""
    query = sa.select(
        signing_keys.c.key_id,
        signing_keys.c.public_key,
        signing_keys.c.active_at_ms,
        signing_keys.c.revoked_at_ms,
    ).order_by(signing_keys.c.created_at_ms, signing_keys.c.key_id)
    return list(tx.execute(query))


def find_active_key_id(tx: sa.Connection) -> str | None:
    """The newest key that is active and not revoked."""
    query = (
        sa.select(signing_keys.c.key_id)
        .where(signing_keys.c.active_at_ms.is_not(None), signing_keys.c.revoked_at_ms.is_(None))
        .order_by(signing_keys.c.created_at_ms.desc())
        .limit(1)
    )
    return tx.execute(query).scalar()


def find_public_key(tx: sa.Connection, key_id: str) -> bytes | None:
    """Whether revoked or not: old signatures are still to be checked."""
    query = sa.select(signing_keys.c.public_key).where(signing_keys.c.key_id == key_id)
    return tx.execute(query).scalar()


def is_valid_public_key(tx: sa.Connection, public_key: bytes) -> bool:
    query = sa.select(sa.literal(1)).where(
        signing_keys.c.public_key == public_key, signing_keys.c.revoked_at_ms.is_(None)
    )
    return tx.execute(query).scalar() is not None


def activate_signing_key(tx: sa.Connection, key_id: str, now_ms: int) -> None:
    tx.execute(
        signing_keys.update()
        .where(signing_keys.c.key_id == key_id, signing_keys.c.active_at_ms.is_(None))
        .values(active_at_ms=now_ms)
    )


def revoke_signing_key(tx: sa.Connection, key_id: str, now_ms: int) -> bool:
    """Whether there was such a key, not revoked before."""
    result = tx.execute(
        signing_keys.update()
        .where(signing_keys.c.key_id == key_id, signing_keys.c.revoked_at_ms.is_(None))
        .values(revoked_at_ms=now_ms)
    )
    return result.rowcount > 0


def insert_storage_keys(tx: sa.Connection, fingerprints: dict[str, bytes], now_ms: int) -> bool:
    """False if another host recorded keys of these names at the same time."""
    result = tx.execute(
        insert(tx, storage_keys).on_conflict_do_nothing(),
        [
            {"name": name, "fingerprint": fingerprint, "created_at_ms": now_ms}
            for name, fingerprint in fingerprints.items()
        ],
    )
    return result.rowcount == len(fingerprints)


def storage_fingerprints(tx: sa.Connection) -> dict[str, bytes]:
    query = sa.select(storage_keys.c.name, storage_keys.c.fingerprint)
    return {name: bytes(fingerprint) for name, fingerprint in tx.execute(query)}


def report_host(tx: sa.Connection, host_id: str, key_names: Iterable[str], now_ms: int) -> None:
    values = {"key_names": " ".join(key_names), "seen_at_ms": now_ms}
    updated = tx.execute(hosts.update().where(hosts.c.host_id == host_id).values(values))
    if not updated.rowcount:
        tx.execute(hosts.insert().values(host_id=host_id, **values))


def forget_hosts(tx: sa.Connection, *, seen_before_ms: int) -> None:
    tx.execute(hosts.delete().where(hosts.c.seen_at_ms < seen_before_ms))


def forget_host(tx: sa.Connection, host_id: str) -> None:
    tx.execute(hosts.delete().where(hosts.c.host_id == host_id))


def keys_of_hosts(tx: sa.Connection) -> list[frozenset[str]]:
    """For each host that reported lately, the names of the keys it holds."""
    return [frozenset(names.split()) for (names,) in tx.execute(sa.select(hosts.c.key_names))]
