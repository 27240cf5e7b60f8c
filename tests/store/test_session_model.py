"""The service of validation sessions against a small model of it, in any order of events.

The model knows the rules of identity/validation/session.py and decisions 9 to 11, and nothing of
databases; whatever is asked of both, they agree, and the rows say what the model says.
"""

import itertools
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from parts.validation import UNLIMITED, Crash

from identity.accounts.caller import Caller
from identity.errors import (
    EmailNotSent,
    Forbidden,
    NotTheTokenOwner,
    SessionExpired,
    SessionNotValidated,
    SessionUnknown,
    WrongValidationToken,
)
from identity.mxid import UserId
from identity.threepid import Medium, ThreePid
from identity.validation import store
from identity.validation.service import TokenRequest

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
LIFETIME_MS = 24 * HOUR_MS
SENDING_MS = 10 * MINUTE_MS
MAX_ATTEMPTS = 5
KEPT = timedelta(hours=12)

ALICE, BOB = UserId.parse("@alice:hs.test"), UserId.parse("@bob:hs.test")
OWNER = object()  # whoever the session belongs to
OWNERS = st.sampled_from([ALICE, BOB, None])
CALLERS = st.sampled_from([OWNER, OWNER, OWNER, ALICE, BOB, None])
MXIDS = st.sampled_from([ALICE, BOB])
TWO = st.integers(0, 1)
ANY = st.integers(0, 1_000)
LATEST = st.integers(0, 2)
WAITS_MS = st.sampled_from(
    [1, SENDING_MS, SENDING_MS + 1, 5 * HOUR_MS, 5 * HOUR_MS, LIFETIME_MS, LIFETIME_MS + 1]
)


@dataclass
class Known:
    """A session as the model has it. `sent`: (send attempt, prepared at, live)."""

    sid: str
    scope: tuple
    created_at_ms: int
    validated_at_ms: int | None = None
    attempts: int = 0
    sent: list = field(default_factory=list)
    tokens: set = field(default_factory=set)
    purged: bool = False

    @property
    def owner(self):
        return self.scope[0]

    @property
    def since_ms(self):
        return self.created_at_ms if self.validated_at_ms is None else self.validated_at_ms


