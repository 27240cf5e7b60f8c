"""Use cases of notifications: deliver what is due, show what is not delivered.

How one goes out: a lease is taken in one transaction, then the homeserver is called, then the
outcome is recorded in a second one. A process that dies in between leaves a lease that runs
out, and the attempt is made again; once a 2xx is recorded it never is.

Source: Matrix Server-Server API, "Third-party invites"; Identity Service API, "Invitation
storage".
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta
from random import Random, SystemRandom
from typing import Any, Final

import structlog

from identity.associations.statement import given_out
from identity.clock import SECOND_MS, Clock
from identity.database import PURGE_ROWS, Database, Transaction
from identity.errors import HomeserversBusy, HomeserverUnreachable, InvalidRequest
from identity.federation.homeserver import MAX_ONBIND_S, HomeserverClient
from identity.invites import store as invites_store
from identity.keys.service import SigningKeys
from identity.lru import LruCache
from identity.mxid import UserId
from identity.onbind import store
from identity.onbind.schedule import METHODS, Verdict, delay_ms, judge
from identity.onbind.store import Delivery
from identity.strict_json import encode_canonical

log = structlog.get_logger(__name__)

LEASE_MS: Final = 30 * SECOND_MS
# How long a delivery may take: POST and PUT. No later one is begun under a lease.
_CALL_MS: Final = int(2 * MAX_ONBIND_S + 2) * SECOND_MS
_MAX_SERVERS: Final = 10_000


class Notifications:
    """Tells homeservers of bindings."""

    def __init__(
        self,
        database: Database,
        signing_keys: SigningKeys,
        homeservers: HomeserverClient,
        server_name: str,
        clock: Clock,
        random: Random | None = None,
    ) -> None:
        self._database = database
        self._signing_keys = signing_keys
        self._homeservers = homeservers
        self._server_name = server_name
        self._clock = clock
        self._random = random or SystemRandom()
        # What each homeserver took last.
        self._methods: LruCache[str, str] = LruCache(_MAX_SERVERS)

    def lease_due(self, limit: int) -> dict[str, list[Delivery]]:
        """Up to `limit` notifications that are ours for LEASE_MS, by homeserver."""
        now_ms = self._clock.now_ms()
        if not self._database.read(lambda tx: store.is_any_due(tx, now_ms)):
            return {}
        leased = self._database.write(
            lambda tx: store.lease_due(tx, now_ms, now_ms + LEASE_MS, limit)
        )
        grouped: dict[str, list[Delivery]] = defaultdict(list)
        for delivery in leased:
            grouped[str(UserId.parse(delivery.mxid).server)].append(delivery)
        return grouped

    def deliver(self, leased: Iterable[Delivery], leased_at_ms: int) -> None:
        """Call one homeserver for each of its notifications, until one finds it not answering."""
        silent = False
        for delivery in leased:
            if silent:
                self._put_off(delivery, "homeserver not answering")
            elif self._clock.now_ms() > leased_at_ms + LEASE_MS - _CALL_MS:
                # It keeps its place, and is left to the next courier.
                self._put_off(delivery, "lease over", delivery.next_try_at_ms)
            else:
                silent = not self._deliver_one(delivery)

    def undelivered(self, limit: int = 1_000) -> list[Delivery]:
        """What is on its way and what is dead, oldest first."""
        return self._database.read(lambda tx: store.list_undelivered(tx, limit))

    def retry(self, delivery_id: str) -> None:
        """Bring a dead letter back to life. Raises: InvalidRequest when there is none."""
        now_ms = self._clock.now_ms()
        if not self._database.write(lambda tx: store.retry(tx, delivery_id, now_ms)):
            raise InvalidRequest("No dead delivery has that id")

    def purge(self, kept: timedelta) -> int:
        """Delete notifications that ended well so long after they were made, at most PURGE_ROWS."""
        before_ms = self._clock.now_ms() - kept // timedelta(milliseconds=1)
        return self._database.write(lambda tx: store.delete_ended(tx, before_ms, PURGE_ROWS))

    def _deliver_one(self, delivery: Delivery) -> bool:
        """False if the homeserver did not answer."""
        if not self._database.read(lambda tx: store.is_open(tx, delivery.delivery_id)):
            # Nobody is told that the 3PID is whose it is no more.
            return True
        server = UserId.parse(delivery.mxid).server
        body = self._body(delivery)
        if body is None:
            self._end(delivery, "stale", "the invitation is revoked, taken up or gone")
            return True
        known = self._methods.find(str(server))
        try:
            for method in sorted(METHODS, key=lambda method: method != known):
                status = self._homeservers.send_onbind(server, body, method)
                verdict = judge(status)
                if verdict is not Verdict.TRY_OTHER:
                    break
        except HomeserversBusy:
            self._put_off(delivery, "too many calls at once")
            return True
        except HomeserverUnreachable as error:
            self._fail(delivery, str(error))
            return False
        match verdict:
            case Verdict.DELIVERED:
                self._methods.put(str(server), method)
                self._end(delivery, "delivered", None)
            case Verdict.FINAL | Verdict.TRY_OTHER:
                self._end(delivery, "dead", f"answered {status}")
            case Verdict.TRY_AGAIN:
                self._fail(delivery, f"answered {status}")
        return True

    def _body(self, delivery: Delivery) -> bytes | None:
        """The whole signed notification; None if its invitation need not be told any more."""
        association = given_out(delivery.signed)
        del association["signatures"]
        invites = []
        if delivery.invite is not None:
            told = self._invite(delivery.invite, delivery.mxid, association)
            if told is None:
                return None
            invites.append(told)

        def sign(value: dict[str, Any]) -> dict[str, Any]:
            return self._database.read(self._signing_keys.active).sign(value, self._server_name)

        return encode_canonical(sign({**association, "invites": invites}))

    def _invite(
        self, token_hash: bytes, mxid: str, association: dict[str, Any]
    ) -> dict[str, Any] | None:
        invite = self._database.read(lambda tx: invites_store.find_invite(tx, token_hash))
        if invite is None or invite.revoked_at_ms is not None:
            return None
        if invite.delivered_at_ms is not None or invite.signed_for == mxid:
            # Told before, or taken up by the link in its mail: its user may be in the room.
            return None
        signed: dict[str, Any] = {"mxid": mxid, "token": invite.token}
        # By the key that the room's event names, and by the current one.
        for key in self._signing_keys.all_held(invite.key_id):
            signed = key.sign(signed, self._server_name)
        return {
            "medium": association["medium"],
            "address": association["address"],
            "mxid": mxid,
            "room_id": invite.room_id,
            "sender": invite.sender,
            "token": invite.token,
            "signed": signed,
        }

    def _end(self, delivery: Delivery, outcome: str, error: str | None) -> None:
        now_ms = self._clock.now_ms()

        def work(tx: Transaction) -> None:
            store.end(tx, delivery.delivery_id, outcome, error)
            if outcome == "delivered" and delivery.invite is not None:
                invites_store.set_delivered(tx, delivery.invite, now_ms)

        self._database.write(work)
        log.info("onbind_ended", delivery=delivery.delivery_id, outcome=outcome, reason=error)

    def _fail(self, delivery: Delivery, error: str) -> None:
        delay = delay_ms(delivery.tries + 1, self._random)
        if delay is None:
            self._end(delivery, "dead", error)
            return
        at_ms = self._clock.now_ms() + delay
        self._database.write(lambda tx: store.postpone(tx, delivery.delivery_id, at_ms, error))
        log.info("onbind_postponed", delivery=delivery.delivery_id, reason=error, delay_ms=delay)

    def _put_off(self, delivery: Delivery, reason: str, at_ms: int | None = None) -> None:
        """Not tried: it counts for nothing. Due again in a second, if not `at_ms`."""
        next_try_at_ms = at_ms or self._clock.now_ms() + SECOND_MS
        self._database.write(lambda tx: store.put_off(tx, delivery, next_try_at_ms))
        log.debug("onbind_put_off", delivery=delivery.delivery_id, reason=reason)
