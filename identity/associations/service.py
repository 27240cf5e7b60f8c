"""Use cases of associations: publish, revoke, look at one, rebuild.

Rules:
- One transaction makes a statement, signs it, numbers it, moves the view and the index.
- The number is taken last but for what depends on it, under the lock of the origin, so ids
  become visible in the order of their numbers and the lock is held only shortly.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from identity.associations import store
from identity.associations.statement import Logged, Statement, encode_signed, newest
from identity.associations.store import Current
from identity.clock import Clock
from identity.database import Conflict, Database, Transaction
from identity.errors import InvalidRequest
from identity.keys.service import SigningKeys
from identity.lookup import index
from identity.lookup import store as lookup_store
from identity.lookup.index import Change
from identity.mxid import UserId
from identity.onbind import outbox
from identity.replication.chain import next_head
from identity.replication.digest import digests
from identity.signing import SigningKey
from identity.threepid import ThreePid

_REBUILD_BATCH: Final = 1_000


@dataclass(frozen=True, slots=True)
class OriginDigest:
    """What two servers compare of one origin: last id, head of the chain, range digests."""

    origin: str
    last_id: int
    head: str
    ranges: dict[int, str]


class Associations:
    """The statements that this server makes, and the view of all statements it holds."""

    def __init__(
        self, database: Database, signing_keys: SigningKeys, server_name: str, clock: Clock
    ) -> None:
        self._database = database
        self._signing_keys = signing_keys
        self._server_name = server_name
        self._clock = clock

    def bind(self, threepid: ThreePid, mxid: UserId) -> dict[str, Any]:
        """State that the 3PID belongs to the MXID: the operator's hand, no proof asked.

        Returns the signed association.
        """
        return self._database.write(lambda tx: self.publish(tx, threepid, mxid))

    def unbind(self, threepid: ThreePid, mxid: UserId) -> bool:
        """Revoke, if this MXID is bound, whichever origin stated it; whether it was."""
        return self._database.write(lambda tx: self.revoke(tx, threepid, mxid))

    def find_mxid(self, threepid: ThreePid) -> str | None:
        """Who is bound now."""
        blind = self._database.keys.blind_index(threepid)
        current = self._database.read(lambda tx: store.find_current(tx, blind))
        now_ms = self._clock.now_ms()
        return current.mxid if current is not None and current.is_live(now_ms) else None

    def find_signed(self, threepid: ThreePid) -> dict[str, Any] | None:
        """The association that is valid now: six keys and `signatures`, ours among them."""
        blind = self._database.keys.blind_index(threepid)

        def work(tx: Transaction) -> tuple[Logged | None, SigningKey | None]:
            current = store.find_current(tx, blind)
            if current is None or not current.is_live(self._clock.now_ms()):
                return None, None
            return store.find_logged(tx, current.version), self._signing_keys.active(tx)

        logged, key = self._database.read(work)
        if logged is None or key is None:
            return None
        signed: dict[str, Any] = json.loads(logged.signed)
        # Dendrite looks for the signature of the server that it asked.
        return signed if logged.origin == self._server_name else key.sign(signed, self._server_name)

    def find_mxids(self, asked: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
        """(medium, address, MXID) of those that are bound now, as they were asked for."""
        found = []
        for medium, address in asked:
            try:
                mxid = self.find_mxid(ThreePid.parse(medium, address))
            except InvalidRequest:
                continue
            if mxid is not None:
                found.append((medium, address, mxid))
        return found

    def revoke(self, tx: Transaction, threepid: ThreePid, mxid: UserId) -> bool:
        """The same as `unbind`, inside the caller's transaction."""
        blind = self._database.keys.blind_index(threepid)
        current = store.lock_current(tx, [blind]).get(blind)
        if current is None or current.mxid != str(mxid):
            return False
        self.publish(tx, threepid, None)
        return True

    def publish(self, tx: Transaction, threepid: ThreePid, mxid: UserId | None) -> dict[str, Any]:
        """Make, sign, log and apply one statement of ours, newer than every other one.

        Returns the signed JSON: six keys and `signatures`.
        """
        return self.publish_all(tx, {threepid: mxid})[0]

    def publish_all(
        self, tx: Transaction, wanted: Mapping[ThreePid, UserId | None], *, tell: bool = True
    ) -> list[dict[str, Any]]:
        """The same for several 3PIDs, in one go; returns the signed JSON of each, in order.

        `tell`: homeservers hear of it.
        """
        keys, now_ms = self._database.keys, self._clock.now_ms()
        blinds = {threepid: keys.blind_index(threepid) for threepid in wanted}
        held = store.lock_current(tx, list(blinds.values()))
        signing_key = self._signing_keys.active(tx)
        made = []
        for threepid, mxid in wanted.items():
            current = held.get(blinds[threepid])
            newest_ts_ms = None if current is None else current.version.ts_ms
            statement = Statement.make(threepid, mxid, now_ms, newest_ts_ms)
            made.append((statement, signing_key.sign(statement.to_json(), self._server_name)))
        last_id, head = store.allocate_ids(tx, self._server_name, len(made))
        logged = [
            Logged(self._server_name, origin_id, statement, encode_signed(signed))
            for origin_id, (statement, signed) in enumerate(made, start=last_id + 1)
        ]
        store.append(tx, keys, logged)
        for entry in logged:
            head = next_head(head, entry.origin_id, entry.leaf)
        store.set_head(tx, self._server_name, head)
        self._apply(tx, logged, held, tell=tell)
        return [signed for _, signed in made]

    def rebuild(self, progress: Callable[[int], None] = lambda _: None) -> int:
        """Make the view and the index anew from the log; returns the number of statements.

        One transaction: readers see the old state until it commits.
        """

        def work(tx: Transaction) -> int:
            store.lock_origins(tx)
            store.clear_current(tx)
            lookup_store.clear_index(tx)
            count = 0
            for batch in store.read_log(tx, _REBUILD_BATCH):
                blinds = [
                    self._database.keys.blind_index(item.statement.threepid) for item in batch
                ]
                self._apply(tx, batch, store.lock_current(tx, blinds), tell=False)
                count += len(batch)
                progress(len(batch))
            return count

        return self._database.write(work, patient=True)

    def count_log(self) -> int:
        """How many statements a rebuild reads."""
        return self._database.read(store.count_log)

    def digest(self) -> list[OriginDigest]:
        """Of every origin; equal on two servers that hold the same."""

        def work(tx: Transaction) -> list[OriginDigest]:
            return [
                OriginDigest(origin, last_id, head.hex(), digests(store.live_leaves(tx, origin)))
                for origin, last_id, head in store.origin_states(tx)
            ]

        return self._database.write(work, patient=True)

    def _apply(
        self,
        tx: Transaction,
        logged: Iterable[Logged],
        held: dict[bytes, Current],
        *,
        tell: bool,
    ) -> None:
        """Let the view, the index and the outbox follow statements that are in the log.

        `held`: the current view of their 3PIDs, locked. `tell`: homeservers too.
        """
        blind_index = self._database.keys.blind_index
        winners = {
            blind: entry
            for threepid, entry in newest(logged).items()
            if (blind := blind_index(threepid)) not in held or entry.version > held[blind].version
        }
        if not winners:
            return
        if not store.put_current(tx, winners, held):
            # A 3PID that nobody had bound was bound by someone else while we were at work.
            raise Conflict
        index.follow(tx, self._database.keys, self._changes(tx, winners, held))
        if tell:
            now_ms = self._clock.now_ms()
            for blind, entry in winners.items():
                previous_mxid = held[blind].mxid if blind in held else None
                ours = entry.origin == self._server_name
                outbox.follow(
                    tx, blind, entry, previous_mxid=previous_mxid, ours=ours, now_ms=now_ms
                )

    def _changes(
        self, tx: Transaction, winners: dict[bytes, Logged], held: dict[bytes, Current]
    ) -> Sequence[Change]:
        changes = []
        for blind, entry in winners.items():
            before = None
            if blind in held and held[blind].mxid is not None:
                replaced = store.find_logged(tx, held[blind].version)
                before = None if replaced is None else replaced.statement.threepid
            threepid = entry.statement.threepid
            after = threepid if entry.statement.mxid is not None else None
            changes.append(Change(blind, before, after))
        return changes
