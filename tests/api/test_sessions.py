"""Validation sessions over v2: conformance.md section 7, and who may use a session."""

import functools
import itertools
import re
import secrets
from collections import Counter
from datetime import timedelta

import pytest
from parts.parallel import in_parallel, second_server
from parts.server import V2
from parts.statements import recorded
from parts.validation import (
    CONFIRM,
    SUBMIT,
    UNLIMITED,
    Crash,
    bind,
    get_validated,
    open_link,
    press_button,
    refused,
    session_without_owner,
    sqlite_only,
    submit,
    token_values,
)

from identity.accounts.caller import Caller
from identity.errors import EmailNotSent, SessionUnknown
from identity.mxid import UserId
from identity.threepid import Medium, ThreePid
from identity.validation import session as sessions
from identity.validation import store

EMAIL = "alice@example.com"
REQUEST = V2 + "/validate/email/requestToken"
OPAQUE = re.compile(r"[0-9a-zA-Z.=_-]{1,255}", re.ASCII)


def crash():
    raise Crash


def validated_at(server):
    return [row["validated_at_ms"] for row in server.rows("validation_sessions")]


# --- client_secret, sid, token ------------------------------------------------------------


@sqlite_only
@pytest.mark.requirement("SESS-01")
def test_client_secret_outside_its_grammar_is_refused_everywhere(server, alice):
    session = alice.validate(EMAIL)
    before = {table: server.rows(table) for table in ("validation_sessions", "statements")}
    for bad in ("", "a" * 256, "a b", "abc\n", "\nabc", "a/b", "é", "abc+", "\uff41"):
        values = {**session, "client_secret": bad}
        token = {**values, "token": "x"}
        threepid = {"medium": "email", "address": EMAIL}
        unbind = {**values, "mxid": alice.user_id, "threepid": threepid}
        for response in (
            alice.request_token(EMAIL, bad, 7),
            alice.submit_token(**token),
            get_validated(alice, values),
            bind(alice, values),
            alice.post("/3pid/unbind", json=unbind),
        ):
            assert refused(response, 400, "M_INVALID_PARAM"), bad
        for response in (
            open_link(server, token),
            server.client.get(CONFIRM, query_string=token),
            press_button(server, token),
        ):
            assert (response.status_code, response.mimetype) == (400, "text/html"), bad
    assert {table: server.rows(table) for table in before} == before
    assert len(server.sender.mails) == 1


@sqlite_only
@pytest.mark.requirement("SESS-01")
def test_client_secret_of_every_allowed_kind_is_accepted(make_server):
    alice = make_server(UNLIMITED).account("@alice:hs.test")
    for good in ("a", "a" * 255, "0123456789.=_-", "AZaz"):
        session = alice.validate(EMAIL, good)
        assert get_validated(alice, session).status_code == 200
        assert bind(alice, session).status_code == 200


