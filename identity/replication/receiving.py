"""Use cases of a receiver: take what a peer pushes, and take what was refused and is good now.

Rules:
- Signatures are checked before the transaction, which then holds no lock for longer than it has to.
- One transaction takes a whole batch, under the lock of its origin: log, chain, view, index,
  outbox, quarantine and alarms. It reads and writes in bulk. Where it dies nothing has happened;
  twice, on one host or on two, is as good as once.
- A binding that arrives fulfils the invitations that wait here; of anything else homeservers hear
  from the server that stated it.

Source: docs/replication.md, "push".
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from identity.associations import store as associations_store
from identity.associations.service import Associations
from identity.associations.statement import Logged, Statement
from identity.associations.store import Current
from identity.clock import MINUTE_MS, Clock
from identity.database import Database, Transaction
from identity.errors import PeerAhead, UnknownPeer
from identity.replication import store
from identity.replication.batch import Batch, Item, Plan, plan
from identity.replication.peer import Peer, Protocol, Reason, Refusal
from identity.replication.store import Quarantined

log = structlog.get_logger(__name__)

# Of the refused statements of one origin so many are kept with what they say; of more, which only
# a peer gone mad would send, the leaf.
MAX_KEPT_TEXTS: Final = 10_000
# More replacements of what others stated in a minute than people could have asked for.
MAX_REPLACEMENTS: Final = 100
_JUDGED_AT_ONCE: Final = 1_000

# By id: what a statement says, or why it is refused.
Judged = Mapping[int, Statement | Refusal]


@dataclass(frozen=True, slots=True)
class Received:
    """`last_id`: the last id of the peer's that is held now. `refused`: those of the batch that
    are in quarantine, by id."""

    last_id: int
    refused: dict[int, Reason]


@dataclass(slots=True)
class _Sorted:
    """What a transaction does with the items of a batch."""

    added: list[Logged] = field(default_factory=list)
    refilled: list[Logged] = field(default_factory=list)
    bare: list[Item] = field(default_factory=list)
    refused: list[tuple[Item, Refusal]] = field(default_factory=list)


class Receiver:
    """Takes statements of peers. One per process; thread-safe."""

    def __init__(self, database: Database, associations: Associations, clock: Clock) -> None:
        self._database = database
        self._associations = associations
        self._clock = clock

    def receive(self, peer: Peer, batch: Batch) -> Received:
        """Judge and take a batch that the peer has sent.

        Raises: PeerAhead when statements before it are missing here, and then takes nothing.
        """
        now_ms = self._clock.now_ms()
        judged = {
            item.origin_id: peer.judge(item.signed, now_ms)
            for item in batch.items
            if item.signed is not None
        }
        return self.take(peer, batch, judged)

    def take(self, peer: Peer, batch: Batch, judged: Judged, *, tell: bool = True) -> Received:
        """The same for statements that were judged: those of `batch` that have a text.

        `tell`: homeservers hear of bindings that they have to hear of. Raises: PeerAhead.
        """
        received, alarms = self._database.write(
            lambda tx: self._take(tx, peer, batch, judged, tell=tell)
        )
        for kind, count in alarms.items():
            log.error("replication_alarm", peer=peer.name, kind=kind, count=count)
        return received

    def retry(self, name: str) -> tuple[int, int]:
        """Judge a peer's refused statements again; returns how many were, and how many were taken.

        Raises: UnknownPeer.
        """
        peer = self._database.read(lambda tx: store.find_peer(tx, name))
        if peer is None:
            raise UnknownPeer
        after, seen, taken = (0, b""), 0, 0
        while held := self._database.read(
            lambda tx, after=after: store.refused_after(tx, name, after, _JUDGED_AT_ONCE)  # type: ignore[misc]
        ):
            seen += len(held)
            taken += self._take_back(peer, held)
            after = (held[-1].origin_id, held[-1].leaf)
        return seen, taken

    def take_due(self) -> int:
        """Take statements from the future that are due now, at most 1,000; returns how many were due.

        Any number of couriers may do so at once. To be called until it is 0.
        """
        now_ms = self._clock.now_ms()
        held = self._database.read(lambda tx: store.find_due(tx, now_ms, _JUDGED_AT_ONCE))
        for name in {one.origin for one in held}:
            peer = self._database.read(lambda tx, name=name: store.find_peer(tx, name))  # type: ignore[misc]
            if peer is not None:
                self._take_back(peer, [one for one in held if one.origin == name])
        return len(held)

    def _take(
        self, tx: Transaction, peer: Peer, batch: Batch, judged: Judged, *, tell: bool
    ) -> tuple[Received, Counter[str]]:
        now_ms = self._clock.now_ms()
        associations_store.ensure_origin(tx, peer.name)
        origin = associations_store.lock_origin(tx, peer.name)
        old_ids = [item.origin_id for item in batch.items if item.origin_id <= origin.last_id]
        known = store.find_known(tx, peer.name, old_ids)
        planned = plan(origin.last_id, origin.head, known, batch)
        if planned is None:
            raise PeerAhead(origin.last_id)
        held = self._lock_view(tx, judged.values())
        chosen = self._sort(peer, planned, judged, held)
        keys = self._database.keys
        associations_store.append(tx, keys, chosen.added)
        associations_store.append_leaves(tx, peer.name, chosen.bare)
        associations_store.refill(tx, keys, chosen.refilled)
        applied = self._associations.follow(tx, [*chosen.added, *chosen.refilled], held, tell=tell)
        if planned.new:
            associations_store.set_origin(tx, peer.name, planned.last_id, planned.head)
        # What was refused before is in quarantine already, and no news.
        before = store.find_refused(tx, peer.name, old_ids) if old_ids else {}
        refused = [
            (item, refusal)
            for item, refusal in chosen.refused
            if (item.origin_id, item.leaf) not in before
        ]
        self._put_refused(tx, peer.name, refused, now_ms)
        alarms = _find_alarms(peer, planned, refused)
        alarms["replacements"] += self._count_replacements(tx, peer.name, applied, held, now_ms)
        for kind, count in alarms.items():
            if count:
                store.raise_alarm(tx, peer.name, kind, count, now_ms)
        reasons = {(item.origin_id, item.leaf): refusal.reason for item, refusal in refused}
        reasons |= before
        named = {
            item.origin_id: reasons[item.origin_id, item.leaf]
            for item in batch.items
            if (item.origin_id, item.leaf) in reasons
        }
        return Received(planned.last_id, named), +alarms

    def _lock_view(
        self, tx: Transaction, judged: Iterable[Statement | Refusal]
    ) -> dict[bytes, Current]:
        blind_index = self._database.keys.blind_index
        blinds = {blind_index(one.threepid) for one in judged if isinstance(one, Statement)}
        return associations_store.lock_current(tx, list(blinds))

    def _sort(
        self, peer: Peer, planned: Plan, judged: Judged, held: Mapping[bytes, Current]
    ) -> _Sorted:
        chosen = _Sorted(refused=[(item, Refusal(Reason.FORK)) for item in planned.forks])
        for items, accepted, is_in_log in (
            (planned.missing, chosen.added, False),
            (planned.new, chosen.added, False),
            (planned.refilled, chosen.refilled, True),
        ):
            for item in items:
                verdict = self._judge_place(peer, item, judged.get(item.origin_id), held)
                if isinstance(verdict, Logged):
                    accepted.append(verdict)
                    continue
                if verdict is not None:
                    chosen.refused.append((item, verdict))
                if not is_in_log:
                    chosen.bare.append(item)
        return chosen

    def _judge_place(
        self,
        peer: Peer,
        item: Item,
        judged: Statement | Refusal | None,
        held: Mapping[bytes, Current],
    ) -> Logged | Refusal | None:
        """None for a statement without a text."""
        if item.signed is None or not isinstance(judged, Statement):
            return judged if isinstance(judged, Refusal) else None
        entry = Logged(peer.name, item.origin_id, judged, item.signed)
        if peer.replaces_all:
            return entry
        current = held.get(self._database.keys.blind_index(judged.threepid))
        if peer.may_supersede(entry.version, None if current is None else current.version):
            return entry
        return Refusal(Reason.SUPERSEDE)

    def _put_refused(
        self,
        tx: Transaction,
        origin: str,
        refused: list[tuple[Item, Refusal]],
        now_ms: int,
    ) -> None:
        if refused:
            room = store.count_texts(tx, origin) + len(refused) <= MAX_KEPT_TEXTS
            store.put_refused(tx, origin, refused, now_ms, with_text=room)

    def _count_replacements(
        self,
        tx: Transaction,
        peer: str,
        applied: Mapping[bytes, Logged],
        held: Mapping[bytes, Current],
        now_ms: int,
    ) -> int:
        """Threat 41: who takes over what others stated is noticed. Returns 1 where it is too much."""
        replaced = sum(
            blind in held
            and held[blind].version.origin != peer
            and held[blind].mxid is not None
            and held[blind].mxid != (entry.statement.mxid and str(entry.statement.mxid))
            for blind, entry in applied.items()
        )
        if not replaced:
            return 0
        since_ms, count = store.find_replacements(tx, peer)
        if not 0 <= now_ms - since_ms < MINUTE_MS:
            since_ms, count = now_ms, 0
        store.set_replacements(tx, peer, since_ms, count + replaced)
        return int(count < MAX_REPLACEMENTS <= count + replaced)

    def _take_back(self, peer: Peer, held: list[Quarantined]) -> int:
        """Judge refused statements of the peer again; returns how many were taken."""
        now_ms = self._clock.now_ms()
        judged = [(one, peer.judge(one.signed, now_ms)) for one in held if one.signed is not None]
        return self._database.write(lambda tx: self._release(tx, peer, judged))

    def _release(
        self, tx: Transaction, peer: Peer, judged: list[tuple[Quarantined, Statement | Refusal]]
    ) -> int:
        associations_store.lock_origin(tx, peer.name)
        ids = [one.origin_id for one, _ in judged]
        leaves = associations_store.find_leaves(tx, peer.name, ids)
        still = store.find_refused(tx, peer.name, ids)
        view = self._lock_view(tx, [verdict for _, verdict in judged])
        entries, released = [], []
        for one, judgement in judged:
            # Another courier may have taken it meanwhile; and a fork stays one.
            if (one.origin_id, one.leaf) not in still or leaves[one.origin_id][0] != one.leaf:
                continue
            item = Item(one.origin_id, one.leaf, one.signed)
            verdict = self._judge_place(peer, item, judgement, view)
            if isinstance(verdict, Logged):
                entries.append(verdict)
                released.append(one)
            elif verdict is not None:
                store.set_refusal(tx, one, verdict)
        associations_store.refill(tx, self._database.keys, entries)
        self._associations.follow(tx, entries, view, tell=True)
        store.release(tx, released)
        return len(entries)


def _find_alarms(peer: Peer, planned: Plan, refused: list[tuple[Item, Refusal]]) -> Counter[str]:
    """What an operator should know of, and how often it has happened in one batch."""
    alarms = Counter(
        "fork" if refusal.reason is Reason.FORK else "refused" for _, refusal in refused
    )
    # A Sydent leaves out what it has replaced, and may still send it: nothing was lost.
    alarms["lost"] = len(planned.missing) if peer.protocol is Protocol.V2 else 0
    alarms["chain"] = int(planned.head_differs)
    return alarms
