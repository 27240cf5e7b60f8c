"""Use cases of lookups: what to hash with, who is found, and a new pepper.

Rules:
- Only what is bound now is found, and the answer is keyed by exactly what the client sent.
- A new pepper is indexed while the old one serves; then `hash_details` switches at once, and
  the old one is answered for the grace time. Indexing goes on where it stopped.
"""

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Final

from identity.associations import store as associations_store
from identity.clock import MINUTE_MS, SECOND_MS, Clock
from identity.database import Database, Transaction
from identity.errors import InvalidParameter, PepperMismatch, SetupError, TooManyAddresses
from identity.lookup import hashing, store
from identity.lookup.index import tags_of
from identity.lookup.store import Pepper

# Each batch is one short transaction, so that binds are not held up.
_BATCH: Final = 1_000
# Another host may have rotated; an unknown pepper asks the database at once.
_PEPPERS_KEPT_MS: Final = 10 * SECOND_MS
# Longer than that, so that who still takes a pepper for good finds its rows, not an empty index.
_RETIRED_KEPT_MS: Final = MINUTE_MS


class Lookups:
    """Answers hashed lookups."""

    def __init__(
        self, database: Database, clock: Clock, algorithms: Iterable[str], max_addresses: int
    ) -> None:
        self._database = database
        self._clock = clock
        self._algorithms = tuple(algorithms)
        self._max_addresses = max_addresses
        self._peppers: tuple[int, list[Pepper]] = (0, [])

    def hash_details(self) -> tuple[str, tuple[str, ...]]:
        """(pepper, algorithms)."""
        current = _current(self._database.read(store.all_peppers))
        return current.text, self._algorithms

    def check(self, algorithm: str, pepper: str, addresses: list[str]) -> Pepper:
        """What can be said before anything is looked up or paid for.

        Raises: InvalidParameter for an unknown algorithm, PepperMismatch, TooManyAddresses.
        """
        if algorithm not in self._algorithms:
            raise InvalidParameter("The algorithm is not supported")
        found = self._find_pepper(pepper)
        if found is None:
            current, _ = self.hash_details()
            raise PepperMismatch(algorithm, current)
        if len(addresses) > self._max_addresses:
            raise TooManyAddresses(self._max_addresses)
        return found

    def find(self, algorithm: str, pepper: Pepper, addresses: list[str]) -> dict[str, str]:
        """Those of `addresses` that are bound now, as they were sent, to their MXIDs."""
        keys = self._database.keys
        lookup_key = keys.lookup_key(pepper.text)
        asked: dict[bytes, list[str]] = {}
        for address in addresses:
            if algorithm == hashing.NONE:
                value = hashing.plain_hash(address, pepper.text)
            else:
                value = hashing.decode_hash(address)
            if value is not None:
                asked.setdefault(keys.lookup_tag(lookup_key, value), []).append(address)
        if not asked:
            return {}
        now_ms = self._clock.now_ms()
        bound = store.find_bound(self._database, pepper.pepper_id, list(asked), now_ms)
        return {address: mxid for tag, mxid in bound.items() for address in asked[tag]}

    def _find_pepper(self, text: str) -> Pepper | None:
        now_ms = self._clock.now_ms()
        read_at_ms, peppers = self._peppers
        if abs(now_ms - read_at_ms) > _PEPPERS_KEPT_MS or not _usable(peppers, text, now_ms):
            peppers = self._database.read(store.all_peppers)
            self._peppers = (now_ms, peppers)
        return _usable(peppers, text, now_ms)