@sqlite_only
@pytest.mark.requirement("SESS-02")
def test_sid_is_an_opaque_string_of_128_random_bits(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    sids = [alice.request_token(EMAIL, f"secret{n}").json["sid"] for n in range(20)]
    assert all(type(sid) is str and OPAQUE.fullmatch(sid) for sid in sids)
    # 22 characters of 6 bits; none of them stands still, as those of a counter or a clock would.
    assert {len(sid) for sid in sids} == {22}
    assert all(len(set(column)) > 3 for column in zip(*sids, strict=True))
    assert {row["sid"] for row in server.rows("validation_sessions")} == set(sids)


@sqlite_only
@pytest.mark.requirement("SESS-03")
def test_submitted_token_of_any_shape_is_just_a_wrong_token(make_server):
    server = make_server({**UNLIMITED, "VALIDATION__MAX_WRONG_TOKENS": "100"})
    alice = server.account("@alice:hs.test")
    alice.request_token(EMAIL)
    mailed = server.mailed()
    assert re.fullmatch(r"[0-9A-Za-z_-]{1,255}", mailed["token"])
    odd = [
        "x" * 10_000,
        "x" * 256,
        "",
        " ",
        mailed["token"] + "\n",
        "\u202e",
        "💥" * 300,
        "%00",
        "../",
    ]
    for attempts, token in enumerate(odd, start=1):
        response = submit(alice, mailed, token=token)
        assert refused(response, 400, "M_TOKEN_INCORRECT"), token
        assert response.json["success"] is False
        (row,) = server.rows("validation_sessions")
        assert (row["attempts"], row["validated_at_ms"]) == (attempts, None)
    assert submit(alice, mailed).json == {"success": True}


# --- wrong tokens ---------------------------------------------------------------------------


@pytest.mark.requirement("SESS-04")
def test_session_after_five_wrong_tokens_is_locked_for_the_right_one_too(make_server):
    """security.md, threat 7: resending does not unlock it, a new session is needed."""
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    alice.request_token(EMAIL)
    mailed = server.mailed()
    for _ in range(5):
        assert refused(submit(alice, mailed, token="wrong"), 400, "M_TOKEN_INCORRECT")
    for send_attempt in (2, 3):
        assert refused(submit(alice, mailed), 400, "M_TOKEN_INCORRECT")
        assert open_link(server, mailed).status_code == 400
        alice.request_token(EMAIL, send_attempt=send_attempt)
        assert refused(submit(alice, server.mailed()), 400, "M_TOKEN_INCORRECT")
    (row,) = server.rows("validation_sessions")
    assert (row["attempts"], row["validated_at_ms"]) == (5, None)
    assert refused(get_validated(alice, mailed), 400, "M_SESSION_NOT_VALIDATED")
    assert get_validated(alice, alice.validate(EMAIL, "another")).status_code == 200


@sqlite_only
@pytest.mark.requirement("SESS-04")
def test_session_counts_wrong_tokens_of_every_endpoint_together(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    alice.request_token(EMAIL)
    mailed = server.mailed()
    wrong = token_values(mailed, token="wrong")
    for response in (
        alice.submit_token(**wrong),
        open_link(server, wrong),
        press_button(server, wrong),
        alice.post(SUBMIT, data=wrong),
        server.client.get(SUBMIT + "/", query_string=wrong),
    ):
        assert response.status_code == 400
    assert refused(submit(alice, mailed), 400, "M_TOKEN_INCORRECT")
    assert validated_at(server) == [None]


@sqlite_only
@pytest.mark.requirement("SESS-04")
def test_session_gives_the_attempt_back_when_the_token_is_right(server, alice):
    """So that a link may be opened any number of times."""
    alice.request_token(EMAIL)
    mailed = server.mailed()
    for _ in range(4):
        submit(alice, mailed, token="wrong")
    for _ in range(7):
        assert submit(alice, mailed).json == {"success": True}
    assert [row["attempts"] for row in server.rows("validation_sessions")] == [4]


@sqlite_only
@pytest.mark.requirement("SESS-04")
def test_email_token_holds_192_random_bits(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    for n in range(20):
        alice.request_token(EMAIL, f"secret{n}")
    tokens = [server.mailed(n)["token"] for n in range(20)]
    assert {len(token) for token in tokens} == {32}
    assert all(len(set(column)) > 3 for column in zip(*tokens, strict=True))
    stored = [bytes(row["token_hash"]) for row in server.rows("validation_tokens")]
    assert not any(token.encode() in value for token in tokens for value in stored)


@sqlite_only
@pytest.mark.requirement("SESS-04")
def test_account_that_guesses_tokens_meets_a_limit_over_all_its_sessions(make_server):
    """security.md, threat 8: right tokens cost nothing, wrong ones 20 a day."""
    server = make_server(
        {f"RATE_LIMITS__LIMITS__EMAIL_{who}": "1000/h" for who in ("ACCOUNT", "IP", "RECIPIENT")}
    )
    mallory = server.account("@mallory:hs.test")
    statuses = Counter()
    for n in range(8):
        mallory.request_token(EMAIL, f"secret{n}")
        for _ in range(5):
            response = submit(mallory, server.mailed(), token="wrong")
            statuses[response.status_code, response.json["errcode"]] += 1
    assert statuses == {(400, "M_TOKEN_INCORRECT"): 20, (429, "M_LIMIT_EXCEEDED"): 20}
    alice = server.account("@alice:hs.test")
    for n in range(30):
        assert alice.validate(f"alice{n}@example.com")
    # What was refused was not counted against the sessions either.
    attempts = [row["attempts"] for row in server.rows("validation_sessions")]
    assert sum(attempts) == 20


@pytest.mark.requirement("SESS-04")
def test_session_under_a_thousand_parallel_guesses_evaluates_exactly_five(make_server):
    """security.md, threat 9: several servers, each with its own connections and threads."""
    server = make_server(UNLIMITED)
    servers = [server, second_server(make_server, server, **UNLIMITED)]
    alice = server.account("@alice:hs.test")
    alice.request_token(EMAIL)
    mailed = server.mailed()
    body = {name: mailed[name] for name in ("sid", "client_secret")}
    headers = {"Authorization": f"Bearer {alice.token}"}

    def guess(client, number):
        return client.post(SUBMIT, json={**body, "token": f"guess{number}"}, headers=headers)

    with recorded(servers[0]) as first, recorded(servers[1]) as second:
        answers = in_parallel(servers, 1_000, guess)
    assert {(answer.status_code, answer.json["errcode"]) for answer in answers} == {
        (400, "M_TOKEN_INCORRECT")
    }
    # A guess is evaluated against the tokens of its session, which have to be read for that.
    evaluated = [text for text in first + second if "SELECT validation_tokens.token_hash" in text]
    assert len(evaluated) == 5
    assert refused(submit(alice, mailed), 400, "M_TOKEN_INCORRECT")
    (row,) = server.rows("validation_sessions")
    assert (row["attempts"], row["validated_at_ms"]) == (5, None)


# --- lifetime -------------------------------------------------------------------------------


@pytest.mark.requirement("SESS-05", "AMB-08")
def test_session_lives_24_hours_from_creation_whatever_is_asked_of_it(server, clock, alice):
    alice.request_token(EMAIL)
    mailed = server.mailed()
    for send_attempt in (2, 3, 4):
        clock.advance(hours=6)
        submit(alice, mailed, token="wrong")
        assert alice.request_token(EMAIL, send_attempt=send_attempt).json["sid"] == mailed["sid"]
    clock.advance(hours=5, minutes=59)
    submit(alice, mailed, token="wrong")
    clock.advance(minutes=2)
    # security.md, threat 11: the tokens of the later mails are as dead as the first.
    for number in range(4):
        assert refused(submit(alice, server.mailed(number)), 400, "M_SESSION_EXPIRED")
    assert validated_at(server) == [None]


@sqlite_only
@pytest.mark.requirement("SESS-05")
def test_session_just_before_its_end_can_be_validated(server, clock, alice):
    alice.request_token(EMAIL)
    clock.advance(hours=23, minutes=59)
    assert submit(alice, server.mailed()).json == {"success": True}


@sqlite_only
@pytest.mark.requirement("SESS-05", "AMB-08")
def test_session_that_is_validated_lives_24_hours_from_then(server, clock, alice):
    alice.request_token(EMAIL)
    mailed = server.mailed()
    clock.advance(hours=23)
    submit(alice, mailed)
    clock.advance(hours=23)  # 46 hours after the creation
    assert bind(alice, mailed).status_code == 200
    # Neither a repeated submit nor a bind begins another 24 hours.
    assert submit(alice, mailed).json == {"success": True}
    clock.advance(hours=1, seconds=1)
    assert refused(bind(alice, mailed), 400, "M_SESSION_EXPIRED")
    assert refused(get_validated(alice, mailed), 400, "M_SESSION_EXPIRED")


@sqlite_only
@pytest.mark.requirement("SESS-06", "MAIL-07")
@pytest.mark.parametrize("validated", [False, True])
def test_session_that_expired_answers_so_everywhere(server, clock, alice, validated):
    alice.request_token(EMAIL)
    mailed = server.mailed()
    if validated:
        submit(alice, mailed)
    before = server.rows("validation_sessions")
    clock.advance(hours=24, seconds=1)
    answers = [submit(alice, mailed), get_validated(alice, mailed), bind(alice, mailed)]
    for answer in answers:
        assert refused(answer, 400, "M_SESSION_EXPIRED")
    assert answers[0].json["success"] is False
    assert refused(submit(alice, mailed, token="wrong"), 400, "M_SESSION_EXPIRED")
    assert (server.rows("validation_sessions"), server.rows("statements")) == (before, [])


@sqlite_only
@pytest.mark.requirement("SESS-05")
def test_session_lifetime_is_configurable(make_server, clock):
    server = make_server({"VALIDATION__SESSION_LIFETIME": "1h"})
    alice = server.account("@alice:hs.test")
    alice.request_token(EMAIL)
    clock.advance(minutes=59)
    assert submit(alice, server.mailed()).json == {"success": True}
    clock.advance(minutes=61)
    assert refused(get_validated(alice, server.mailed()), 400, "M_SESSION_EXPIRED")


# --- send attempts --------------------------------------------------------------------------


@pytest.mark.requirement("SESS-07", "AMB-09")
def test_send_attempt_sends_only_when_it_is_greater_than_all_before(server, alice):
    answers = [alice.request_token(EMAIL, send_attempt=n) for n in (1, 1, 2, 1)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json["sid"] for answer in answers}) == 1
    assert len(server.sender.mails) == 2
    assert sorted(row["send_attempt"] for row in server.rows("validation_tokens")) == [1, 2]
    # The form of the address does not matter, for it is the same one.
    assert alice.request_token("ALICE@Example.COM", send_attempt=2).json == answers[0].json
    assert len(server.sender.mails) == 2


@sqlite_only
@pytest.mark.requirement("SESS-07")
def test_send_attempt_within_a_validated_session_that_was_answered_sends_nothing(server, alice):
    alice.request_token(EMAIL, send_attempt=3)
    submit(alice, server.mailed())
    for n in (3, 2, 0):
        assert alice.request_token(EMAIL, send_attempt=n).json["sid"] == server.mailed()["sid"]
    assert len(server.sender.mails) == 1


@pytest.mark.requirement("SESS-07")
@pytest.mark.parametrize("limits", [{}, UNLIMITED], ids=["limited", "unlimited"])
def test_send_attempt_repeated_a_hundred_times_in_parallel_sends_once(make_server, limits):
    """security.md, threat 27."""
    server = make_server(limits)
    servers = [server, second_server(make_server, server, **limits)]
    alice = server.account("@alice:hs.test")
    headers = {"Authorization": f"Bearer {alice.token}"}
    body = {"email": EMAIL, "client_secret": "secret", "send_attempt": 1}

    answers = in_parallel(
        servers, 100, lambda client, _: client.post(REQUEST, json=body, headers=headers)
    )
    assert len(server.sender.mails) == 1
    statuses = Counter(answer.status_code for answer in answers)
    # Those that were on their way at once may be told to wait a moment; they do not count.
    assert statuses.keys() <= ({200, 429} if not limits else {200})
    assert {a.json["sid"] for a in answers if a.status_code == 200} == {server.mailed()["sid"]}
    assert len(server.rows("validation_sessions")) == len(server.rows("validation_tokens")) == 1
    for n in range(2, 6):
        assert alice.request_token(EMAIL, send_attempt=n).status_code == 200
    assert len(server.sender.mails) == 5
    assert submit(alice, server.mailed(0)).json == {"success": True}


@pytest.mark.requirement("SESS-07", "SESS-11")
def test_send_attempts_after_a_validation_in_parallel_send_each_once(make_server):
    """Where one session gives way to the next, too."""
    server = make_server(UNLIMITED)
    servers = [server, second_server(make_server, server, **UNLIMITED)]
    alice = server.account("@alice:hs.test")
    headers = {"Authorization": f"Bearer {alice.token}"}

    def ask(secret, client, number):
        attempt = 2 + number % 3
        body = {"email": EMAIL, "client_secret": secret, "send_attempt": attempt}
        return client.post(REQUEST, json=body, headers=headers)

    for secret in map(str, range(5)):
        old = alice.validate(EMAIL, secret)
        before = len(server.sender.mails)
        answers = in_parallel(servers, 24, functools.partial(ask, secret))
        assert {answer.status_code for answer in answers} == {200}
        (new,) = {answer.json["sid"] for answer in answers}
        assert new != old["sid"]
        tokens = [row for row in server.rows("validation_tokens") if row["sid"] == new]
        attempts = [row["send_attempt"] for row in tokens]
        # 3 or 4 may come first, then nothing is sent for 2.
        assert len(attempts) == len(set(attempts)) == len(server.sender.mails) - before
        assert max(attempts) == 4


@sqlite_only
@pytest.mark.requirement("SESS-08")
def test_send_attempt_is_counted_for_each_address_and_secret_apart(server, alice):
    sids = [
        alice.request_token(email, secret).json["sid"]
        for email in (EMAIL, "other@example.com")
        for secret in ("s1", "s2")
    ]
    assert len(set(sids)) == 4
    assert [server.mailed(n)["sid"] for n in range(4)] == sids
    assert [recipient for recipient, _ in server.sender.mails] == [EMAIL] * 2 + [
        "other@example.com"
    ] * 2


@sqlite_only
@pytest.mark.requirement("SESS-08")
def test_send_attempt_is_counted_for_each_account_apart(server, alice, bob):
    """Decision 9: nobody can use up what another one needs, nor read the other's sid."""
    assert alice.request_token(EMAIL).json != bob.request_token(EMAIL).json
    assert len(server.sender.mails) == 2


@sqlite_only
@pytest.mark.requirement("SESS-09")
def test_resend_within_a_session_leaves_the_earlier_token_working(server, alice):
    alice.request_token(EMAIL, send_attempt=1)
    alice.request_token(EMAIL, send_attempt=2)
    first, second = server.mailed(0), server.mailed(1)
    assert first["token"] != second["token"]
    assert submit(alice, first).json == {"success": True}
    assert submit(alice, second).json == {"success": True}
    assert len(validated_at(server)) == 1


@sqlite_only
@pytest.mark.requirement("SESS-09")
def test_token_of_another_session_is_wrong(server, alice):
    for email in (EMAIL, "other@example.com"):
        alice.request_token(email)
    response = submit(alice, server.mailed(0), token=server.mailed(1)["token"])
    assert refused(response, 400, "M_TOKEN_INCORRECT")


@pytest.mark.requirement("SESS-10", "MAIL-03", "AMB-07")
def test_send_attempt_that_failed_can_be_repeated(server, alice):
    server.sender.fails = True
    assert refused(alice.request_token(EMAIL), 400, "M_EMAIL_SEND_ERROR")
    # Decision 10: nothing is stored of what was not sent.
    assert server.rows("validation_sessions") == server.rows("validation_tokens") == []
    server.sender.fails = False
    assert alice.request_token(EMAIL).status_code == 200
    assert len(server.sender.mails) == 1
    assert submit(alice, server.mailed()).json == {"success": True}


@sqlite_only
@pytest.mark.requirement("SESS-10")
def test_resend_that_failed_leaves_the_session_as_it_was(server, alice):
    alice.request_token(EMAIL)
    before = [server.rows(name) for name in ("validation_sessions", "validation_tokens")]
    server.sender.fails = True
    assert refused(alice.request_token(EMAIL, send_attempt=2), 400, "M_EMAIL_SEND_ERROR")
    assert [server.rows(name) for name in ("validation_sessions", "validation_tokens")] == before
    server.sender.fails = False
    assert alice.request_token(EMAIL, send_attempt=2).status_code == 200
    assert len(server.sender.mails) == 2
    assert submit(alice, server.mailed(0)).json == {"success": True}


@pytest.mark.requirement("SESS-10")
def test_send_attempts_that_fail_in_parallel_leave_every_sent_token_working(make_server):
    """Decision 10: a session goes with its last token, but not with one that is on its way."""
    server = make_server(UNLIMITED)
    servers = [server, second_server(make_server, server, **UNLIMITED)]
    alice = server.account("@alice:hs.test")
    headers = {"Authorization": f"Bearer {alice.token}"}
    numbers = itertools.count()

    def fail_mostly():
        if next(numbers) % 3:
            raise EmailNotSent

    server.sender.before_send = fail_mostly

    def ask(secret, client, number):
        body = {"email": EMAIL, "client_secret": secret, "send_attempt": number}
        return client.post(REQUEST, json=body, headers=headers)

    for secret in map(str, range(15)):
        before = len(server.sender.mails)
        answers = in_parallel(servers, 12, functools.partial(ask, secret))
        assert {answer.status_code for answer in answers} <= {200, 400}
        for number in range(before, len(server.sender.mails)):
            assert submit(alice, server.mailed(number)).json == {"success": True}
    assert all(row["live"] for row in server.rows("validation_tokens"))


@sqlite_only
@pytest.mark.requirement("SESS-10")
def test_send_attempt_after_any_fault_of_sending_can_be_repeated(server, alice):
    """A fault of our own is a 500, and leaves nothing behind either."""

    def fault():
        raise ZeroDivisionError

    server.sender.before_send = fault
    assert refused(alice.request_token(EMAIL), 500, "M_UNKNOWN")
    assert server.rows("validation_sessions") == server.rows("validation_tokens") == []
    server.sender.before_send = lambda: None
    assert alice.request_token(EMAIL).status_code == 200
    assert len(server.sender.mails) == 1


@pytest.mark.requirement("SESS-10")
def test_send_attempt_of_a_process_that_died_is_free_again_after_ten_minutes(server, clock, alice):
    """Decision 10: it died between preparing and sending, or so it looks."""
    server.sender.before_send = crash
    with pytest.raises(Crash):
        alice.request_token(EMAIL)
    (prepared,) = server.rows("validation_tokens")
    assert prepared["live"] is False
    server.sender.before_send = lambda: None

    clock.advance(minutes=10)
    assert alice.request_token(EMAIL).json == {"sid": prepared["sid"]}
    assert server.sender.mails == []  # It may still be on its way.
    clock.advance(ms=1)
    assert alice.request_token(EMAIL).json == {"sid": prepared["sid"]}
    assert len(server.sender.mails) == 1
    assert submit(alice, server.mailed()).json == {"success": True}
    assert sorted(row["live"] for row in server.rows("validation_tokens")) == [False, True]


@pytest.mark.requirement("SESS-10")
def test_token_that_arrived_counts_although_the_process_died_after_sending(server, clock, alice):
    """Decision 10: a prepared token that is presented did arrive."""
    send = server.sender.send

    def send_and_die(message, recipient):
        send(message, recipient)
        raise Crash

    server.sender.send = send_and_die
    with pytest.raises(Crash):
        alice.request_token(EMAIL)
    assert [row["live"] for row in server.rows("validation_tokens")] == [False]
    clock.advance(hours=1)
    assert submit(alice, server.mailed()).json == {"success": True}
    assert bind(alice, server.mailed()).status_code == 200


@sqlite_only
@pytest.mark.requirement("SESS-10")
def test_token_is_prepared_before_the_mail_goes_out_and_live_afterwards(server, alice):
    """Decision 10: whoever opens the link at once finds its session."""
    seen = []
    server.sender.before_send = lambda: seen.extend(server.rows("validation_tokens"))
    alice.request_token(EMAIL)
    assert [row["live"] for row in seen] == [False]
    assert [row["live"] for row in server.rows("validation_tokens")] == [True]


@pytest.mark.requirement("SESS-11")
def test_request_after_validation_with_a_higher_attempt_starts_a_fresh_session(server, alice):
    old = alice.validate(EMAIL)
    new = alice.request_token(EMAIL, send_attempt=2).json["sid"]
    assert new != old["sid"]
    assert server.mailed()["sid"] == new
    assert len(server.sender.mails) == 2
    # Both live on by themselves.
    assert get_validated(alice, old).status_code == 200
    assert refused(get_validated(alice, server.mailed()), 400, "M_SESSION_NOT_VALIDATED")
    assert submit(alice, server.mailed()).json == {"success": True}


@sqlite_only
@pytest.mark.requirement("SESS-11")
@pytest.mark.parametrize("attempt", [1, 2])
def test_request_after_expiry_starts_a_fresh_session(server, clock, alice, attempt):
    """With the same attempt too, for what it was answered is of no use any more."""
    old = alice.request_token(EMAIL).json["sid"]
    clock.advance(hours=24, seconds=1)
    new = alice.request_token(EMAIL, send_attempt=attempt).json["sid"]
    assert new != old
    assert submit(alice, server.mailed()).json == {"success": True}
    assert refused(submit(alice, server.mailed(0)), 400, "M_SESSION_EXPIRED")


@sqlite_only
@pytest.mark.requirement("SESS-12", "AMB-09")
def test_send_attempt_as_integer_or_decimal_string_is_accepted(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    for n, good in enumerate((0, 1, 2**53 - 1, "0", "1", "007", str(2**53 - 1))):
        assert alice.request_token(EMAIL, f"s{n}", good).status_code == 200, good
    assert len(server.sender.mails) == 7
    assert sorted(row["send_attempt"] for row in server.rows("validation_tokens")) == sorted(
        [0, 1, 2**53 - 1, 0, 1, 7, 2**53 - 1]
    )
    # The string counts as the number.
    alice.request_token(EMAIL, "s1", "1")
    assert len(server.sender.mails) == 7
    alice.request_token(EMAIL, "s1", "2")
    assert len(server.sender.mails) == 8


@sqlite_only
@pytest.mark.requirement("SESS-12", "AMB-09")
def test_send_attempt_of_any_other_type_is_refused(server, alice):
    bad = [True, False, 1.0, 1.5, "x", "", "1.0", "-1", "+1", " 1", "1 ", "0x1", "١", "1_0"]
    bad += [-1, 2**53, str(2**53), "9" * 17, None, [], {}, [1]]
    for value in bad:
        response = alice.request_token(EMAIL, send_attempt=value)
        # An integer beyond 2^53-1 is no JSON that we read.
        errcode = "M_NOT_JSON" if value == 2**53 else "M_INVALID_PARAM"
        assert refused(response, 400, errcode), value
    assert (server.rows("validation_sessions"), server.sender.mails) == ([], [])


# --- next_link ------------------------------------------------------------------------------


@sqlite_only
@pytest.mark.requirement("SESS-13")
def test_next_link_is_optional_and_ignored_by_a_program_that_posts(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    link = "https://app.example.org/done"
    for secret, more in (("a", {}), ("b", {"next_link": link}), ("c", {"next_link": ""})):
        assert alice.request_token(EMAIL, secret, **more).status_code == 200
        response = submit(alice, server.mailed())
        assert (response.status_code, response.json) == (200, {"success": True})
        assert "Location" not in response.headers
    stored = [row["next_link"] for row in server.rows("validation_sessions")]
    assert Counter(stored) == {None: 2, link: 1}


@sqlite_only
@pytest.mark.requirement("SESS-14")
def test_next_link_is_taken_from_the_session_and_never_from_the_request(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    evil = {"nextLink": "https://evil.example", "next_link": "https://evil.example"}
    for secret, stored in (("a", None), ("b", "https://app.example.org/done")):
        alice.request_token(EMAIL, secret, **({"next_link": stored} if stored else {}))
        mailed = server.mailed()
        values = token_values(mailed, **evil)
        for response in (
            server.client.get(SUBMIT, query_string=values),
            server.client.post(CONFIRM, data=values),
            server.client.post(CONFIRM, query_string=evil, data=values),
        ):
            assert response.headers.get("Location") == stored
            assert response.status_code == (303 if stored else 200)
            assert "evil" not in response.text
        page = server.client.get(CONFIRM, query_string=values)
        assert "evil" not in page.text + str(page.headers)


REFUSED_NEXT_LINKS = [
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "file:///etc/passwd",
    "ftp://app.example.org/",
    "vbscript:x",
    "app.example.org",
    "//evil.example",
    "///evil.example",
    "/evil.example",
    "\\\\evil.example",
    "https:evil.example",
    "https:/evil.example",
    "https:///evil.example",
    "https://",
    "https://?x",
    "https://#x",
    "https:\\\\evil.example",
    "https://app.example.org\\@evil.example",
    "https://app.example.org\\.evil.example",
    "https://app.example.org@evil.example",
    "https://user:password@app.example.org",
    "https://app.example.org%40evil.example",
    "https://app.example.org%2f.evil.example",
    "https://evil.example%00.app.example.org",
    "https://app.example.org/\r\nSet-Cookie: a=b",
    "https://app.example.org/\n",
    " https://app.example.org/",
    "https://app.example.org /",
    "ht\ntps://app.example.org",
    "https://app.example.org/\t",
    "https://[::1",
    "https://app.example.org:99999/",
    "https://app.example.org:x/",
    "https://app.example.org\u2028/",
    "https://\u202eapp.example.org/",
    "https://app\uff0fexample.org/",
    "x" * 10,
    "https://app.example.org/" + "x" * 2_048,
]


@sqlite_only
@pytest.mark.requirement("SESS-14")
def test_next_link_that_two_readers_could_read_differently_is_refused(server, alice):
    """security.md, threat 20."""
    assert len(set(REFUSED_NEXT_LINKS)) >= 30
    for link in REFUSED_NEXT_LINKS:
        response = alice.request_token(EMAIL, next_link=link)
        assert refused(response, 400, "M_INVALID_PARAM"), link
        assert "evil" not in response.text
    for link in (1, True, [], {}, None):
        assert refused(alice.request_token(EMAIL, next_link=link), 400, "M_INVALID_PARAM")
    assert (server.rows("validation_sessions"), server.sender.mails) == ([], [])


@sqlite_only
@pytest.mark.requirement("SESS-14")
def test_next_link_to_a_host_that_is_not_listed_is_refused(make_server):
    server = make_server(
        {**UNLIMITED, "VALIDATION__NEXT_LINK_HOSTS": '["App.example.org", "localhost"]'}
    )
    alice = server.account("@alice:hs.test")
    for n, link in enumerate(
        ("https://app.example.org/x", "https://APP.example.org:8443/#/x", "http://localhost:8080")
    ):
        assert alice.request_token(EMAIL, f"s{n}", next_link=link).status_code == 200, link
    for link in (
        *REFUSED_NEXT_LINKS,
        "https://evil.example/",
        "https://app.example.org.evil.example/",
        "https://evil-app.example.org/",
        "https://x.app.example.org/",
        "https://app.example.org./",
        "https://evil.example/https://app.example.org",
        "https://evil.example?app.example.org",
        "https://evil.example#app.example.org",
        "https://app.example.org:@evil.example/",
        "https://app\u3002example.org/",
        "https://127.0.0.1/",
    ):
        response = alice.request_token(EMAIL, "other", next_link=link)
        assert refused(response, 400, "M_INVALID_PARAM"), link
    assert len(server.sender.mails) == 3


# --- whose session it is ----------------------------------------------------------------------


@sqlite_only
@pytest.mark.requirement("SESS-15")
def test_sid_of_one_medium_is_unknown_to_the_other(server, alice):
    alice.request_token(EMAIL)
    mailed = server.mailed()
    validation = server.services.validation
    caller = Caller(UserId.parse(alice.user_id), "192.0.2.1")
    with pytest.raises(SessionUnknown):
        validation.submit_token(
            caller, Medium.MSISDN, mailed["sid"], mailed["client_secret"], mailed["token"]
        )

    # The other way round: a session for a phone, with a code that would be right.
    keys = server.database.keys
    phone = sessions.Session(
        sid=sessions.new_sid(),
        owner=alice.user_id,
        threepid=ThreePid.msisdn("441632960000"),
        client_secret_hash=keys.keyed_hash("client secret", "secret"),
        created_at_ms=server.clock.now_ms(),
        validated_at_ms=None,
        attempts=0,
        next_link=None,
        brand=None,
    )

    def insert(tx):
        store.insert_session(tx, keys, phone, secrets.token_bytes(32))
        code = keys.keyed_hash("session token", phone.sid, "123456")
        store.prepare_token(tx, phone.sid, 1, code, server.clock.now_ms())

    server.database.write(insert)
    values = {"sid": phone.sid, "client_secret": "secret", "token": "123456"}
    response = alice.submit_token(**values)
    assert refused(response, 400, "M_INVALID_PARAM")
    assert response.json["success"] is False
    assert open_link(server, values).status_code == 404
    assert server.client.get(CONFIRM, query_string=values).status_code == 404
    assert press_button(server, values).status_code == 404
    assert validated_at(server) == [None, None]
    assert [row["attempts"] for row in server.rows("validation_sessions")] == [0, 0]


@sqlite_only
@pytest.mark.requirement("SESS-16")
def test_session_is_used_with_any_token_of_the_account(server, alice):
    session = alice.validate(EMAIL)
    again = server.account(alice.user_id)
    assert again.token != alice.token
    alice.post("/account/logout")
    assert get_validated(again, session).status_code == 200
    assert bind(again, session).status_code == 200


@pytest.mark.requirement("SESS-16")
def test_session_of_one_account_is_unknown_to_another(server, alice, bob):
    """Decision 9 and security.md, threat 14: for all that bob knows, there is no such session."""
    alice.request_token(EMAIL)
    mailed = server.mailed()
    nobody = {**mailed, "sid": "nobody"}
    for _ in range(2):
        answers = [(f(bob, mailed), f(bob, nobody)) for f in (submit, get_validated, bind)]
        for theirs, unknown in answers:
            assert (theirs.status_code, theirs.json) == (unknown.status_code, unknown.json)
            assert theirs.json["errcode"] in ("M_INVALID_PARAM", "M_NO_VALID_SESSION")
        assert refused(bind(bob, mailed, alice.user_id), 403, "M_UNAUTHORIZED")
        submit(alice, mailed)  # and once more when it is validated
    assert server.found(EMAIL) is None
    assert [row["attempts"] for row in server.rows("validation_sessions")] == [0]
    assert bind(alice, mailed).status_code == 200


@pytest.mark.requirement("SESS-16")
def test_session_without_an_owner_is_bound_by_whoever_holds_sid_and_secret(server, alice):
    """Decision 9: submitting does not change the owner."""
    mailed = session_without_owner(server, EMAIL)
    assert submit(alice, mailed).json == {"success": True}
    assert [row["owner"] for row in server.rows("validation_sessions")] == [None]
    assert get_validated(alice, mailed).status_code == 200
    assert bind(alice, mailed).status_code == 200
    assert server.found(EMAIL) == alice.user_id


@sqlite_only
@pytest.mark.requirement("SESS-16")
def test_session_of_an_account_keeps_its_owner_when_the_link_is_opened(server, alice, bob):
    """Decision 9: the page is opened by whoever reads the mail, with no account at all."""
    alice.request_token(EMAIL)
    mailed = server.mailed()
    server.client.get(mailed["link"])
    assert press_button(server, mailed).status_code == 200
    assert [row["owner"] for row in server.rows("validation_sessions")] == [alice.user_id]
    assert refused(bind(bob, mailed), 404, "M_NO_VALID_SESSION")
    assert bind(alice, mailed).status_code == 200


@pytest.mark.requirement("SESS-16")
def test_session_long_after_its_end_is_purged(server, clock, alice):
    alice.request_token(EMAIL, "one")
    clock.advance(hours=20)
    alice.validate(EMAIL, "two")
    clock.advance(hours=23)
    alice.request_token(EMAIL, "three")
    kept = timedelta(days=7)
    purge = server.services.validation.purge
    assert purge(kept) == 0
    clock.advance(hours=24 * 7 - 18)  # "one" ended 7 days and an hour ago
    assert purge(kept) == 1
    assert purge(kept) == 0
    assert len(server.rows("validation_sessions")) == len(server.rows("validation_tokens")) == 2
    assert [row["send_attempt"] for row in server.rows("validation_tokens")] == [1, 1]
    clock.advance(hours=48)
    assert purge(kept) == 2
    assert server.rows("validation_tokens") == []


# --- what answers give away -------------------------------------------------------------------


@sqlite_only
@pytest.mark.requirement("MAIL-07", "VAL-03")
def test_unknown_sid_and_wrong_secret_cost_the_same_and_say_the_same(server, alice):
    """security.md, threat 15: equal bodies, and equal work."""
    alice.validate(EMAIL)
    mailed = server.mailed()
    wrong_secret = {**mailed, "client_secret": "other"}
    unknown_sid = {**mailed, "sid": "A" * 22}
    for call in (submit, get_validated, bind):
        seen = []
        for values in (wrong_secret, unknown_sid):
            with recorded(server) as statements:
                response = call(alice, values)
            headers = {k: v for k, v in response.headers.items() if k != "X-Request-Id"}
            seen.append((response.status_code, response.data, headers, list(statements)))
        assert seen[0] == seen[1]


@pytest.mark.requirement("MAIL-01")
def test_request_for_a_bound_address_does_the_same_work_as_for_a_free_one(server, alice, bob):
    """security.md, threat 51: nobody learns from it whether an address is bound."""
    alice.bind("bound@example.com")
    seen = []
    for address in ("bound@example.com", "nobody@example.com"):
        with recorded(server) as statements:
            response = bob.request_token(address, "my-secret")
        assert list(response.json) == ["sid"]
        shape = {k: v for k, v in response.headers.items() if k != "X-Request-Id"}
        _, message = server.sender.mails[-1]
        text = message.get_body(("plain",)).get_content().replace(address, "")
        lengths = [len(line) for line in text.splitlines()]
        seen.append((response.status_code, shape, list(statements), lengths))
    assert seen[0][:3] == seen[1][:3]
    assert len(seen[0][3]) == len(seen[1][3])


@sqlite_only
def test_sessions_of_one_scope_are_found_by_a_keyed_hash_only(server, alice):
    """A stolen database says nothing about who asked for which address."""
    alice.request_token("canary@example.com", "canary-secret", next_link="https://canary.example/")
    stored = repr(
        server.database.read(
            lambda tx: [
                tuple(row)
                for table in ("validation_sessions", "validation_tokens")
                for row in tx.exec_driver_sql(f"SELECT * FROM {table}")
            ]
        )
    )
    assert "canary" not in stored
    assert server.mailed()["token"] not in stored


@pytest.mark.requirement("MAIL-01")
def test_brand_of_any_shape_is_taken_for_none(make_server):
    """It comes from the query, where nobody has looked at it yet."""
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    for number, brand in enumerate(("b" * 65, "b" * 10_000, "\0", "a\0b", "\ud800", "é", "")):
        query = {"brand": brand.encode("utf-8", "surrogatepass")}
        body = {"email": EMAIL, "client_secret": f"secret{number}", "send_attempt": 1}
        assert alice.post(REQUEST, json=body, query_string=query).status_code == 200, brand
    assert {row["brand"] for row in server.rows("validation_sessions")} == {None}
    assert len(server.sender.mails) == 7
