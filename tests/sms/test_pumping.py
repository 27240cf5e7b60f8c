"""E22: messages that nobody reads, asked for in great numbers, through the API."""

import pytest
from parts.invitations import invite
from parts.phones import code_in, request_code
from parts.pumping import CAP, SETTINGS, Server, pump
from parts.validation import sqlite_only

REQUESTS = 2_000


def over_api(server):
    """The server in this process, as the fraudster and the people reach it."""
    accounts = {}

    def post(person, path, body):
        account = accounts.get(person.user_id)
        if account is None:
            account = accounts[person.user_id] = server.account(person.user_id)
        client = server.app.test_client()
        answer = client.post(
            f"/_matrix/identity/v2{path}",
            json=body,
            headers={
                "Authorization": f"Bearer {account.token}",
                "X-Forwarded-For": person.ip,
            },
        )
        return answer.status_code, answer.json

    return Server(
        post,
        code_for=lambda number: code_in(dict(server.text_sender.texts)[number]),
        sent=lambda: [number for number, _ in server.text_sender.texts],
    )


@pytest.mark.requirement("TEL-09")
def test_fraudster_with_many_accounts_gets_little_and_takes_nothing_from_the_others(make_server):
    """E22, threats 24 and 25."""
    server = make_server(SETTINGS)
    outcome = pump(over_api(server), REQUESTS)
    assert outcome.passed, outcome
    # That much an hour is given to any block.
    assert outcome.to_block == 10
    assert outcome.answers == {200: 10, 429: REQUESTS - 10}


@sqlite_only
@pytest.mark.requirement("TEL-09")
def test_breaker_alone_stops_a_fraudster_and_nobody_else(make_server):
    server = make_server({**SETTINGS, "RATE_LIMITS__ENABLED": "false", "SMS__SPEND_PER_DAY": "99"})
    outcome = pump(over_api(server), REQUESTS)
    assert outcome.to_block == 50
    assert outcome.proved == 100
    assert outcome.answers == {200: 50, 400: REQUESTS - 50}


@sqlite_only
@pytest.mark.requirement("TEL-09")
def test_cap_alone_stops_a_fraudster(make_server):
    server = make_server({**SETTINGS, "RATE_LIMITS__ENABLED": "false", "SMS__SPEND_PER_DAY": "2"})
    outcome = pump(over_api(server), REQUESTS)
    assert outcome.messages == 40 < CAP


def test_invitation_is_counted_as_a_message_and_not_as_a_code(server, alice):
    assert invite(alice, "447400120001", medium="msisdn").status_code == 200
    assert request_code(alice, "+447400120002").status_code == 200
    (country,) = [row for row in server.rows("sms_traffic") if row["scope"] == "GB others"]
    assert (country["admitted"], country["sent"]) == (2, 1)
