"""What the log looks like; that no secret is in it is also looked at in test_secrets_in_logs."""

import json
import signal
import socket
import subprocess
import sys

import pytest
from parts.processes import RunningServer, wait_until
from parts.server import V2

one_database = pytest.mark.parametrize("database_kind", ["sqlite"])

CANARY = "canary7f3a"
# Each is no HTTP, or no more than the beginning of it, in a way of its own.
MALFORMED = {
    "request line": f"GET {V2}/account?access_token={CANARY}\r\n\r\n",
    "method": f"{CANARY}({CANARY}) / HTTP/1.1\r\n\r\n",
    "version": f"GET {V2}/account?access_token={CANARY} HTTP/9\r\n\r\n",
    "long line": f"GET /{CANARY * 1_000} HTTP/1.1\r\n\r\n",
    "header name": f"GET / HTTP/1.1\r\nAuthorization : Bearer {CANARY}\r\n\r\n",
    "header": f"GET / HTTP/1.1\r\n{CANARY}\r\n\r\n",
    "folded header": f"GET / HTTP/1.1\r\nAuthorization: Bearer\r\n {CANARY}\r\n\r\n",
    "long header": f"GET / HTTP/1.1\r\nAuthorization: Bearer {CANARY * 1_000}\r\n\r\n",
    "many headers": "GET / HTTP/1.1\r\n" + f"X-{CANARY}: 1\r\n" * 60 + "\r\n",
    "length": f"POST / HTTP/1.1\r\nContent-Length: {CANARY}\r\n\r\n",
    "coding": f"POST / HTTP/1.1\r\nTransfer-Encoding: {CANARY}\r\n\r\n",
    "expectation": f"POST / HTTP/1.1\r\nExpect: {CANARY}\r\n\r\n",
}
MALFORMED_CHUNK = (
    f"POST {V2}/account/register HTTP/1.1\r\nHost: id.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    f"{CANARY}\r\n"
)


def send(server: RunningServer, text: str) -> tuple[int, dict[str, str], dict[str, str]]:
    """Status, headers and JSON of the answer to something that need not be HTTP."""
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        client.sendall(text.encode())
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), json.loads(body)


def events(server: RunningServer) -> list[dict]:
    """Every line, each of which must be JSON."""
    return [json.loads(line) for line in server.log.splitlines()]


@pytest.fixture
def talkative(make_running) -> RunningServer:
    server = make_running({"LOGGING__FORMAT": "json", "LOGGING__LEVEL": "debug"})
    server.start()
    return server


@one_database
@pytest.mark.requirement("GEN-06", "GEN-21")
def test_malformed_requests_are_answered_in_json_and_logged_without_what_they_say(talkative):
    answered = {}
    for name, text in MALFORMED.items():
        status, headers, body = send(talkative, text)
        assert status in (400, 414, 431), name
        assert headers["Content-Type"] == "application/json"
        assert headers["Access-Control-Allow-Origin"] == "*"
        assert body.keys() == {"errcode", "error"}
        assert body["errcode"] == "M_UNKNOWN"
        answered[headers["X-Request-Id"]] = status
    assert set(answered.values()) == {400, 414, 431}
    status, headers, body = send(talkative, MALFORMED_CHUNK)
    assert (status, body["errcode"]) == (400, "M_NOT_JSON")

    logged = [event for event in events(talkative) if event["event"] == "request_malformed"]
    assert {event["request_id"]: event["status"] for event in logged} == answered
    assert CANARY not in talkative.log
    assert "Traceback" not in talkative.log
    assert all(event["level"] in ("debug", "info", "warning") for event in events(talkative))


@one_database
def test_lines_are_json_whatever_happens_and_name_the_request_they_belong_to(talkative):
    token = talkative.token("@alice:hs.test")
    answers = [
        talkative.request_token(token, "alice@example.org"),
        talkative.get("/account"),
        talkative.get("/nowhere"),
        talkative.get("/pubkey/nope"),
    ]
    assert [answer.status for answer in answers] == [200, 401, 404, 404]
    crashed = talkative.crash("worker")
    wait_until(lambda: talkative.find_process("worker") not in (None, crashed))
    talkative.signal(signal.SIGHUP)
    talkative.wait_for_log("reloading")
    assert talkative.get("/ready").status == 200
    assert talkative.stop() == 0

    lines = events(talkative)
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    told = {line["event"] for line in lines}
    assert {"created", "listening", "child_started", "request", "reloading", "stopping"} <= told
    # gunicorn says in its own words that a worker is gone.
    assert any("SIGKILL" in line["event"] for line in lines)
    requests = [line for line in lines if line["event"] == "request"]
    ids = [line["request_id"] for line in requests]
    assert len(set(ids)) == len(ids)
    assert {answer.headers["X-Request-Id"] for answer in answers} <= set(ids)
    (mail,) = [line for line in lines if line["event"] == "email_written"]
    assert mail["request_id"] == answers[0].headers["X-Request-Id"]
    for line in lines:
        assert ("request_id" in line) == (line["event"] in ("request", "email_written"))


@pytest.mark.parametrize("style", ["json", "console"])
def test_tracebacks_hold_no_values_of_variables(style):
    program = f"""
import logging, structlog
from identity import logs
logs.configure("debug", "{style}")
def fail(token):
    raise RuntimeError("it failed")
for log in (structlog.get_logger("ours"), logging.getLogger("another")):
    try:
        fail("can" + "ary")
    except RuntimeError:
        log.exception("request_failed")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout == ""
    assert ended.stderr.count("RuntimeError: it failed") == 2
    assert "canary" not in ended.stderr
    if style == "json":
        lines = [json.loads(line) for line in ended.stderr.splitlines()]
        assert [line["event"] for line in lines] == ["request_failed"] * 2