class Sessions(RuleBasedStateMachine):
    numbers = itertools.count()

    def __init__(self, server):
        super().__init__()
        self.server, self.clock = server, server.clock
        self.validation = server.services.validation
        number = next(self.numbers)
        self.addresses = [ThreePid.email(f"{name}{number}@example.com") for name in "ab"]
        self.newest = {}  # by scope
        self.sessions = []
        self.tokens = ["wrong"]
        self.bound = {}

    @property
    def now_ms(self):
        return self.clock.now_ms()

    def is_live(self, known):
        return self.now_ms <= known.since_ms + LIFETIME_MS

    # --- requests ---

    @rule(
        owner=OWNERS,
        address=TWO,
        secret=TWO,
        attempt=st.integers(0, 4),
        fate=st.sampled_from(["sent", "sent", "sent", "refused", "died before", "died after"]),
    )
    def request(self, owner, address, secret, attempt, fate):
        scope = (owner, self.addresses[address], f"secret{secret}")
        self.ask(scope, attempt, fate)

    @precondition(lambda self: self.sessions)
    @rule(which=LATEST, attempt=st.integers(0, 9))
    def request_again(self, which, attempt):
        self.ask(self.pick(which).scope, attempt, "sent")

    @rule(owner=OWNERS, address=TWO, wait_ms=st.sampled_from([0, 1, 5 * HOUR_MS]))
    def validate(self, owner, address, wait_ms):
        scope = (owner, self.addresses[address], "secret0")
        known = self.newest.get(scope)
        self.ask(scope, 1 if known is None else 1 + self.highest(known), "sent")
        self.clock.advance(ms=wait_ms)
        self.submit(self.newest[scope], owner, self.tokens[-1])

    def ask(self, scope, attempt, fate):
        known = self.newest.get(scope)
        answered = known is not None and self.is_live(known) and attempt <= self.highest(known)
        before = len(self.server.sender.mails)
        sid, mailed = self.send(scope, attempt, fate)
        assert len(self.server.sender.mails) - before == (
            not answered and fate in ("sent", "died after")
        )
        if answered:
            assert sid == known.sid
            return
        fresh = known is None or known.validated_at_ms is not None or not self.is_live(known)
        if fate == "refused":
            if fresh:
                self.newest.pop(scope, None)
            return
        if fresh:
            assert sid not in [other.sid for other in self.sessions]
            known = self.newest[scope] = Known(sid, scope, self.now_ms)
            self.sessions.append(known)
        assert sid == known.sid
        known.sent.append((attempt, self.now_ms, fate == "sent"))
        if mailed:
            known.tokens.add(mailed["token"])
            self.tokens.append(mailed["token"])

    def highest(self, known):
        since_ms = self.now_ms - SENDING_MS
        return max((n for n, at_ms, live in known.sent if live or at_ms >= since_ms), default=-1)

    def send(self, scope, attempt, fate):
        """The sid, and what was mailed."""
        owner, threepid, secret = scope
        request = TokenRequest(threepid, secret, attempt, next_link=None, brand=None)
        sender = self.server.sender
        before = len(sender.mails)
        sender.fate = fate
        try:
            sid = self.validation.request_token(Caller(owner, "192.0.2.1"), request)
        except EmailNotSent:
            assert fate == "refused"
            return None, None
        except Crash:
            # Nobody was answered; the row tells which session it was.
            key = self.validation._scope(owner, request)
            sid = self.server.database.read(lambda tx: store.find_newest(tx, key)).sid
        return sid, self.server.mailed() if len(sender.mails) > before else None

    # --- what a session is good for ---

    @precondition(lambda self: self.sessions)
    @rule(which=LATEST, caller=CALLERS, token=ANY)
    def submit_own(self, which, caller, token):
        known = self.pick(which)
        if known.tokens:
            tokens = sorted(known.tokens)
            self.submit(known, self.caller(known, caller), tokens[token % len(tokens)])

    @precondition(lambda self: self.sessions)
    @rule(which=LATEST, caller=CALLERS, token=ANY, times=st.integers(1, MAX_ATTEMPTS + 1))
    def submit_any(self, which, caller, token, times):
        known = self.pick(which)
        for _ in range(times):
            text = self.tokens[token % len(self.tokens)]
            self.submit(known, self.caller(known, caller), text)

    def submit(self, known, caller, text):
        error = self.refusal(known, caller)
        if error is None and known.attempts >= MAX_ATTEMPTS:
            error = WrongValidationToken
        elif error is None and text not in known.tokens:
            known.attempts += 1
            error = WrongValidationToken
        elif error is None and known.validated_at_ms is None:
            known.validated_at_ms = self.now_ms
        secret = known.scope[2]
        arguments = (Caller(caller, "192.0.2.1"), Medium.EMAIL, known.sid, secret, text)
        self.expect(error, lambda: self.validation.submit_token(*arguments))

    @precondition(lambda self: self.sessions)
    @rule(which=LATEST, caller=CALLERS)
    def get_validated(self, which, caller):
        known = self.pick(which)
        caller = self.caller(known, caller)
        _, threepid, secret = known.scope
        found = self.expect(
            self.refusal(known, caller) or self.unproved(known),
            lambda: self.validation.get_validated(Caller(caller, "192.0.2.1"), known.sid, secret),
        )
        assert found in (None, (threepid, known.validated_at_ms))

    @precondition(lambda self: self.sessions)
    @rule(which=LATEST, caller=CALLERS, mxid=MXIDS)
    def bind(self, which, caller, mxid):
        known = self.pick(which)
        caller = self.caller(known, caller)
        _, threepid, secret = known.scope
        if caller not in (None, mxid):
            error = NotTheTokenOwner
        else:
            error = self.refusal(known, caller, alive=False)
            if error is None and known.owner not in (None, mxid):
                error = NotTheTokenOwner
            error = error or self.refusal(known, caller) or self.unproved(known)
        arguments = (Caller(caller, "192.0.2.1"), known.sid, secret, mxid)
        if self.expect(error, lambda: self.validation.bind(*arguments)):
            self.bound[threepid] = str(mxid)

    @precondition(lambda self: self.sessions)
    @rule(which=LATEST, address=TWO, mxid=MXIDS)
    def unbind(self, which, address, mxid):
        known = self.pick(which)
        threepid = self.addresses[address]
        error = self.refusal(known, None) or self.unproved(known)
        if error is None and known.scope[1] != threepid:
            error = Forbidden
        arguments = (known.sid, known.scope[2], threepid, mxid)
        self.expect(error, lambda: self.validation.unbind(*arguments))
        if error is None and self.bound.get(threepid) == str(mxid):
            del self.bound[threepid]

    def pick(self, which):
        return self.sessions[-1 - which % len(self.sessions)]

    def caller(self, known, caller):
        return known.owner if caller is OWNER else caller

    def refusal(self, known, caller, *, alive=True):
        if known.purged or (None not in (caller, known.owner) and caller != known.owner):
            return SessionUnknown
        return SessionExpired if alive and not self.is_live(known) else None

    def unproved(self, known):
        return SessionNotValidated if known.validated_at_ms is None else None

    def expect(self, error, call):
        if error is None:
            return call()
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        return None

    # --- time ---

    @rule(wait_ms=WAITS_MS)
    def wait(self, wait_ms):
        self.clock.advance(ms=wait_ms)

    @rule()
    def purge(self):
        self.validation.purge(KEPT)
        before_ms = self.now_ms - LIFETIME_MS - KEPT // timedelta(milliseconds=1)
        for known in self.sessions:
            if known.created_at_ms < before_ms and known.since_ms < before_ms:
                known.purged = True
                if self.newest.get(known.scope) is known:
                    del self.newest[known.scope]

    # --- what holds at all times ---

    @invariant()
    def rows_say_what_the_model_says(self):
        def read(tx):
            return [store.find_session(tx, known.sid) for known in self.sessions]

        rows = self.server.database.read(read)
        assert [None if row is None else (row.attempts, row.validated_at_ms) for row in rows] == [
            None if known.purged else (known.attempts, known.validated_at_ms)
            for known in self.sessions
        ]
        assert all(known.attempts <= MAX_ATTEMPTS for known in self.sessions)

    @invariant()
    def address_is_bound_to_whoever_proved_it_last(self):
        for threepid in self.addresses:
            found = self.server.services.associations.find_mxid(threepid)
            assert found == self.bound.get(threepid)


class FatefulSender:
    """Sends, refuses, or takes the process with it, before or after the mail is out."""

    def __init__(self):
        self.mails = []
        self.fate = "sent"

    def check_ready(self):
        pass

    def send(self, message, recipient):
        if self.fate == "refused":
            raise EmailNotSent
        if self.fate == "died before":
            raise Crash
        self.mails.append((recipient, message))
        if self.fate == "died after":
            raise Crash


@pytest.mark.requirement(
    "SESS-05", "SESS-07", "SESS-08", "SESS-09", "SESS-10", "SESS-11", "SESS-16"
)
def test_sessions_in_any_order_of_events_agree_with_the_model(make_server, database_kind):
    server = make_server(UNLIMITED, sender=FatefulSender())
    run_state_machine_as_test(
        lambda: Sessions(server),
        settings=settings(
            max_examples=20 if database_kind == "sqlite" else 5,
            stateful_step_count=50,
            deadline=None,
            # What was found is short enough, and each step costs a commit.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