class Peppers:
    """Makes new generations of the index and takes old ones away."""

    def __init__(self, database: Database, clock: Clock, grace: timedelta) -> None:
        self._database = database
        self._clock = clock
        self._grace_ms = grace // timedelta(milliseconds=1)

    def begin(self) -> Pepper:
        """Start a new generation. Raises: SetupError while another one is being indexed."""
        pepper = self._database.write(lambda tx: self._begin(tx, older_than_ms=None))
        if pepper is None:
            raise SetupError("A rotation of the pepper is already under way")
        return pepper

    def begin_if_older(self, age: timedelta) -> None:
        """Start a new generation when the current pepper is older than `age`; 0: never."""
        older_than_ms = age // timedelta(milliseconds=1)
        if older_than_ms and self._is_due(self._database.read(store.all_peppers), older_than_ms):
            self._database.write(lambda tx: self._begin(tx, older_than_ms=older_than_ms))

    def _begin(self, tx: Transaction, older_than_ms: int | None) -> Pepper | None:
        """None where one is being indexed, or another host has just been as quick."""
        associations_store.lock_origins(tx)
        peppers = store.all_peppers(tx)
        if any(pepper.ready_at_ms is None for pepper in peppers) or (
            older_than_ms is not None and not self._is_due(peppers, older_than_ms)
        ):
            return None
        text, pepper_id = hashing.new_pepper(), peppers[-1].pepper_id + 1
        store.insert_pepper(tx, pepper_id, text, self._clock.now_ms(), ready=False)
        return Pepper(pepper_id, text, None, None, None)

    def _is_due(self, peppers: list[Pepper], older_than_ms: int) -> bool:
        ready_at_ms = _current(peppers).ready_at_ms
        return ready_at_ms is not None and self._clock.now_ms() - ready_at_ms > older_than_ms

    def find_unfinished(self) -> Pepper | None:
        """The generation that is being indexed."""
        peppers = self._database.read(store.all_peppers)
        return next((pepper for pepper in peppers if pepper.ready_at_ms is None), None)

    def finish(
        self,
        pepper: Pepper,
        progress: Callable[[int], None] = lambda _: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Index everything that is bound, then switch. Any number of processes may do it at once.

        `progress` is called with the number of associations indexed by each step. Once
        `stopping` says so it returns early, and the rest is for the next call.
        """
        after = pepper.indexed_to or b""
        while not stopping():
            batch = self._database.read(
                lambda tx, after=after: associations_store.live_after(tx, after, _BATCH)  # type: ignore[misc]
            )
            if not batch:
                self._database.write(lambda tx: self._switch(tx, pepper))
                return
            after = batch[-1][0]
            self._database.write(
                lambda tx, batch=batch: self._index(tx, pepper, [blind for blind, _ in batch])  # type: ignore[misc]
            )
            progress(len(batch))

    def count(self) -> int:
        """How many associations a rotation has to index."""
        return self._database.read(associations_store.count_live)

    def purge(self) -> int:
        """Delete some rows of retired generations; returns how many. Called until it is 0."""
        retired_before_ms = self._clock.now_ms() - _RETIRED_KEPT_MS

        def work(tx: Transaction) -> int:
            for pepper in store.all_peppers(tx):
                if pepper.retires_at_ms is not None and pepper.retires_at_ms < retired_before_ms:
                    deleted = store.delete_tags_of(tx, pepper.pepper_id, _BATCH)
                    if not deleted:
                        # A bind that is under way may still put rows into it.
                        associations_store.lock_origins(tx)
                        deleted = store.delete_tags_of(tx, pepper.pepper_id, _BATCH)
                    if not deleted:
                        store.delete_pepper(tx, pepper.pepper_id)
                    return deleted or 1
            return 0

        return self._database.write(work)

    def _index(self, tx: Transaction, pepper: Pepper, threepids: list[bytes]) -> None:
        # Locked and read again: what was unbound since must not come back.
        keys = self._database.keys
        current = associations_store.lock_current(tx, threepids)
        rows = []
        for blind, view in current.items():
            logged = associations_store.find_logged(tx, view.version) if view.mxid else None
            if logged is not None:
                tags = tags_of(keys, logged.statement.threepid, pepper.text)
                rows += [(pepper.pepper_id, tag, blind) for tag in tags]
        store.put_tags(tx, rows)
        store.set_indexed_to(tx, pepper.pepper_id, threepids[-1])

    def _switch(self, tx: Transaction, pepper: Pepper) -> None:
        now_ms = self._clock.now_ms()
        store.set_ready(tx, pepper.pepper_id, now_ms)
        store.retire_others(tx, pepper.pepper_id, now_ms + self._grace_ms)


def create_first_pepper(tx: Transaction, now_ms: int) -> None:
    """Of a new database: there is nothing to index."""
    if not store.all_peppers(tx):
        store.insert_pepper(tx, 1, hashing.new_pepper(), now_ms, ready=True)


def _current(peppers: list[Pepper]) -> Pepper:
    return max(
        (pepper for pepper in peppers if pepper.ready_at_ms is not None),
        key=lambda pepper: pepper.pepper_id,
    )


def _usable(peppers: list[Pepper], text: str, now_ms: int) -> Pepper | None:
    for pepper in peppers:
        retired = pepper.retires_at_ms is not None and pepper.retires_at_ms <= now_ms
        if pepper.text == text and pepper.ready_at_ms is not None and not retired:
            return pepper
    return None
