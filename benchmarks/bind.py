"""Binds a second, each of another address, by `POST /3pid/bind` of validated sessions.

    benchmarks/bind.py [--binds 2000] [--workers 8] [--connections 8] [--rounds 3] [--database URL]

Prints binds a second beside what the disk allows: transactions a second of one process that writes
one row and commits, on the same database in the same run. Checks afterwards that ids grow without
a gap and that the chain holds.
"""

import argparse
import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from pathlib import Path

import load
import sqlalchemy as sa
from lookup import BIN, running, settings

from identity import logs
from identity.accounts.models import accounts
from identity.associations import store as associations_store
from identity.clock import SystemClock
from identity.config import load as load_config
from identity.mxid import UserId
from identity.opening import open_database
from identity.replication.chain import EMPTY_HEAD, next_head
from identity.services import Services, assemble
from identity.threepid import ThreePid
from identity.validation import store
from identity.validation.session import Session, new_sid

SECRET = "benchmark"
USER = UserId.parse("@bench:example.org")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--binds", type=int, default=2_000, help="in each round")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--database", default="")
    arguments = parser.parse_args()
    logs.configure("warning", "console")
    with tempfile.TemporaryDirectory() as folder:
        environ = settings(Path(folder), arguments.database) | {
            "IDENTITY_SERVER__WORKERS": str(arguments.workers),
        }
        config = load_config(None, environ)
        clock = SystemClock()
        services = assemble(config, open_database(config, clock, migrate=False).database, clock)
        token = services.accounts.issue_token(USER)
        rows = []
        with running([str(BIN / "identity"), "serve"], environ, config.server.listen.port):
            for number in range(arguments.rounds):
                sids = validated_sessions(services, number, arguments.binds)
                commits = commits_per_second(services)
                seconds = bind_all(config.server.listen.port, token, sids, arguments.connections)
                rows.append((arguments.binds / seconds, commits))
        check(services, arguments.binds * arguments.rounds)
        services.close()
    rates, ceilings = zip(*rows, strict=True)
    print(f"{arguments.workers} workers, {arguments.connections} connections")
    print(f"binds    {statistics.median(rates):6.0f} a second")
    print(f"commits  {statistics.median(ceilings):6.0f} a second, of one row by one process")
    print(f"ratio    {statistics.median(rate / ceiling for rate, ceiling in rows):6.2f}")


def validated_sessions(services: Services, number: int, count: int) -> list[str]:
    """As the storage has them once the tokens have been submitted; returns their sids."""
    database = services.database
    now_ms = services.clock.now_ms()
    secret_hash = database.keys.keyed_hash("client secret", SECRET)
    made = [
        Session(
            sid=new_sid(),
            owner=str(USER),
            threepid=ThreePid.email(f"round{number}.user{i}@example.org"),
            client_secret_hash=secret_hash,
            created_at_ms=now_ms,
            validated_at_ms=None,
            attempts=0,
            next_link=None,
            brand=None,
        )
        for i in range(count)
    ]

    def work(tx: sa.Connection) -> None:
        for session in made:
            store.insert_session(tx, database.keys, session, session.sid.encode().ljust(32))
            store.validate(tx, session.sid, now_ms)

    database.write(work, patient=True)
    return [session.sid for session in made]


def commits_per_second(services: Services, seconds: float = 2.0) -> float:
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        services.database.write(
            lambda tx: tx.execute(
                accounts.update()
                .where(accounts.c.user_id == str(USER))
                .values(created_at_ms=accounts.c.created_at_ms + 1)
            )
        )
        count += 1
    return count / (time.perf_counter() - began)


def bind_all(port: int, token: str, sids: list[str], connections: int) -> float:
    """Seconds that it took."""
    with multiprocessing.Pool(connections) as pool:
        began = time.perf_counter()
        pool.starmap(bind_some, [(port, token, sids[n::connections]) for n in range(connections)])
        return time.perf_counter() - began


def bind_some(port: int, token: str, sids: list[str]) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for sid in sids:
            body = json.dumps({"sid": sid, "client_secret": SECRET, "mxid": str(USER)}).encode()
            path = "/_matrix/identity/v2/3pid/bind"
            request = load.Request.post(
                "127.0.0.1", port, path, body, Authorization=f"Bearer {token}"
            )
            load.exchange(connection, request)


def check(services: Services, binds: int) -> None:
    """Raises: AssertionError."""

    def work(tx: sa.Connection) -> tuple[bytes, bytes, int]:
        ((_, last_id, head),) = associations_store.origin_states(tx)
        computed = EMPTY_HEAD
        ids = []
        for batch in associations_store.read_log(tx, 1_000):
            for entry in batch:
                ids.append(entry.origin_id)
                computed = next_head(computed, entry.origin_id, entry.leaf)
        assert ids == list(range(1, last_id + 1))
        assert last_id == binds
        return head, computed, last_id

    head, computed, _ = services.database.read(work)
    assert head == computed


if __name__ == "__main__":
    main()
