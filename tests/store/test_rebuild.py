"""The view and the index are made from the log: any time, with the same result."""

import random

import pytest
import sqlalchemy as sa
from host import email, user

from identity.associations import store
from identity.associations.models import associations
from identity.associations.statement import Logged, Statement, encode_signed, newest
from identity.lookup.models import lookup_index
from identity.replication.digest import digests
from identity.signing import SigningKey

DERIVED = ("associations", "lookup_index")


def derived(host):
    return {table: host.rows(table) for table in DERIVED}


def live_through_a_lot(host, clock):
    """Binds, rebinds, unbinds; addresses in two forms; a rotation in the middle."""
    for number in range(12):
        host.bind(f"user{number}@example.com", f"user{number}")
        host.bind(f"strauß{number}@example.com", "strauss")
    clock.advance(minutes=1)
    host.bind("user1@example.com", "other")
    host.unbind("user2@example.com", "user2")
    host.unbind("user3@example.com", "user3")
    host.bind("user3@example.com", "user3")
    host.rotate()
    host.bind("strauss1@example.com", "strauss")
    host.bind("strauß1@example.com", "other")
    host.bind("strauss2@example.com", "strauss")
    host.unbind("strauß3@example.com", "strauss")
    clock.advance(hours=-2)
    host.bind("user4@example.com", "after the clock went back")
    # A generation that is being indexed is followed, too.
    host.peppers.begin()
    host.bind("user5@example.com", "other")
    host.unbind("strauß4@example.com", "strauss")


def test_rebuilt_view_and_index_equal_the_live_ones_row_by_row(host, clock):
    live_through_a_lot(host, clock)
    # The generation that was begun holds what was bound since; a rebuild indexes everything.
    host.peppers.finish(host.peppers.find_unfinished())
    before = derived(host)
    steps = []

    assert host.associations.rebuild(steps.append) == sum(steps) == len(host.rows("statements"))

    assert derived(host) == before
    assert {row["pepper_id"] for row in before["lookup_index"]} == {1, 2, 3}


def test_rebuild_mends_what_was_lost_and_what_was_forged(host, clock):
    live_through_a_lot(host, clock)
    host.peppers.finish(host.peppers.find_unfinished())
    before = derived(host)

    def damage(tx):
        tx.execute(associations.update().values(mxid="@eve:hs.test", ts_ms=1))
        tx.execute(associations.delete().where(associations.c.origin_id % 2 == 0))
        tx.execute(lookup_index.delete().where(lookup_index.c.pepper_id == 3))
        tx.execute(lookup_index.insert().values(pepper_id=1, tag=bytes(32), threepid=bytes(32)))

    host.database.write(damage)
    assert derived(host) != before
    host.associations.rebuild()
    assert derived(host) == before


def test_rebuild_in_batches_equals_rebuild_in_one(host, clock):
    """The log is read in batches of a thousand; here of three, which split the same 3PIDs."""
    live_through_a_lot(host, clock)
    whole = host.database.read(lambda tx: list(store.read_log(tx, 1_000)))
    batches = host.database.read(lambda tx: list(store.read_log(tx, 3)))
    assert len(whole) == 1
    assert [entry for batch in batches for entry in batch] == whole[0]
    assert [entry.origin_id for entry in whole[0]] == list(range(1, len(whole[0]) + 1))


@pytest.mark.parametrize("seed", range(3))
def test_view_of_several_origins_is_that_of_the_rule(host, seed):
    host.bind("mine@example.com", "mine")
    (mine,) = host.database.read(lambda tx: list(store.read_log(tx, 10)))
    log = [
        foreign(origin, origin_id, mine[0].statement.ts_ms + later_ms, name, address)
        for address in ("mine@example.com", "yours@example.com")
        for origin in ("a.test", "B.test", "ä.test")
        for origin_id, (later_ms, name) in enumerate(
            [(-1, "a"), (0, "b"), (1, None), (1, "c"), (5, "d"), (5, None), (4, "e")],
            start=1 if address == "mine@example.com" else 8,
        )
    ]
    random.Random(seed).shuffle(log)
    host.database.write(lambda tx: store.append(tx, host.database.keys, log))

    host.associations.rebuild()

    winners = newest([*mine, *log])
    assert {row["threepid"]: view_of(row) for row in host.rows("associations")} == {
        host.database.keys.blind_index(threepid): (*entry.version, None)
        for threepid, entry in winners.items()
    }
    # "ä" sorts last by code point, and of its two newest the one with the greater id counts.
    assert {entry.version[1:] for entry in winners.values()} == {("ä.test", 6), ("ä.test", 13)}
    assert host.rows("lookup_index") == []


def view_of(row):
    return row["ts_ms"], row["origin"], row["origin_id"], row["mxid"]


def foreign(origin, origin_id, ts_ms, name, address):
    statement = Statement(email(address), user(name) if name else None, ts_ms, ts_ms, ts_ms + 1_000)
    signed = SigningKey.generate("ed25519:0").sign(statement.to_json(), origin)
    return Logged(origin, origin_id, statement, encode_signed(signed))


def test_digest_is_the_same_before_and_after_and_names_what_is_live(host, clock):
    live_through_a_lot(host, clock)
    before = host.associations.digest()
    assert host.associations.digest() == before
    host.associations.rebuild()
    assert host.associations.digest() == before

    (own,) = before
    live = [row["origin_id"] for row in host.rows("associations") if row["mxid"] is not None]
    assert own.origin == host.name
    assert own.last_id == len(host.rows("statements")) > max(live)
    leaves = [(row["origin_id"], row["leaf"]) for row in host.rows("statements")]
    assert own.ranges == digests(item for item in leaves if item[0] in live)

    # A revocation changes the digest; what else is in the log does not.
    host.unbind("user7@example.com", "user7")
    (after,) = host.associations.digest()
    assert after.ranges != own.ranges
    assert after.head != own.head

    def forget(tx):
        query = sa.select(associations.c.origin_id)
        winners = set(tx.execute(query).scalars())
        tx.execute(
            store.statements.update()
            .where(store.statements.c.origin_id.not_in(winners))
            .values(signed=None, lowered=None)
        )

    host.database.write(forget)
    assert host.associations.digest() == [after]
