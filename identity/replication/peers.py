"""Use cases of the operator: which servers we replicate with, and how they are.

Rules:
- A peer counts from the moment it is added, on every host: nothing of it is kept in a process.
- Adding it again makes it what is said now: its keys, too. Where it was stays, unless it had been
  given up.
- A peer that is removed states nothing any more. What it has stated stays and counts: its users are
  bound. What was refused of it is forgotten.
"""

from dataclasses import dataclass

from identity.associations import store as associations_store
from identity.clock import Clock
from identity.database import Database, Transaction
from identity.errors import InvalidRequest, KeyNotFound, UnknownPeer
from identity.replication import cursors, store
from identity.replication.peer import Peer, Reason
from identity.replication.store import Status


@dataclass(frozen=True, slots=True)
class Report:
    """One peer. `lag`: how many statements of ours it has not acknowledged; `lag_ms`: how long ago
    the first of them was made. `received_id`: the last id that is held of it. `alarms`: kind to
    (how often, when last)."""

    name: str
    protocol: str
    sending: Status
    lag: int
    lag_ms: int
    received_id: int
    refused: dict[Reason, int]
    alarms: dict[str, tuple[int, int]]


class Peers:
    """The peers of this server."""

    def __init__(self, database: Database, our_name: str, clock: Clock) -> None:
        self._database = database
        self._our_name = our_name
        self._clock = clock

    def add(self, peer: Peer) -> None:
        """Raises: InvalidRequest for ourselves, and for a peer without keys."""
        if peer.name == self._our_name:
            raise InvalidRequest("A server is no peer of its own")
        if not peer.keys:
            raise InvalidRequest("A peer needs at least one key")
        self._database.write(lambda tx: store.put_peer(tx, peer, self._clock.now_ms()))

    def remove(self, name: str) -> None:
        """Raises: UnknownPeer."""
        self._must(self._database.write(lambda tx: store.delete_peer(tx, name)))

    def all(self) -> list[Peer]:
        """In the order of their names."""
        return self._database.read(store.all_peers)

    def find(self, name: str) -> Peer | None:
        return self._database.read(lambda tx: store.find_peer(tx, name))

    def heard_from(self, name: str) -> None:
        """The peer has asked something of us, so it is there: if it was put off, it is tried now."""
        now_ms = self._clock.now_ms()
        if self._database.read(lambda tx: cursors.is_put_off(tx, name, now_ms)):
            self._database.write(lambda tx: cursors.wake(tx, name, now_ms))

    def get(self, name: str) -> Peer:
        """Raises: UnknownPeer."""
        peer = self.find(name)
        if peer is None:
            raise UnknownPeer
        return peer

    def add_key(self, name: str, key_id: str, public_key: bytes) -> None:
        """From now on statements and requests may carry signatures by this key, too.

        Raises: UnknownPeer.
        """

        def work(tx: Transaction) -> None:
            self._must(store.find_peer(tx, name))
            store.put_key(tx, name, key_id, public_key)

        self._database.write(work)

    def remove_key(self, name: str, key_id: str) -> None:
        """Raises: UnknownPeer, KeyNotFound; InvalidRequest for the only key."""

        def work(tx: Transaction) -> None:
            self._must(store.find_peer(tx, name))
            if not store.delete_key(tx, name, key_id):
                raise KeyNotFound
            left = store.find_peer(tx, name)
            if left is None or not left.keys:
                raise InvalidRequest("The only key of a peer cannot be removed; add another first")

        self._database.write(work)

    def confirm(self, name: str) -> None:
        """After a restore: nothing need be asked of this peer. Raises: UnknownPeer."""
        self._must(
            self._database.write(lambda tx: store.set_must_answer(tx, name, must_answer=False))
        )

    def report(self) -> list[Report]:
        """How each peer is."""
        now_ms = self._clock.now_ms()

        def work(tx: Transaction) -> list[Report]:
            return [self._report(tx, peer, now_ms) for peer in store.all_peers(tx)]

        return self._database.read(work)

    def _report(self, tx: Transaction, peer: Peer, now_ms: int) -> Report:
        sending = store.find_status(tx, peer.name)
        lag, oldest_ms = store.find_lag(tx, self._our_name, sending.acknowledged_id)
        held = associations_store.find_origin(tx, peer.name)
        return Report(
            name=peer.name,
            protocol=peer.protocol,
            sending=sending,
            lag=lag,
            lag_ms=0 if oldest_ms is None else max(0, now_ms - oldest_ms),
            received_id=0 if held is None else held.last_id,
            refused=store.count_refused(tx, peer.name),
            alarms=store.alarms_of(tx, peer.name),
        )

    @staticmethod
    def _must(found: object) -> None:
        if not found:
            raise UnknownPeer
