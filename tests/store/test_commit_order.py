"""Origin ids grow in the order of commits: whoever reads `id > last` misses nothing.

The lock of the origin makes it so (security.md, decision 1). The control shows that the reader
used here does miss rows where numbers come from a sequence.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import reduce

import pytest
import sqlalchemy as sa
from host import email, user, wait_until_blocked

from identity.associations.models import statements
from identity.associations.store import allocate_ids
from identity.replication.chain import EMPTY_HEAD, leaf_of, next_head

WRITERS, HOSTS, BINDS = 16, 4, 12


class Follower:
    """A peer's cursor: reads what has a greater id than the last it has seen."""

    def __init__(self, host, table=statements, column=statements.c.origin_id):
        self._host = host
        self._query = (
            sa.select(column).where(column > sa.bindparam("last")).order_by(column).limit(10)
        )
        self.seen = []

    def read(self):
        """Whether there was something."""
        last = {"last": self.seen[-1] if self.seen else 0}
        new = self._host.database.read(lambda tx: tx.execute(self._query, last).scalars().all())
        self.seen += new
        return bool(new)


def assert_chain(host):
    """The head of the chain is that of the log, and each leaf that of its statement."""
    log = host.rows("statements")
    assert [row["leaf"] for row in log] == [leaf_of(row["signed"]) for row in log]
    (origin,) = host.rows("origins")
    assert origin["last_id"] == log[-1]["origin_id"]
    chain = ((row["origin_id"], row["leaf"]) for row in log)
    assert origin["head"] == reduce(lambda head, item: next_head(head, *item), chain, EMPTY_HEAD)


def test_reader_behind_sixteen_writers_misses_nothing(make_host):
    hosts = [make_host() for _ in range(HOSTS)]
    follower = Follower(make_host())
    writing = threading.Event()
    writing.set()

    def write(writer):
        host = hosts[writer % HOSTS]
        for number in range(BINDS):
            # Some 3PIDs belong to one writer, some are bound by all of them.
            shared = number % 3 == 0
            address = f"{'shared' if shared else writer}.{number}@example.com"
            host.bind(address, f"writer{writer}")

    def follow():
        while writing.is_set():
            follower.read()
        while follower.read():
            pass

    with ThreadPoolExecutor(WRITERS + 1) as threads:
        following = threads.submit(follow)
        try:
            list(threads.map(write, range(WRITERS)))
        finally:
            writing.clear()
        following.result()

    log = hosts[0].rows("statements")
    assert len(log) == WRITERS * BINDS
    assert follower.seen == [row["origin_id"] for row in log]
    assert follower.seen == list(range(1, WRITERS * BINDS + 1))
    assert_chain(hosts[0])
    # Of each 3PID there is one row, and it is the newest.
    newest = {}
    for row in log:
        newest[row["threepid"]] = max(
            newest.get(row["threepid"], (0, 0)), (row["ts_ms"], row["origin_id"])
        )
    held = {
        row["threepid"]: (row["ts_ms"], row["origin_id"]) for row in hosts[0].rows("associations")
    }
    assert held == newest


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_statement_that_is_numbered_first_is_seen_first(make_host):
    """The very moment: the first writer has its number and does not commit yet."""
    first, second = make_host(), make_host()
    follower = Follower(make_host())
    numbered, committing = threading.Event(), threading.Event()

    def publish(tx):
        first.associations.publish(tx, email("first@example.com"), user("first"))
        numbered.set()
        assert committing.wait(10)

    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(first.database.write, publish)
        assert numbered.wait(10)
        fast = threads.submit(second.bind, "second@example.com", "second")
        wait_until_blocked(first.database)
        assert not follower.read()
        committing.set()
        slow.result()
        fast.result()
    while follower.read():
        pass
    assert follower.seen == [1, 2]
    assert_chain(first)


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_control_a_sequence_makes_the_same_reader_miss_a_row(make_host):
    first, second = make_host(), make_host()
    meta = sa.MetaData()
    naive = sa.Table("naive", meta, sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True))
    first.database.write(meta.create_all)
    follower = Follower(make_host(), naive, naive.c.id)

    def insert(tx):
        tx.execute(naive.insert())
        second.database.write(lambda other: other.execute(naive.insert()))
        follower.read()

    first.database.write(insert)
    while follower.read():
        pass
    assert follower.seen == [2]
    assert first.database.read(lambda tx: tx.execute(sa.select(naive.c.id)).scalars().all()) == [
        1,
        2,
    ]


def test_number_that_was_rolled_back_is_given_out_again(host):
    host.bind("one@example.com", "one")

    class Unwanted(Exception):
        pass

    def work(tx):
        assert allocate_ids(tx, host.name, 5)[0] == 1
        raise Unwanted

    with pytest.raises(Unwanted):
        host.database.write(work)
    host.bind("two@example.com", "two")
    assert [row["origin_id"] for row in host.rows("statements")] == [1, 2]
    assert_chain(host)


def test_statements_published_together_are_chained_in_their_order(host):
    wanted = {email(f"{number}@example.com"): user("alice") for number in range(5)}
    signed = host.database.write(lambda tx: host.associations.publish_all(tx, wanted))
    assert [item["address"] for item in signed] == [threepid.address for threepid in wanted]
    log = host.rows("statements")
    assert [row["threepid"] for row in log] == [
        host.database.keys.blind_index(threepid) for threepid in wanted
    ]
    assert_chain(host)
