"""What we hold of a peer's log, told to that peer: how far, what, and whether it is the same.

Whoever asks gets what it has stated itself, and nothing else.

Source: docs/replication.md, "state", "pull", "compare" and "repair".
"""

from itertools import chain

import structlog

from identity.associations import store as associations_store
from identity.associations.service import Associations
from identity.associations.store import Origin
from identity.database import Database, Transaction
from identity.replication import cursors, store
from identity.replication.batch import MAX_ITEMS, Batch, cut
from identity.replication.chain import EMPTY_HEAD
from identity.replication.digest import RANGE_IDS, Comparison, Named, differing, digests
from identity.replication.peer import Peer

log = structlog.get_logger(__name__)

# Digests are reckoned over so many ids at a time, which any database reads in time.
_WINDOW_IDS = 100 * RANGE_IDS


class Copies:
    """Answers what peers ask of their own statements. One per process; thread-safe."""

    def __init__(self, database: Database, associations: Associations) -> None:
        self._database = database
        self._associations = associations

    def state(self, peer: Peer) -> Origin:
        """How far the peer's log is here.

        Who asks has just been started, or knows that it was restored from a backup. So ours may be
        less far there than it was: we compare with it soon.
        """
        self._database.write(lambda tx: cursors.compare_soon(tx, peer.name))
        return self._held(peer)

    def _held(self, peer: Peer) -> Origin:
        found = self._database.read(lambda tx: associations_store.find_origin(tx, peer.name))
        return found or Origin(0, EMPTY_HEAD)

    def pull(self, peer: Peer, after: int) -> Batch:
        """The peer's statements behind `after`, as many as a batch holds; without any: no more.

        The head is that of our copy where the batch is its end.
        """
        held = self._held(peer)
        items = cut(
            self._database.read(lambda tx: store.items_after(tx, peer.name, after, MAX_ITEMS))
        )
        is_end = not items or items[-1].origin_id == held.last_id
        return Batch(after, items, held.head if is_end else None)

    def compare(self, peer: Peer, theirs: Comparison) -> tuple[int, list[int]]:
        """(last id here, the ranges that differ); only where as much is held as they have."""
        held = self._held(peer)
        if held.last_id != theirs.last_id:
            return held.last_id, []
        windows = range(0, held.last_id + 1, _WINDOW_IDS)
        ours = digests(
            chain.from_iterable(
                self._database.read(
                    lambda tx, first=first: list(  # type: ignore[misc]
                        associations_store.live_leaves(tx, peer.name, first, first + _WINDOW_IDS)
                    )
                )
                for first in windows
            )
        )
        return held.last_id, differing(theirs.ranges, ours)

    def repair(self, peer: Peer, named: Named) -> list[int]:
        """Drop what is live here in a range and not named; returns the ids that are lacking."""

        def work(tx: Transaction) -> tuple[int, list[int]]:
            associations_store.ensure_origin(tx, peer.name)
            held = associations_store.lock_origin(tx, peer.name)
            live = associations_store.live_leaves(
                tx, peer.name, named.first, named.first + RANGE_IDS
            )
            dropped = named.find_dropped([origin_id for origin_id, _ in live])
            count = self._associations.drop(tx, peer.name, dropped)
            known = store.find_known(tx, peer.name, list(named.live))
            return count, named.find_wanted(held.last_id, known)

        count, wanted = self._database.write(work)
        if count or wanted:
            log.warning("copy_mended", peer=peer.name, dropped=count, wanted=len(wanted))
        return wanted
