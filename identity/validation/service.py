"""Use cases of validation sessions.

How a message goes out: one transaction inserts the prepared token, then the message is sent
while the caller waits, then a second transaction makes the token live, or deletes it. So
nothing is stored of what was not sent, a token that did arrive always works, and a repeated
request sends nothing.
"""

import hmac
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from identity.accounts.caller import Caller
from identity.associations.service import Associations
from identity.clock import Clock
from identity.config import Config
from identity.database import PURGE_ROWS, Conflict, Database, Transaction
from identity.errors import (
    DestinationRejected,
    Forbidden,
    NotTheTokenOwner,
    SessionUnknown,
    WrongValidationToken,
)
from identity.limits.service import Limiter
from identity.limits.subjects import ip_subjects
from identity.messaging.channel import Channels, Verification
from identity.mxid import UserId
from identity.threepid import Medium, ThreePid
from identity.validation import session as sessions
from identity.validation import store
from identity.validation.session import Session


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What `requestToken` is called with, parsed."""

    threepid: ThreePid
    client_secret: str
    send_attempt: int
    next_link: str | None
    brand: str | None


class Validation:
    """Sessions in which people prove that an address is theirs."""

    def __init__(
        self,
        database: Database,
        associations: Associations,
        limiter: Limiter,
        channels: Channels,
        config: Config,
        clock: Clock,
    ) -> None:
        self._database = database
        self._associations = associations
        self._limiter = limiter
        self._channels = channels
        self._clock = clock
        self._lifetime_ms = config.validation.session_lifetime // timedelta(milliseconds=1)
        self._max_attempts = config.validation.max_wrong_tokens

    def request_token(self, caller: Caller, request: TokenRequest) -> str:
        """Send a token to the address, unless this attempt was answered before; returns the sid.

        Raises: InvalidEmail, InvalidPhoneNumber, DestinationRejected, LimitExceeded,
        EmailNotSent, SmsNotSent, StorageUnavailable. Then nothing is kept.
        """
        channel = self._channels.get(request.threepid.medium)
        if channel is None:
            raise DestinationRejected
        channel.check_served(request.threepid)
        owner = caller.user_id
        scope = self._scope(owner, request)
        answered = self._database.read(lambda tx: self._find_answered(tx, scope, request))
        if answered is not None:
            return answered.sid
        channel.check_ready()
        permits = channel.admit_verification(caller, request.threepid)
        try:
            session, token = self._database.write(
                lambda tx: self._prepare(tx, owner, scope, request)
            )
        except Exception:
            permits.give_back()
            raise
        if token is None:
            permits.give_back()
            return session.sid
        token_hash = self._token_hash(session.sid, token)
        message = Verification(
            threepid=request.threepid,
            sid=session.sid,
            client_secret=request.client_secret,
            token=token,
            requested_by=session.owner,
            brand=request.brand,
        )
        try:
            channel.send_verification(message, permits)
        except Exception:
            # Whatever it was, a fault of ours too: the caller is told that nothing was sent.
            self._database.write(lambda tx: store.delete_token(tx, session.sid, token_hash))
            raise
        self._database.write(lambda tx: store.make_token_live(tx, token_hash))
        return session.sid

    def submit_token(
        self, caller: Caller, medium: Medium, sid: str, client_secret: str, token: str
    ) -> Session:
        """Validate the session; again and again with the same result.

        Raises: SessionUnknown, SessionExpired, WrongValidationToken (a locked session too),
        LimitExceeded, StorageUnavailable.
        """
        session = self._database.read(lambda tx: self._get(tx, sid, client_secret, caller.user_id))
        if session.threepid.medium is not medium:
            raise SessionUnknown
        now_ms = self._clock.now_ms()
        session.check_live(now_ms, self._lifetime_ms)
        session.check_attempts(self._max_attempts)
        # Paid in advance and given back: any number of guesses at once stays in the limit.
        guesses = _guess_subjects(caller)
        self._limiter.spend(*guesses)
        # Counted in a transaction of its own, before the comparison, so that it is counted
        # whatever happens next.
        if not self._database.write(lambda tx: store.count_attempt(tx, sid, self._max_attempts)):
            raise WrongValidationToken
        channel = self._channels.get(medium)
        submitted = self._token_hash(sid, token)
        tokens = self._database.read(lambda tx: store.tokens_of(tx, sid))
        known = sessions.accepted_hashes(medium, tokens, now_ms)
        # Compared with all of them, so that the time says nothing about which.
        if sum(hmac.compare_digest(submitted, value) for value in known) == 0:
            if channel is not None:
                channel.token_refused()
            raise WrongValidationToken
        first = self._database.write(lambda tx: self._validate(tx, sid, now_ms))
        self._limiter.refund(*guesses)
        if first and channel is not None:
            owner = None if session.owner is None else UserId.parse(session.owner)
            channel.token_proved(session.threepid, owner)
        return session

    def get_session(self, sid: str, client_secret: str, medium: Medium) -> Session:
        """For the page that a mailed link opens. Raises: SessionUnknown, SessionExpired."""
        session = self._database.read(lambda tx: self._get(tx, sid, client_secret, None))
        if session.threepid.medium is not medium:
            raise SessionUnknown
        session.check_live(self._clock.now_ms(), self._lifetime_ms)
        return session

    def get_validated(self, caller: Caller, sid: str, client_secret: str) -> tuple[ThreePid, int]:
        """The 3PID and when it was validated, ms since the epoch.

        Raises: SessionUnknown, SessionExpired, SessionNotValidated.
        """
        session = self._database.read(lambda tx: self._get(tx, sid, client_secret, caller.user_id))
        return session.threepid, self._check_validated(session)

    def bind(self, caller: Caller, sid: str, client_secret: str, mxid: UserId) -> dict[str, Any]:
        """Publish the association of the session's 3PID; returns it signed.

        Raises: NotTheTokenOwner, SessionUnknown, SessionExpired, SessionNotValidated.
        """
        if caller.user_id is not None and caller.user_id != mxid:
            raise NotTheTokenOwner

        def work(tx: Transaction) -> dict[str, Any]:
            session = self._get(tx, sid, client_secret, caller.user_id)
            if not session.may_be_bound_to(mxid):
                raise NotTheTokenOwner
            self._check_validated(session)
            return self._associations.publish(tx, session.threepid, mxid)

        return self._database.write(work)

    def unbind(self, sid: str, client_secret: str, threepid: ThreePid, mxid: UserId) -> None:
        """Revoke the association, proved by a session for this very 3PID; idempotent.

        Raises: SessionUnknown, SessionExpired, SessionNotValidated, Forbidden for another 3PID.
        """

        def work(tx: Transaction) -> None:
            session = self._get(tx, sid, client_secret, None)
            self._check_validated(session)
            if session.threepid != threepid:
                raise Forbidden("The session is for another address")
            self._associations.revoke(tx, threepid, mxid)

        self._database.write(work)

    def purge(self, kept: timedelta) -> int:
        """Delete sessions whose time was up so long ago, at most PURGE_ROWS; returns how many."""
        age_ms = self._lifetime_ms + kept // timedelta(milliseconds=1)
        before_ms = self._clock.now_ms() - age_ms
        return self._database.write(
            lambda tx: store.delete_old_sessions(tx, before_ms=before_ms, limit=PURGE_ROWS)
        )

    def _find_answered(
        self, tx: Transaction, scope: bytes, request: TokenRequest
    ) -> Session | None:
        """The session that already has this send attempt, or a higher one.

        One that has expired is of no use to anyone, so it answers nothing.
        """
        session = store.find_newest(tx, scope)
        now_ms = self._clock.now_ms()
        if session is None or not session.is_live(now_ms, self._lifetime_ms):
            return None
        highest = sessions.highest_attempt(store.tokens_of(tx, session.sid), now_ms)
        return session if request.send_attempt <= highest else None

    def _prepare(
        self,
        tx: Transaction,
        owner: UserId | None,
        scope: bytes,
        request: TokenRequest,
    ) -> tuple[Session, str | None]:
        """The session to use and the prepared token; None if another request for the same
        attempt came first."""
        now_ms = self._clock.now_ms()
        # Locked and read at once: a session that took its place while we waited for the lock is
        # not read but met below, as a conflict, and then waited for in its turn.
        newest = store.lock_newest(tx, scope)
        answered = self._find_answered(tx, scope, request)
        if answered is not None:
            return answered, None
        if newest is not None and (
            newest.validated_at_ms is not None or not newest.is_live(now_ms, self._lifetime_ms)
        ):
            store.release_scope(tx, newest.sid)
            newest = None
        if newest is None:
            newest = Session(
                sid=sessions.new_sid(),
                owner=None if owner is None else str(owner),
                threepid=request.threepid,
                client_secret_hash=self._secret_hash(request.client_secret),
                created_at_ms=now_ms,
                validated_at_ms=None,
                attempts=0,
                next_link=request.next_link,
                brand=request.brand,
            )
            if not store.insert_session(tx, self._database.keys, newest, scope):
                raise Conflict
        token = self._new_token(tx, newest)
        token_hash = self._token_hash(newest.sid, token)
        store.prepare_token(tx, newest.sid, request.send_attempt, token_hash, now_ms)
        return newest, token

    def _new_token(self, tx: Transaction, session: Session) -> str:
        """One that the session has not had: six digits come again, and an old code is dead."""
        known = {token.token_hash for token in store.tokens_of(tx, session.sid)}
        while True:
            token = sessions.new_token(session.threepid.medium)
            if self._token_hash(session.sid, token) not in known:
                return token

    def _validate(self, tx: Transaction, sid: str, now_ms: int) -> bool:
        """The token was right; True the first time. Then the attempt was none."""
        store.give_attempt_back(tx, sid)
        return store.set_validated(tx, sid, now_ms)

    def _get(self, tx: Transaction, sid: str, client_secret: str, caller: UserId | None) -> Session:
        session = store.find_session(tx, sid) if sessions.is_sid(sid) else None
        # An unknown sid costs the same comparison as a wrong secret.
        expected = bytes(32) if session is None else session.client_secret_hash
        matches = hmac.compare_digest(self._secret_hash(client_secret), expected)
        if session is None or not matches:
            raise SessionUnknown
        session.check_caller(caller)
        return session

    def _check_validated(self, session: Session) -> int:
        session.check_live(self._clock.now_ms(), self._lifetime_ms)
        return session.get_validated_at_ms()

    def _scope(self, owner: UserId | None, request: TokenRequest) -> bytes:
        return self._database.keys.keyed_hash(
            "session scope",
            "" if owner is None else str(owner),
            request.threepid.medium,
            request.threepid.address,
            request.client_secret,
        )

    def _secret_hash(self, client_secret: str) -> bytes:
        return self._database.keys.keyed_hash("client secret", client_secret)

    def _token_hash(self, sid: str, token: str) -> bytes:
        return self._database.keys.keyed_hash("session token", sid, token)


def _guess_subjects(caller: Caller) -> tuple[tuple[str, str], ...]:
    if caller.user_id is None:
        return ip_subjects("wrong_tokens_ip", caller.ip)
    return (
        ("wrong_tokens_account", str(caller.user_id)),
        ("wrong_tokens_homeserver", caller.user_id.server.host),
    )
