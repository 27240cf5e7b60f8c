"""E24: Redis that is killed, flushed, or behind a broken network, and what goes on meanwhile."""

import time

import pytest
import redis
from parts.phones import code_sent, request_code, submit, wrong
from parts.validation import refused, sqlite_only

pytestmark = sqlite_only
NUMBER = "447400120001"


@pytest.fixture
def server(make_server, own_redis):
    return make_server({"RATE_LIMITS__STORAGE": own_redis.url})


@pytest.fixture
def session(alice):
    """Of a code that was sent before anything went wrong."""
    answer = request_code(alice, f"+{NUMBER}")
    assert answer.status_code == 200
    return {"sid": answer.json["sid"], "client_secret": "secret", "token": code_sent(alice.server)}


def nothing_passes(server, account, session):
    """Neither messages nor codes, right or wrong; and it takes nobody long."""
    began = time.monotonic()
    assert refused(request_code(account, "+4915112345678"), 503, "M_UNKNOWN")
    assert refused(submit(account, session), 503, "M_UNKNOWN")
    assert refused(submit(account, session, token=wrong(session["token"])), 503, "M_UNKNOWN")
    assert time.monotonic() - began < 5
    assert len(server.text_sender.texts) == 1
    return True


def test_killed_redis_lets_nothing_through_and_forgets_nothing(server, alice, session, own_redis):
    own_redis.kill()
    assert nothing_passes(server, alice, session)
    for _ in range(5):
        assert server.found("a@example.com") is None
    own_redis.start()
    began = time.monotonic()
    # The number is still in the gap after its first message, and nothing was charged meanwhile.
    assert refused(request_code(alice, f"+{NUMBER}", send_attempt=2), 429, "M_LIMIT_EXCEEDED")
    assert request_code(alice, "+4915112345678").status_code == 200
    assert submit(alice, session).json == {"success": True}
    assert time.monotonic() - began < 5


def test_silent_redis_lets_nothing_through_while_lookups_go_on(server, alice, session, own_redis):
    own_redis.fall_silent()
    assert nothing_passes(server, alice, session)
    for _ in range(5):
        assert server.found("a@example.com") is None
    own_redis.speak_again()
    began = time.monotonic()
    assert submit(alice, session).json == {"success": True}
    assert time.monotonic() - began < 5


def test_flushed_redis_leaves_attempts_breakers_pauses_and_cap_in_force(make_server, own_redis):
    """What they hold lies in the database; the limits themselves begin anew."""
    server = make_server({"RATE_LIMITS__STORAGE": own_redis.url, "SMS__DAILY_LIMIT": "4"})
    alice = server.account("@alice:hs.test")

    def flush():
        with redis.Redis.from_url(own_redis.url) as client:
            client.flushall()

    answer = request_code(alice, f"+{NUMBER}")
    session = {"sid": answer.json["sid"], "client_secret": "secret", "token": code_sent(server)}
    for _ in range(5):
        flush()
        guess = submit(alice, session, token=wrong(session["token"]))
        assert refused(guess, 400, "M_TOKEN_INCORRECT")
    flush()
    assert refused(submit(alice, session), 400, "M_TOKEN_INCORRECT")

    for index in range(5):
        flush()
        number = f"+44750{index:02}12345"
        assert request_code(alice, number).status_code == (200 if index < 3 else 429)
    server.services.sms_defence.pause("44")
    server.clock.advance(hours=24)
    flush()
    assert refused(request_code(alice, f"+{NUMBER}", send_attempt=3), 400, "M_DESTINATION_REJECTED")
    assert len(server.text_sender.texts) == 4
