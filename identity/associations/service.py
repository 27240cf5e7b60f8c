"""Use cases of associations: publish, revoke, look at one, rebuild.

Rules:
- One transaction makes a statement, signs it, numbers it, moves the view and the index.
- The number is taken last but for what depends on it, under the lock of the origin, so ids
  become visible in the order of their numbers and the lock is held only shortly.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from identity.associations import store
from identity.associations.statement import (
    Forgotten,
    Logged,
    Statement,
    encode_signed,
    given_out,
    newest_by,
)
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
_Entry = TypeVar("_Entry", bound=Logged | Forgotten)


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
        signed = given_out(logged.signed)
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
        self.follow(tx, logged, held, tell=tell)
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
                winners = self._newest(batch)
                self._apply(tx, winners, store.lock_current(tx, list(winners)))
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

    def follow(
        self,
        tx: Transaction,
        logged: Iterable[Logged],
        held: Mapping[bytes, Current],
        *,
        tell: bool,
    ) -> Mapping[bytes, Logged]:
        """Let the view, the index and the outbox follow statements that are in the log.

        `held`: the current view of their 3PIDs, locked. `tell`: homeservers too. Returns those
        that count now, by the blind index of their 3PID.
        """
        applied = self._apply(tx, self._newest(logged), held)
        if tell and applied:
            now_ms = self._clock.now_ms()
            foreign = {
                blind for blind, entry in applied.items() if entry.origin != self._server_name
            }
            silent = foreign - outbox.find_concerned(tx, foreign, now_ms) if foreign else foreign
            for blind, entry in applied.items():
                if blind in silent:
                    continue
                previous_mxid = held[blind].mxid if blind in held else None
                ours = blind not in foreign
                outbox.follow(
                    tx, blind, entry, previous_mxid=previous_mxid, ours=ours, now_ms=now_ms
                )
        return applied

    def drop(self, tx: Transaction, origin: str, origin_ids: Sequence[int]) -> int:
        """Forget statements that are bindings here, and no more at their origin.

        Nobody is bound by them any more, and what they replaced does not come back. Those that are
        no bindings here are left alone. Returns how many there were.
        """
        blinds = store.threepids_of(tx, origin, origin_ids)
        wanted = frozenset(origin_ids)
        held = {
            blind: current
            for blind, current in store.lock_current(tx, blinds).items()
            if current.mxid is not None
            and current.version.origin == origin
            and current.version.origin_id in wanted
        }
        dropped = {blind: Forgotten(blind, current.version) for blind, current in held.items()}
        self._apply(tx, dropped, held)
        store.forget(tx, origin, [entry.version.origin_id for entry in dropped.values()])
        for blind in outbox.find_concerned(tx, dropped, self._clock.now_ms()):
            outbox.end(tx, blind)
        return len(dropped)

    def _newest(self, entries: Iterable[_Entry]) -> dict[bytes, _Entry]:
        """The entry that counts for each 3PID, by its blind index."""
        return newest_by((self._blind_of(entry), entry) for entry in entries)

    def _blind_of(self, entry: Logged | Forgotten) -> bytes:
        if isinstance(entry, Forgotten):
            return entry.threepid
        return self._database.keys.blind_index(entry.statement.threepid)

    def _apply(
        self, tx: Transaction, winners: Mapping[bytes, _Entry], held: Mapping[bytes, Current]
    ) -> dict[bytes, _Entry]:
        """Write into view and index those of `winners` that count; returns them.

        What is as new as what is held is the same statement: it is dropped, or its text is back.
        """
        applied = {
            blind: entry
            for blind, entry in winners.items()
            if blind not in held or entry.version >= held[blind].version
        }
        if not applied:
            return applied
        if not store.put_current(tx, applied, held):
            # A 3PID that nobody had bound was bound by someone else while we were at work.
            raise Conflict
        index.follow(tx, self._database.keys, self._changes(tx, applied, held))
        return applied

    def _changes(
        self, tx: Transaction, winners: Mapping[bytes, _Entry], held: Mapping[bytes, Current]
    ) -> Sequence[Change]:
        bound = {
            blind: held[blind].version
            for blind in winners
            if blind in held and held[blind].mxid is not None
        }
        replaced = store.find_all_logged(tx, bound.values())
        changes = []
        for blind, entry in winners.items():
            version = bound.get(blind)
            before = None if version is None else replaced.get((version.origin, version.origin_id))
            after = None
            if isinstance(entry, Logged) and entry.statement.mxid is not None:
                after = entry.statement.threepid
            changes.append(
                Change(blind, None if before is None else before.statement.threepid, after)
            )
        return changes
