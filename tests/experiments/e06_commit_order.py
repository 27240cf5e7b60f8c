"""E6: 16 writers, a twentieth of whose transactions roll back, and a courier that dies every 5 s.

They write to one PostgreSQL through four hosts, for 60 seconds, thinking up to 50 ms. Pass: the peer
gets every one of 10,000 statements or more. The control, a table numbered by a sequence and a
reader that asks for ids above the last it saw, beside it in the same run, misses 1 % or more.
"""

import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import sqlalchemy as sa
from cluster import NO_HOMESERVER, Replica, check_converged, wait_until_equal
from parts.databases import find_postgres
from parts.processes import environment, wait_until
from parts.server import Server

from identity.clock import SystemClock
from identity.config import load
from identity.errors import StorageUnavailable
from identity.mxid import UserId
from identity.threepid import ThreePid

WRITERS, HOSTS = 16, 4
ROLLED_BACK = 0.05
MAX_THINK_S = 0.05
MAX_IN_ONE = 8
RESTART_EVERY_S = 5
MIN_STATEMENTS = 10_000
WAIT_S = 120

_NAIVE = sa.Table(
    "naive", sa.MetaData(), sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True)
)


class RolledBack(Exception):
    """The writer changed its mind."""


def main() -> None:
    quick = "--quick" in sys.argv
    seconds = 10 if quick else 60
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = find_postgres(folder)
        url = postgres.create(migrated=False)
        stack.callback(postgres.drop, url)
        sender = Replica("a.example.org", folder / "a", None, {"DATABASE__URL": url})
        receiver = Replica("b.example.org", folder / "b", None, {})
        for server in (sender, receiver):
            stack.callback(server.running.close)
            server.start()
        receiver.meet(sender.as_peer())
        sender.meet(receiver.as_peer())

        reader = stack.enter_context(contextlib.closing(open_host(sender.running.settings)))
        reader.database.write(_NAIVE.create)
        over = threading.Event()
        with ProcessPoolExecutor(HOSTS) as hosts, ThreadPoolExecutor(2) as threads:
            writing = [
                hosts.submit(write_all, sender.running.settings, number, seconds)
                for number in range(HOSTS)
            ]
            naive = threads.submit(read_naively, reader, over)
            restarts = threads.submit(restart_courier, sender, over)
            try:
                acknowledged = [signed for host in writing for signed in host.result()]
            finally:
                over.set()
            seen, restarted = naive.result(), restarts.result()
        numbered = reader.database.read(
            lambda tx: tx.execute(sa.select(_NAIVE.c.id)).scalars().all()
        )
        took_s = wait_until_equal([sender, receiver], WAIT_S)
        count = check_converged([sender, receiver], acknowledged)
    missed = len(set(numbered) - set(seen)) / len(numbered)
    print(
        f"0 missed of {count} statements by {WRITERS} writers in {seconds} s, {restarted} couriers "
        f"killed, equal {took_s:.1f} s after the end; a naive cursor missed {missed:.0%} "
        f"of {len(numbered)}"
    )
    assert count >= len(acknowledged)
    # A few seconds, or a machine that is busy with other things, show too little.
    assert quick or (count >= MIN_STATEMENTS and missed >= 0.01)


def open_host(settings: Mapping[str, str]) -> Server:
    """A host of its own over the sender's database."""
    return Server(load(None, environment(settings)), SystemClock())


def write_all(settings: Mapping[str, str], number: int, seconds: float) -> list[dict[str, Any]]:
    """What the writers of one host have committed."""
    with contextlib.closing(open_host(settings)) as host, ThreadPoolExecutor() as threads:
        ends_at_s = time.monotonic() + seconds
        numbers = range(number, WRITERS, HOSTS)
        written = threads.map(lambda writer: write(host, writer, ends_at_s), numbers)
        return [signed for committed in written for signed in committed]


def write(host: Server, number: int, ends_at_s: float) -> list[dict[str, Any]]:
    random, committed = Random(number), []
    associations = host.services.associations
    while time.monotonic() < ends_at_s:
        user = UserId.parse(f"@{number}:{NO_HOMESERVER}")
        # A few in each transaction; some 3PIDs are everybody's.
        names = {
            f"{random.choice([number, 'shared'])}.{random.randrange(500)}"
            for _ in range(random.randint(1, MAX_IN_ONE))
        }
        wanted = {ThreePid.email(f"{name}@example.org"): user for name in sorted(names)}
        rolls_back, think_s = random.random() < ROLLED_BACK, random.uniform(0, MAX_THINK_S)

        def work(tx, wanted=wanted, rolls_back=rolls_back):
            signed = associations.publish_all(tx, wanted, tell=False)
            if rolls_back:
                raise RolledBack
            return signed

        def number_naively(tx, rolls_back=rolls_back, think_s=think_s):
            tx.execute(_NAIVE.insert())
            time.sleep(think_s)
            if rolls_back:
                raise RolledBack

        # On a machine that is busy enough the database may give up waiting: nothing is stored.
        with contextlib.suppress(RolledBack, StorageUnavailable):
            committed += host.database.write(work)
        with contextlib.suppress(RolledBack, StorageUnavailable):
            host.database.write(number_naively)
    return committed


def read_naively(host: Server, over: threading.Event) -> list[int]:
    """What a cursor sees that goes by ids alone."""
    seen: list[int] = [0]
    while not over.is_set():
        query = sa.select(_NAIVE.c.id).where(_NAIVE.c.id > seen[-1]).order_by(_NAIVE.c.id)
        seen += host.database.read(lambda tx, query=query: tx.execute(query).scalars().all())
        time.sleep(0.01)
    return seen


def restart_courier(server: Replica, over: threading.Event) -> int:
    count = 0
    while not over.wait(RESTART_EVERY_S):
        server.running.crash("courier")
        wait_until(lambda: server.running.find_process("courier"))
        count += 1
    return count


if __name__ == "__main__":
    main()
