"""E22: a fraudster with 500 accounts asks for 10,000 messages to one block of numbers.

Against `identity serve` with two workers on PostgreSQL and a gateway on loopback, while 100 people
in the same country and in others prove their numbers. Pass: at most 50 messages to the block, all
of the people, no more spent than the cap. Once as configured, once with the breaker alone.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import urllib3
from parts.databases import find_postgres
from parts.processes import RunningServer
from parts.pumping import SETTINGS, Outcome, Person, Server, pump
from parts.sms_gateway import FakeGateway

# A quarter of the threads may send at once, which is to be enough for all callers here.
ROOM = {"SERVER__THREADS": "64"}
RUNS = {
    "limits and breaker": {},
    "breaker alone": {"RATE_LIMITS__ENABLED": "false", "SMS__SPEND_PER_DAY": "99"},
}


def main() -> None:
    requests = 1_000 if "--quick" in sys.argv else 10_000
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        postgres = find_postgres(Path(folder))
        for name, settings in RUNS.items():
            url = postgres.create(migrated=False)
            with FakeGateway() as gateway:
                running = RunningServer(
                    Path(folder) / name,
                    {"DATABASE__URL": url, **gateway.settings(), **SETTINGS, **ROOM, **settings},
                )
                try:
                    running.start()
                    outcomes[name] = pump(over_http(running, gateway), requests)
                finally:
                    running.close()
                    postgres.drop(url)
        postgres.close()
    print(". ".join(f"{name}: {outcome}" for name, outcome in outcomes.items()))
    sys.exit(not all(map(passed, outcomes.items())))


def passed(run: tuple[str, Outcome]) -> bool:
    name, outcome = run
    return (
        outcome.passed
        if name == "limits and breaker"
        else (outcome.to_block <= 50 and outcome.proved == 100)
    )


def over_http(running: RunningServer, gateway: FakeGateway) -> Server:
    """The same from outside, as proxies in front of it pass it on."""
    tokens: dict[str, str] = {}
    http = urllib3.PoolManager(maxsize=32, retries=False, timeout=60)

    def post(person: Person, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        token = tokens.get(person.user_id)
        if token is None:
            token = tokens[person.user_id] = running.token(person.user_id)
        answer = http.request(
            "POST",
            f"{running.base_url}/_matrix/identity/v2{path}",
            headers={
                "Authorization": f"Bearer {token}",
                "X-Forwarded-For": person.ip,
                "Connection": "close",
            },
            json=body,
        )
        return answer.status, answer.json()

    def code_for(number: str) -> str:
        return [text.code for text in gateway.texts if text.to == f"+{number}"][-1]

    return Server(post, code_for, sent=lambda: [text.to[1:] for text in gateway.texts])


if __name__ == "__main__":
    main()
