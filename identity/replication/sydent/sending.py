"""Use cases of a sender to Sydent peers.

Leases, cursors and back-off are those of v2. Other than there:
- Only what counts at this moment is sent; the cursor passes over the rest. So a peer may lack what
  was stated and replaced in between, which is what a Sydent itself sends to its peers.
- A peer says nothing of what it holds: any 2xx means that it took all of the push. In place of a
  comparison an empty push asks, as often, whether it is there.
- A push that is refused for some of its statements, by `failed_ids`, is sent once more without
  them, and the cursor passes over them; an alarm counts them, the log names their ids. Otherwise one statement that the
  peer will never take would hold up all that follow. Refused for all of them it is sent again
  later, like any that fails: then it is our key that the peer does not know.
- Every statement carries a signature by `ed25519:0`, the only one that a Sydent looks at.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from random import Random, SystemRandom
from typing import Any

import structlog

from identity.clock import Clock
from identity.database import Database, Transaction
from identity.keys.service import SigningKeys
from identity.replication import cursors
from identity.replication.chain import EMPTY_HEAD
from identity.replication.client import PeerError
from identity.replication.cursors import Cursor
from identity.replication.peer import Protocol
from identity.replication.schedule import delay_ms, is_comparison_due
from identity.replication.store import raise_alarm
from identity.replication.sydent import store
from identity.replication.sydent.client import SydentClient, SydentClients
from identity.replication.sydent.wire import KEY_ID, MAX_PUSHED, encode_push

log = structlog.get_logger(__name__)


class SydentSending:
    """Sends to Sydent peers. One per process; `attend` is called by one thread a peer."""

    def __init__(
        self,
        database: Database,
        signing_keys: SigningKeys,
        clients: SydentClients,
        our_name: str,
        batch_size: int,
        clock: Clock,
        holder: str,
        random: Random | None = None,
    ) -> None:
        """`holder`: the name under which we hold leases, ours alone."""
        self._database = database
        self._signing_keys = signing_keys
        self._clients = clients
        self._our_name = our_name
        self._batch_size = min(batch_size, MAX_PUSHED)
        self._clock = clock
        self._holder = holder
        self._random = random or SystemRandom()

    def due(self) -> list[str]:
        """The peers that there is something to do for: one cheap query."""
        now_ms = self._clock.now_ms()
        return self._database.read(
            lambda tx: cursors.due_peers(tx, self._our_name, Protocol.SYDENT, self._holder, now_ms)
        )

    def attend(self, peer: str, is_stopping: Callable[[], bool]) -> None:
        """Send until the peer has everything or fails, unless another host is at it."""
        now_ms = self._clock.now_ms()
        cursor = self._database.write(lambda tx: cursors.lease(tx, peer, self._holder, now_ms))
        if cursor is None:
            return
        following: Cursor | None = cursor
        try:
            client = self._clients.open(cursor.url)
            while following is not None and not is_stopping():
                cursor = following
                following = self._step(client, cursor)
        except PeerError as error:
            self._fail(cursor, error.reason)

    def _step(self, client: SydentClient, cursor: Cursor) -> Cursor | None:
        """One request, or two; the cursor after it, None where there is nothing more to do.

        Raises: PeerError.
        """

        def read(tx: Transaction) -> tuple[int, list[tuple[int, str]]]:
            last_id, _ = cursors.own_state(tx, self._our_name)
            after, limit = cursor.acknowledged_id, self._batch_size
            return last_id, store.own_winners(tx, self._our_name, after, last_id, limit)

        last_id, winners = self._database.read(read)
        if not winners and not is_comparison_due(cursor.compared_at_ms, self._clock.now_ms()):
            self._database.write(
                lambda tx: cursors.pass_over(tx, cursor.peer, self._holder, last_id)
            )
            return None
        not_taken = self._push(client, winners)
        if not_taken:
            log.error("statements_not_taken", peer=cursor.peer, ids=not_taken)
        now_ms = self._clock.now_ms()
        if cursor.is_suspended:
            return self._rejoin(cursor, now_ms)
        # Behind a push that was not full there is nothing else for the peer.
        full = len(winners) == self._batch_size
        moved = replace(
            cursor,
            acknowledged_id=winners[-1][0] if full else last_id,
            head=None,
            compared_at_ms=now_ms,
        )

        def move(tx: Transaction) -> bool:
            held = cursors.move(tx, moved, self._holder, now_ms, keep=full)
            if held and not_taken:
                raise_alarm(tx, cursor.peer, "not taken", len(not_taken), now_ms)
            return held

        return moved if self._database.write(move) and full else None

    def _push(self, client: SydentClient, winners: list[tuple[int, str]]) -> list[int]:
        """Without any, it only asks whether the peer is there. The ids that it did not take.

        Raises: PeerError.
        """
        signed = {origin_id: self._with_signature(text) for origin_id, text in winners}
        refused = client.push(encode_push(signed.items()))
        if not refused:
            return []
        failed = refused & signed.keys()
        if not failed or len(failed) == len(signed):
            raise PeerError("answered 400 M_VERIFICATION_FAILED")
        rest = [(origin_id, signed[origin_id]) for origin_id in signed if origin_id not in failed]
        if client.push(encode_push(rest)):
            # It found fault with others now, so it is not the statements that are at fault.
            raise PeerError("answered 400 M_VERIFICATION_FAILED twice")
        return sorted(failed)

    def _with_signature(self, text: str) -> dict[str, Any]:
        """Raises: PeerError where we have no such key any more."""
        signed: dict[str, Any] = json.loads(text)
        if KEY_ID in signed["signatures"].get(self._our_name, {}):
            return signed
        key = self._signing_keys.find_held(KEY_ID)
        if key is None:
            raise PeerError(f"this server has no key {KEY_ID}")
        return key.sign(signed, self._our_name)

    def _rejoin(self, cursor: Cursor, now_ms: int) -> Cursor | None:
        """It was given up, so what it lacks is not known: it gets everything."""
        held = self._database.write(
            lambda tx: cursors.rejoin(tx, cursor.peer, self._holder, EMPTY_HEAD, now_ms)
        )
        return replace(cursor, acknowledged_id=0, is_suspended=False) if held else None

    def _fail(self, cursor: Cursor, error: str) -> None:
        now_ms = self._clock.now_ms()
        delay = delay_ms(cursor.failures + 1, cursor.well_at_ms, now_ms, self._random)
        self._database.write(
            lambda tx: cursors.fail(tx, cursor.peer, self._holder, now_ms + delay, error, now_ms)
        )
        log.warning("peer_failed", peer=cursor.peer, reason=error, delay_ms=delay)
