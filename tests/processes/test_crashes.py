"""No acknowledged bind is lost while processes are killed at random (E1).

$IDENTITY_TEST_KILLS says how many are killed; the full experiment is 200.
"""

import json
import os
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import urllib3
from parts.processes import RunningServer, identity, kill, wait_until

from identity.replication.chain import EMPTY_HEAD, leaf_of, next_head

KILLS = int(os.environ.get("IDENTITY_TEST_KILLS", "8"))
BINDS_BETWEEN_KILLS = 6
BINDERS = 5
BIND_EVERY_S = 0.25
ADDRESSES = 6


@dataclass
class Binder:
    """A client that binds its addresses over and over again."""

    user_id: str
    token: str
    sessions: dict[str, dict[str, str]]
    acknowledged: list[dict[str, Any]] = field(default_factory=list)
    answers: Counter[int | str] = field(default_factory=Counter)

    def run(self, server: RunningServer, over: threading.Event) -> None:
        while True:
            for session in self.sessions.values():
                self._bind(server, session)
                if over.wait(BIND_EVERY_S):
                    return

    def _bind(self, server: RunningServer, session: dict[str, str]) -> None:
        body = {**session, "mxid": self.user_id}
        try:
            answer = server.post("/3pid/bind", token=self.token, json=body)
        except urllib3.exceptions.HTTPError:
            self.answers["none"] += 1
            return
        self.answers[answer.status] += 1
        if answer.status == 200:
            self.acknowledged.append(answer.json())


def make_binder(server: RunningServer, number: int) -> Binder:
    account = server.inside.account(f"@user{number}:hs.test")
    addresses = [f"user{number}.{index}@example.org" for index in range(ADDRESSES)]
    sessions = {address: account.validate(address) for address in addresses}
    return Binder(account.user_id, account.token, sessions)


def kill_at_random(server: RunningServer, binders: list[Binder]) -> None:
    """Any process but the supervisor, at any time, but so seldom that binds succeed between."""
    chance = random.Random()
    pause = threading.Event()
    for _ in range(KILLS):
        enough = _acknowledged(binders) + BINDS_BETWEEN_KILLS
        wait_until(lambda enough=enough: _acknowledged(binders) >= enough)
        pause.wait(chance.random() * BIND_EVERY_S)
        kill(chance.choice(wait_until(server.descendants)))


def test_binds_that_were_acknowledged_survive_crashes_of_all_processes(make_running):
    server = make_running({"RATE_LIMITS__ENABLED": "false"})
    server.start()
    binders = [make_binder(server, number) for number in range(BINDERS)]
    over = threading.Event()
    with ThreadPoolExecutor() as threads:
        runs = [threads.submit(binder.run, server, over) for binder in binders]
        try:
            kill_at_random(server, binders)
        finally:
            over.set()
        for run in runs:
            run.result()
    assert server.get("/ready").status == 200
    answers = sum((binder.answers for binder in binders), Counter())
    assert set(answers) <= {200, 503, "none"}, answers

    check_everyone_is_found(server, binders)
    assert server.stop() == 0
    check_log(server, binders)
    check_view(server, binders)
    digest = identity("db", "digest", folder=server.folder, settings=server.settings)
    assert digest.returncode == 0, digest.stderr
    rebuilt = identity("db", "rebuild", folder=server.folder, settings=server.settings)
    assert rebuilt.returncode == 0, rebuilt.stderr
    again = identity("db", "digest", folder=server.folder, settings=server.settings)
    assert json.loads(again.stdout) == json.loads(digest.stdout)
    check_view(server, binders)


def check_everyone_is_found(server: RunningServer, binders: list[Binder]) -> None:
    """Through the API, by hash."""
    bound = {item["address"]: item["mxid"] for binder in binders for item in binder.acknowledged}
    hashes = {server.inside.hash_of(address): mxid for address, mxid in bound.items()}
    token = server.token("@reader:hs.test")
    pepper = server.get("/hash_details", token=token).json()["lookup_pepper"]
    body = {"algorithm": "sha256", "pepper": pepper, "addresses": list(hashes)}
    assert server.post("/lookup", token=token, json=body).json() == {"mappings": hashes}


def check_log(server: RunningServer, binders: list[Binder]) -> None:
    """All that was acknowledged is in the log, and the chain over the log is whole."""
    rows = sorted(server.inside.rows("statements"), key=lambda row: row["origin_id"])
    logged = {_comparable(json.loads(row["signed"])) for row in rows}
    for binder in binders:
        assert {_comparable(association) for association in binder.acknowledged} <= logged
    head = EMPTY_HEAD
    for row in rows:
        assert bytes(row["leaf"]) == leaf_of(row["signed"])
        head = next_head(head, row["origin_id"], bytes(row["leaf"]))
    (origin,) = server.inside.rows("origins")
    assert bytes(origin["head"]) == head
    assert origin["last_id"] == rows[-1]["origin_id"] == len(rows)


def check_view(server: RunningServer, binders: list[Binder]) -> None:
    """One live row for each address that somebody began to bind, and one in the index."""
    statements = [json.loads(row["signed"]) for row in server.inside.rows("statements")]
    bound = {statement["address"]: statement["mxid"] for statement in statements}
    live = [row["mxid"] for row in server.inside.rows("associations") if row["mxid"]]
    assert Counter(live) == Counter(bound.values())
    assert len(server.inside.rows("lookup_index")) == len(bound)
    acknowledged = {item["address"] for binder in binders for item in binder.acknowledged}
    assert acknowledged <= bound.keys()


def _acknowledged(binders: list[Binder]) -> int:
    return sum(len(binder.acknowledged) for binder in binders)


def _comparable(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)
