"""Use cases of a server that was restored from a backup: its peers hold statements that it lost.

Their ids must not be given out again, for a peer refuses a second statement under an id. So before
anything is stated every v2 peer is asked for the last id it holds of ours. While one holds more,
`origins.recovering` is set and nothing is stated; our own statements are fetched back, checked by
our own keys, and enter log, view and index as received ones do.

`peers.must_answer` says whom we wait for: who said that it holds more, and after a restore by the
operator everyone. Both survive a crash. `identity peers confirm NAME` waits for one no more.

A peer that is silent at the start may show later that ids were given out twice: under one id it
holds another statement of ours than we do, and it will never take ours. Both are stated again then,
under new ids, where they still count.

A peer is believed only so far as it shows statements that we signed and do not have.

Source: decision 6; docs/replication.md, "state" and "pull".
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import structlog

from identity.associations.service import Associations
from identity.associations.statement import Logged, Statement, newest
from identity.associations.store import is_recovering, lock_current, set_recovering
from identity.clock import SECOND_MS, Clock
from identity.database import Database, Transaction
from identity.errors import InvalidParameter
from identity.keys.service import SigningKeys
from identity.replication import cursors, store
from identity.replication.batch import Batch, Item
from identity.replication.client import (
    PUSH_S,
    STATE_S,
    Conflicted,
    PeerClient,
    PeerClients,
    PeerError,
    natural,
)
from identity.replication.peer import Peer, Protocol
from identity.replication.receiving import Receiver
from identity.strict_json import MAX_INTEGER, encode_canonical

if TYPE_CHECKING:
    from identity.mxid import UserId
    from identity.threepid import ThreePid

log = structlog.get_logger(__name__)

# Asked at once, at start.
_ASKED_AT_ONCE: Final = 64
# How often a peer that we wait for is asked.
_ASK_EVERY_MS: Final = 5 * SECOND_MS
# Where a server was restored it may have skipped a million ids. More would be a peer that uses them
# up: behind 2^53-1 there are none.
_MAX_GAP: Final = 10_000_000


class Recovery:
    """Finds out whether we were restored, and fetches back what we lost. One per process."""

    def __init__(
        self,
        database: Database,
        signing_keys: SigningKeys,
        associations: Associations,
        receiver: Receiver,
        clients: PeerClients,
        our_name: str,
        clock: Clock,
    ) -> None:
        self._database = database
        self._signing_keys = signing_keys
        self._associations = associations
        self._receiver = receiver
        self._clients = clients
        self._our_name = our_name
        self._clock = clock
        self._asked_at_ms: dict[str, int] = {}

    def look_around(self) -> None:
        """Ask all v2 peers at once, before anything is stated; takes STATE_S at most."""
        urls = self._database.read(cursors.v2_urls)
        if not urls:
            return
        with ThreadPoolExecutor(min(len(urls), _ASKED_AT_ONCE)) as pool:
            held_ids = list(pool.map(self._find_held_id, urls, urls.values()))

        def work(tx: Transaction) -> bool:
            last_id, _ = cursors.own_state(tx, self._our_name)
            for peer, held_id in zip(urls, held_ids, strict=True):
                if held_id is not None:
                    store.set_must_answer(tx, peer, must_answer=held_id > last_id)
            waits = bool(cursors.waited_for(tx))
            set_recovering(tx, self._our_name, recovering=waits)
            return waits

        if self._database.write(work):
            log.error("recovering", note="nothing is stated until our statements are back")

    def due(self) -> list[str]:
        """The peers to ask now, if a recovery is under way. It ends when nobody is waited for."""
        if not self._database.read(lambda tx: is_recovering(tx, self._our_name)):
            return []

        def end(tx: Transaction) -> bool:
            return not cursors.waited_for(tx) and set_recovering(
                tx, self._our_name, recovering=False
            )

        if self._database.write(end):
            log.info("recovered")
            return []
        now_ms = self._clock.now_ms()
        return [
            peer
            for peer in self._database.read(cursors.waited_for)
            if not 0 <= now_ms - self._asked_at_ms.get(peer, 0) < _ASK_EVERY_MS
        ]

    def attend(self, peer: str, is_stopping: Callable[[], bool]) -> None:
        """Fetch from one peer what it holds of ours beyond what we have. Done twice, it does no
        harm."""
        self._asked_at_ms[peer] = self._clock.now_ms()
        url = self._database.read(cursors.v2_urls).get(peer)
        if url is None:
            return
        client = self._clients.open(peer, url)
        try:
            self._fetch(client, peer, is_stopping)
        except PeerError as error:
            log.warning("peer_failed", peer=peer, reason=error.reason, task="recovery")
        finally:
            client.close()

    def restate(self, client: PeerClient, peer: str, forked: Sequence[int]) -> None:
        """The peer holds other statements of ours than we do under these ids, at most 1,000.

        Done twice, it states nothing twice: what was stated again is newer than both.
        Raises: PeerError; Recovering.
        """
        lost: dict[int, Logged] = {}
        after = min(forked) - 1
        while after < max(forked):
            batch = _pull(client, after)
            lost |= self._find_lost(item for item in batch.items if item.origin_id in forked)
            after = batch.last_id
        if lost:
            count = self._database.write(lambda tx: self._restate(tx, lost))
            log.error("ids_collided", peer=peer, ids=len(lost), stated_again=count)

    def _find_held_id(self, peer: str, url: str) -> int | None:
        client = self._clients.open(peer, url)
        try:
            return _ask_held_id(client, STATE_S)
        except PeerError as error:
            log.warning("peer_failed", peer=peer, reason=error.reason, task="recovery")
            return None
        finally:
            client.close()

    def _fetch(self, client: PeerClient, peer: str, is_stopping: Callable[[], bool]) -> None:
        """Raises: PeerError."""
        held_id, fetched = _ask_held_id(client, PUSH_S), 0
        while held_id > (last_id := self._last_id()):
            if is_stopping():
                return
            batch = _pull(client, last_id)
            # Nobody can tell whether forgotten ones were ours; of the others we can.
            lost = self._find_lost(batch.items)
            ids = [last_id, *(item.origin_id for item in batch.items)]
            if (
                not lost
                or len(lost) < sum(item.signed is not None for item in batch.items)
                or any(following - one > _MAX_GAP for one, following in pairwise(ids))
            ):
                raise PeerError("claims more than it shows")
            self._database.write(lambda tx: self._wait_for(tx, peer))
            judged = {origin_id: entry.statement for origin_id, entry in lost.items()}
            self._receiver.take(self._ourselves(), batch, judged)
            fetched += len(batch.items)
        self._database.write(lambda tx: store.set_must_answer(tx, peer, must_answer=False))
        log.info("peer_heard", peer=peer, fetched=fetched)

    def _ourselves(self) -> Peer:
        return Peer(self._our_name, "", Protocol.V2, self._signing_keys.all_public())

    def _find_lost(self, items: Iterable[Item]) -> dict[int, Logged]:
        """By id: those that we signed, and have under no id."""
        ours, lost = self._ourselves(), {}
        for item in items:
            statement = None if item.signed is None else ours.judge(item.signed, MAX_INTEGER)
            if isinstance(statement, Statement) and item.signed is not None:
                entry = Logged(self._our_name, item.origin_id, statement, item.signed)
                blind = self._database.keys.blind_index(statement.threepid)
                if not self._database.read(
                    lambda tx, blind=blind, leaf=item.leaf: cursors.is_own_leaf(  # type: ignore[misc]
                        tx, self._our_name, blind, leaf
                    )
                ):
                    lost[item.origin_id] = entry
        return lost

    def _restate(self, tx: Transaction, lost: dict[int, Logged]) -> int:
        blind_index = self._database.keys.blind_index
        collided = [
            Logged.load(self._our_name, item.origin_id, item.signed, None)
            for item in cursors.own_by_id(tx, self._our_name, list(lost))
            if item.signed is not None
        ]
        blinds = {
            entry.statement.threepid: blind_index(entry.statement.threepid)
            for entry in [*collided, *lost.values()]
        }
        held = lock_current(tx, list(blinds.values()))
        wanted: dict[ThreePid, UserId | None] = {}
        for threepid, entry in newest([*collided, *lost.values()]).items():
            current = held.get(blinds[threepid])
            if current is None or entry.version >= current.version:
                wanted[threepid] = entry.statement.mxid
        if wanted:
            self._associations.publish_all(tx, wanted, tell=False)
        return len(wanted)

    def _wait_for(self, tx: Transaction, peer: str) -> None:
        store.set_must_answer(tx, peer, must_answer=True)
        set_recovering(tx, self._our_name, recovering=True)

    def _last_id(self) -> int:
        last_id, _ = self._database.read(lambda tx: cursors.own_state(tx, self._our_name))
        return last_id


def _ask_held_id(client: PeerClient, timeout_s: float) -> int:
    """Raises: PeerError."""
    answer = client.ask("state", b"{}", timeout_s)
    if isinstance(answer, Conflicted):
        raise PeerError("malformed answer")
    return natural(answer.get("last_id"))


def _pull(client: PeerClient, after: int) -> Batch:
    """What follows `after`, at least one statement. Raises: PeerError."""
    answer = client.ask("pull", encode_canonical({"after": after}), PUSH_S)
    if isinstance(answer, Conflicted):
        raise PeerError("malformed answer")
    try:
        batch = Batch.decode(answer)
    except InvalidParameter as error:
        raise PeerError("malformed answer") from error
    if batch.after != after or not batch.items:
        raise PeerError("malformed answer")
    return batch
