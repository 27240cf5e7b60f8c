"""A mail server or a homeserver that never answers: callers hear so in time, lookups go on (E23)."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from parts.mailserver import MailServer
from parts.processes import RunningServer

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"])

TIMEOUT_S = 3
# What the answer may come later by, on a busy machine.
GRACE_S = 5
CALLERS = 6
# A quarter of the eight threads may wait.
WAITING = 2


class Lookups:
    """Two clients that look up without a pause; how many answers they get in a while."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._token = server.token("@reader:hs.test")
        pepper = server.get("/hash_details", token=self._token).json()["lookup_pepper"]
        self._body = {"algorithm": "sha256", "pepper": pepper, "addresses": ["x" * 43]}

    def count_while(self, act: Callable[[], Any]) -> int:
        over = threading.Event()
        with ThreadPoolExecutor() as threads:
            counts = [threads.submit(self._look_up, over) for _ in range(2)]
            try:
                act()
            finally:
                over.set()
            return sum(count.result() for count in counts)

    def _look_up(self, over: threading.Event) -> int:
        count = 0
        while not over.is_set():
            answer = self._server.post("/lookup", token=self._token, json=self._body)
            assert answer.status == 200, answer.data
            count += 1
        return count


def call_all(call: Callable[[int], Any]) -> tuple[Counter, list[float]]:
    """Status and errcode of all callers at once, and how long each waited in seconds."""

    def timed(number: int) -> tuple[Any, float]:
        began = time.monotonic()
        answer = call(number)
        return (answer.status, answer.json()["errcode"]), time.monotonic() - began

    with ThreadPoolExecutor(CALLERS) as threads:
        outcomes = list(threads.map(timed, range(CALLERS)))
    return Counter(answer for answer, _ in outcomes), [waited_s for _, waited_s in outcomes]


def check_lookups_go_on(server: RunningServer, call: Callable[[int], Any]) -> Counter:
    """What callers of a black hole are told, in time, while lookups go on nearly as usual."""
    lookups = Lookups(server)
    usual = lookups.count_while(lambda: time.sleep(TIMEOUT_S))
    outcomes = []
    meanwhile = lookups.count_while(lambda: outcomes.append(call_all(call)))
    ((answers, waits_s),) = outcomes
    assert max(waits_s) < TIMEOUT_S + GRACE_S
    assert sum(waited_s >= TIMEOUT_S for waited_s in waits_s) == WAITING
    assert meanwhile > usual / 3
    return answers


def test_mail_server_that_never_answers_holds_up_nobody_else(make_running):
    with MailServer() as mail:
        server = make_running(
            {
                "SERVER__WORKERS": "1",
                "EMAIL__SMTP_HOST": "127.0.0.1",
                "EMAIL__SMTP_PORT": str(mail.port),
                "EMAIL__TLS": "none",
                "EMAIL__TIMEOUT": f"{TIMEOUT_S}s",
            }
        )
        server.start()
        token = server.token("@alice:hs.test")
        mail.hang_at = "CONNECT"

        def ask(number: int) -> Any:
            return server.request_token(token, f"alice{number}@example.org")

        answers = check_lookups_go_on(server, ask)
        assert answers == {(400, "M_EMAIL_SEND_ERROR"): CALLERS}
        assert server.inside.rows("validation_sessions") == []

        mail.hang_at = None
        assert ask(0).status == 200
        assert ask(0).status == 200
        assert len(mail.mails) == 1


def test_homeserver_that_never_answers_holds_up_nobody_else(make_running):
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        server = make_running(
            {
                "SERVER__WORKERS": "1",
                "FEDERATION__ALLOW_PRIVATE_ADDRESSES": "true",
                "FEDERATION__TIMEOUT": f"{TIMEOUT_S}s",
            }
        )
        server.start()
        name = f"127.0.0.1:{black_hole.getsockname()[1]}"
        body = {"access_token": "openid", "matrix_server_name": name}
        answers = check_lookups_go_on(server, lambda _: server.post("/account/register", json=body))
        assert answers == {(502, "M_UNKNOWN"): WAITING, (503, "M_UNKNOWN"): CALLERS - WAITING}
