"""Comparing what a peer holds as ours with what we hold, and mending what differs.

Both sides reckon a digest for each range of ids over our statements that are current bindings. What
differs may be on its way: a statement of a third server that one side has and the other has not
yet. So a range is mended only if it differed twice in a row: the peer is told which statements
count, drops the others, and asks for what it lacks.

Source: docs/replication.md, "compare" and "repair"; decision 5.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import structlog
from unpaddedbase64 import encode_base64

from identity.associations.store import live_leaves
from identity.database import Database, Transaction
from identity.replication import cursors
from identity.replication.batch import Batch, cut
from identity.replication.client import PUSH_S, Conflicted, PeerClient, PeerError, natural
from identity.replication.digest import RANGE_IDS, digests
from identity.strict_json import encode_canonical

log = structlog.get_logger(__name__)

# Read in one go: a fraction of what the database allows one statement in time.
_READ_IDS: Final = 100 * RANGE_IDS


@dataclass(frozen=True, slots=True)
class Compared:
    """`held_id`: the last id of ours that the peer holds. `again_soon`: something differs that may
    be on its way."""

    held_id: int
    again_soon: bool


class Healing:
    """Heals v2 peers of what is ours. One per process; a peer is one thread's at a time."""

    def __init__(self, database: Database, our_name: str) -> None:
        self._database = database
        self._our_name = our_name
        # By peer: the ranges that differed in the last comparison, and those to be mended.
        self._differed: dict[str, frozenset[int]] = {}
        self._pending: dict[str, list[int]] = {}

    def compare(self, client: PeerClient, peer: str) -> Compared:
        """Compare with a peer that is said to have everything. Raises: PeerError."""
        last_id, ranges = self._database.read(self._digests)
        held_id, differ = self._ask_compare(client, last_id, ranges)
        pending = differ & self._differed.get(peer, frozenset())
        self._differed[peer] = differ
        self._pending[peer] = sorted(pending)
        if differ:
            log.warning("peer_differs", peer=peer, ranges=len(differ), mended=len(pending))
        return Compared(held_id, again_soon=bool(differ - pending))

    def mend_next(self, client: PeerClient, peer: str) -> bool:
        """Mend one range; False if there is none. Raises: PeerError, and the rest is left to the
        next comparison."""
        pending = self._pending.get(peer)
        if not pending:
            return False
        first = pending.pop()
        # Read first: what is stated from now on is not named, and not to be dropped for it.
        last_id, _ = self._database.read(lambda tx: cursors.own_state(tx, self._our_name))
        live = self._database.read(
            lambda tx: list(live_leaves(tx, self._our_name, first, first + RANGE_IDS))
        )
        named = [{"id": origin_id, "leaf": encode_base64(leaf)} for origin_id, leaf in live]
        body = encode_canonical({"first": first, "last_id": last_id, "live": named})
        wanted = _wanted(client.ask("repair", body, PUSH_S), {origin_id for origin_id, _ in live})
        items = self._database.read(
            lambda tx: cursors.own_by_id(tx, self._our_name, wanted) if wanted else []
        )
        while items:
            batch = Batch(items[0].origin_id - 1, cut(items), head=None)
            if isinstance(client.ask("push", batch.encode(), PUSH_S), Conflicted):
                raise PeerError("malformed answer")
            items = items[len(batch.items) :]
        log.info("peer_mended", peer=peer, first=first, live=len(live), wanted=len(wanted))
        return True

    def _digests(self, tx: Transaction) -> tuple[int, dict[int, str]]:
        """Our last id, and the digests up to there."""
        last_id, _ = cursors.own_state(tx, self._our_name)
        return last_id, digests(self._live(tx, last_id))

    def _live(self, tx: Transaction, last_id: int) -> Iterator[tuple[int, bytes]]:
        for first in range(0, last_id + 1, _READ_IDS):
            end = min(first + _READ_IDS, last_id + 1)
            yield from live_leaves(tx, self._our_name, first, end)

    def _ask_compare(
        self, client: PeerClient, last_id: int, ranges: dict[int, str]
    ) -> tuple[int, frozenset[int]]:
        """(last id that the peer holds, ranges that differ). Raises: PeerError."""
        named = {str(first): digest for first, digest in ranges.items()}
        body = encode_canonical({"last_id": last_id, "ranges": named})
        answer = client.ask("compare", body, PUSH_S)
        if isinstance(answer, Conflicted):
            raise PeerError("malformed answer")
        differ = answer.get("differ")
        # It may name ranges where we have nothing, and it does.
        if not isinstance(differ, list) or not all(
            type(first) is int and first % RANGE_IDS == 0 and 0 <= first <= last_id
            for first in differ
        ):
            raise PeerError("malformed answer")
        return natural(answer.get("last_id")), frozenset(differ)


def _wanted(answer: dict[str, Any] | Conflicted, named: set[int]) -> list[int]:
    """Of the statements that were named, those that the peer asks for. Raises: PeerError."""
    wanted = None if isinstance(answer, Conflicted) else answer.get("wanted")
    if not isinstance(wanted, list) or not all(type(one) is int for one in wanted):
        raise PeerError("malformed answer")
    return sorted(named.intersection(wanted))
