"""E24: the Redis of the limits is killed, falls silent for 60 s, and is flushed.

`identity serve` with two workers and a gateway on loopback; one caller after another asks for
messages and submits the right code, while lookups never pause. Pass, for kill and silence: no
message and no code passes meanwhile, at least 95 % of lookups are answered, both pass again within
5 s, and there are no more messages in all than the limit allows. A flush cannot be told from an
hour without any messages: the limit begins anew, and the daily cap, in the database, holds.
"""

import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import redis
import urllib3
from parts.databases import find_postgres
from parts.processes import RunningServer, wait_until
from parts.redis_server import OwnRedis
from parts.sms_gateway import FakeGateway

from identity.lookup.hashing import encode_hash, lookup_hash

LIMIT = 20
CAP = 25
BACK_S = 5
WIDE = ("COUNTRY_OTHERS", "IP", "ACCOUNT", "HOMESERVER")
SETTINGS = {
    "SMS__DAILY_LIMIT": str(CAP),
    "RATE_LIMITS__LIMITS__SMS_GLOBAL": f"{LIMIT}/h",
    **{f"RATE_LIMITS__LIMITS__SMS_{name}": "1000/h" for name in WIDE},
}


@dataclass
class Lookups:
    """One client that looks an address up again and again, by one connection after another."""

    server: RunningServer
    token: str
    answers: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        pepper = self.server.get("/hash_details", token=self.token).json()["lookup_pepper"]
        asked = encode_hash(lookup_hash("a@example.com", "email", pepper))
        body = {"algorithm": "sha256", "pepper": pepper, "addresses": [asked]}
        while not self.stopping.wait(0.02):
            began = time.monotonic()
            self.answers[self.server.post("/lookup", token=self.token, json=body).status] += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def take(self) -> tuple[Counter[int], float]:
        """What happened since the last time."""
        taken = self.answers, self.slowest_s
        self.answers, self.slowest_s = Counter(), 0.0
        return taken


class Caller:
    """An account that asks for messages, each to a number of a block of its own."""

    def __init__(self, server: RunningServer, gateway: FakeGateway) -> None:
        self._server = server
        self._gateway = gateway
        self._token = server.token("@a:hs.test")
        self._numbers = (f"44750{index:03}1234" for index in count())

    def ask(self) -> tuple[int, dict[str, str]]:
        """The status, and the session with its code."""
        number = next(self._numbers)
        body = {"country": "", "phone_number": f"+{number}", "send_attempt": 1}
        answer = self._post("requestToken", {**body, "client_secret": "secret"})
        if answer.status != 200:
            return answer.status, {}
        code = next(text.code for text in self._gateway.texts if text.to == f"+{number}")
        session = {"sid": answer.json()["sid"], "client_secret": "secret", "token": code}
        return 200, session

    def submit(self, session: dict[str, str]) -> int:
        return self._post("submitToken", session).status

    def _post(self, name: str, body: dict[str, object]) -> urllib3.BaseHTTPResponse:
        return self._server.post(f"/validate/msisdn/{name}", token=self._token, json=body)


def main() -> None:
    seconds = 5 if "--quick" in sys.argv else 60
    with tempfile.TemporaryDirectory() as folder, FakeGateway() as gateway:
        postgres, own_redis = find_postgres(Path(folder)), OwnRedis(Path(folder))
        url = postgres.create(migrated=False)
        own_redis.start()
        server = RunningServer(
            Path(folder) / "server",
            {
                "DATABASE__URL": url,
                "RATE_LIMITS__STORAGE": own_redis.url,
                **gateway.settings(),
                **SETTINGS,
            },
        )
        try:
            server.start()
            passed, figures = run(server, gateway, own_redis, seconds)
        finally:
            server.close()
            own_redis.kill()
            postgres.drop(url)
            postgres.close()
    print(figures)
    sys.exit(not passed)


def run(
    server: RunningServer, gateway: FakeGateway, own_redis: OwnRedis, seconds: int
) -> tuple[bool, str]:
    began = time.monotonic()
    caller = Caller(server, gateway)
    lookups = Lookups(server, server.token("@b:hs.test"))
    thread = threading.Thread(target=lookups.run)
    thread.start()
    try:
        faults = [
            ("killed", own_redis.kill, own_redis.start, min(seconds, 10)),
            ("silent", own_redis.fall_silent, own_redis.speak_again, seconds),
        ]
        reports = [
            while_away(name, caller, lookups, gateway, begin, end, lasts_s)
            for name, begin, end, lasts_s in faults
        ]
        while caller.ask()[0] != 429:
            pass
        before_flush = len(gateway.texts)
        allowed = LIMIT * (1 + (time.monotonic() - began) / 3_600)
        with redis.Redis.from_url(own_redis.url) as client:
            client.flushall()
        while caller.ask()[0] != 429:
            pass
    finally:
        lookups.stopping.set()
        thread.join()
    passed = (
        all(ok for ok, _ in reports)
        and before_flush <= allowed
        and len(gateway.texts) <= CAP
        and set(lookups.answers) == {200}
    )
    return passed, "; ".join(
        [
            *(text for _, text in reports),
            f"{before_flush} messages of {LIMIT} an hour",
            f"flushed: {len(gateway.texts)} messages of {CAP} a day, as the database counts",
        ]
    )


def while_away(name, caller, lookups, gateway, begin, end, lasts_s) -> tuple[bool, str]:
    """Whether it passed, and what happened from the fault until all is well again."""
    status, session = caller.ask()
    assert status == 200
    lookups.take()
    sent = len(gateway.texts)
    begin()
    ends_at = time.monotonic() + lasts_s
    messages: Counter[int] = Counter()
    codes: Counter[int] = Counter()
    while time.monotonic() < ends_at:
        messages[caller.ask()[0]] += 1
        codes[caller.submit(session)] += 1
    leaked = len(gateway.texts) - sent
    answers, slowest_s = lookups.take()
    end()
    began = time.monotonic()
    wait_until(lambda: caller.submit(session) == 200)
    wait_until(lambda: caller.ask()[0] == 200)
    back_s = time.monotonic() - began
    answered = answers[200] / answers.total()
    passed = set(messages) == set(codes) == {503} and not leaked and back_s <= BACK_S
    return passed and answered >= 0.95, (
        f"{name} {lasts_s} s: {messages.total()} messages and {codes.total()} codes asked for, "
        f"{leaked + codes[200]} passed; {answered:.1%} of {answers.total()} lookups answered, "
        f"slowest {slowest_s:.2f} s; back after {back_s:.2f} s"
    )


if __name__ == "__main__":
    main()
