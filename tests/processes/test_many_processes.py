"""What is counted is counted once for all processes: attempts (E20) and limits (row 52)."""

import http.client
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from parts.phones import code_sent, request_code
from parts.processes import PATIENCE_S, RunningServer
from parts.server import V2, Account
from parts.validation import token_values

CONNECTIONS = 16
GUESSES = 1_000
RIGHT_ONE_AT = 500
MAILS, MAILS_ALLOWED = 60, 20

# Not what is looked at, and in the way.
OTHER_LIMITS = {
    f"RATE_LIMITS__LIMITS__{name}": "100000/d"
    for name in ("EMAIL_ACCOUNT", "EMAIL_IP", "WRONG_TOKENS_ACCOUNT", "WRONG_TOKENS_HOMESERVER")
}


@pytest.fixture
def server(make_running) -> RunningServer:
    settings = {"RATE_LIMITS__LIMITS__EMAIL_GLOBAL": f"{MAILS_ALLOWED}/d"}
    server = make_running({"SERVER__WORKERS": "8", **OTHER_LIMITS, **settings})
    server.start()
    return server


def post_all(
    server: RunningServer, path: str, token: str, count: int, body: Callable[[int], dict[str, Any]]
) -> list[tuple[int, dict[str, Any]]]:
    """Status and answer of `count` requests, sent over 16 connections as fast as they go."""
    numbers = itertools.count()
    answers: list[Any] = [None] * count
    start = threading.Barrier(CONNECTIONS)

    def send() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        start.wait()
        while (number := next(numbers)) < count:
            headers = {"Authorization": f"Bearer {token}"}
            connection.request("POST", V2 + path, json.dumps(body(number)), headers)
            response = connection.getresponse()
            answers[number] = (response.status, json.loads(response.read()))
        connection.close()

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        for sending in [threads.submit(send) for _ in range(CONNECTIONS)]:
            sending.result()
    return answers


def ask_for_token(account: Account, medium: str) -> dict[str, str]:
    """`sid`, `client_secret` and the right `token`."""
    if medium == "email":
        assert account.request_token("alice@example.org").status_code == 200
        return token_values(account.server.mailed())
    answer = request_code(account)
    assert answer.status_code == 200
    code = code_sent(account.server)
    return {"sid": answer.json["sid"], "client_secret": "secret", "token": code}


def wrong_token(right: str, number: int) -> str:
    """One of the same form."""
    return f"{(int(right) + 1 + number) % 10**6:06}" if right.isdigit() else f"wrong{number}"


@pytest.mark.parametrize("medium", ["email", "msisdn"])
def test_guesses_in_parallel_are_evaluated_five_times_and_no_more(server, medium):
    """E20: 1,000 guesses over 8 processes, the right one among them after more than 5 wrong."""
    alice = server.inside.account("@alice:hs.test")
    values = ask_for_token(alice, medium)
    path = f"/validate/{medium}/submitToken"

    def guess(number: int) -> dict[str, Any]:
        right = number == RIGHT_ONE_AT
        return values if right else values | {"token": wrong_token(values["token"], number)}

    answers = post_all(server, path, alice.token, GUESSES, guess)
    assert Counter(status for status, _ in answers) == {400: GUESSES}
    assert {answer["errcode"] for _, answer in answers} == {"M_TOKEN_INCORRECT"}
    (stored,) = server.inside.rows("validation_sessions")
    assert stored["attempts"] == 5
    assert stored["validated_at_ms"] is None
    late = server.post(path, token=alice.token, json=values)
    assert late.status == 400


def test_limit_is_the_same_for_all_processes_together(server):
    def ask(number: int) -> dict[str, Any]:
        email = f"person{number}@example{number}.org"
        return {"email": email, "client_secret": "secret", "send_attempt": 1}

    token = server.token("@alice:hs.test")
    answers = post_all(server, "/validate/email/requestToken", token, MAILS, ask)
    allowed = {200: MAILS_ALLOWED, 429: MAILS - MAILS_ALLOWED}
    assert Counter(status for status, _ in answers) == allowed
    refused = [answer for status, answer in answers if status == 429]
    assert {answer["errcode"] for answer in refused} == {"M_LIMIT_EXCEEDED"}
    assert len(list((server.folder / "data" / "outbox").iterdir())) == MAILS_ALLOWED
    assert len(server.inside.rows("validation_tokens")) == MAILS_ALLOWED
