"""Keeping the lookup index in step with the current view, inside the view's own transaction.

A row is (pepper, HMAC(k, SHA-256 hash), blind index of the 3PID). The key k is derived from a
storage key and the pepper, so a stolen table cannot be reversed by hashing every phone number.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from identity.database import Transaction
from identity.lookup import store
from identity.lookup.hashing import hashes_of
from identity.sealing import StorageKeys
from identity.threepid import ThreePid


@dataclass(frozen=True, slots=True)
class Change:
    """The view of one 3PID changed: who was found before, who is to be found now.

    `before` and `after` are the same 3PID, or None where nobody is bound; they may differ in
    their lower-cased form.
    """

    threepid: bytes
    before: ThreePid | None
    after: ThreePid | None


def follow(tx: Transaction, keys: StorageKeys, changes: Iterable[Change]) -> None:
    """Carry the changes into every generation of the index.

    The caller holds the lock of an origin: a generation is begun under all of those locks, so
    it is either seen here or indexes what is written here.
    """
    changes = list(changes)
    for pepper in store.all_peppers(tx):
        number = pepper.pepper_id
        gone: list[tuple[int, bytes]] = []
        put: list[tuple[int, bytes, bytes]] = []
        for change in changes:
            before = tags_of(keys, change.before, pepper.text)
            after = tags_of(keys, change.after, pepper.text)
            gone += [(number, tag) for tag in before - after]
            put += [(number, tag, change.threepid) for tag in after]
        store.delete_tags(tx, gone)
        store.put_tags(tx, put)


def tags_of(keys: StorageKeys, threepid: ThreePid | None, pepper: str) -> set[bytes]:
    if threepid is None:
        return set()
    key = keys.lookup_key(pepper)
    return {keys.lookup_tag(key, value) for value in hashes_of(threepid, pepper)}
