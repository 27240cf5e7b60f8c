"""Removal removes: what everyone has had for long enough is reduced to id and leaf (decision 5)."""

import pytest
from parts.invitations import invite

from identity.database import PURGE_ROWS
from identity.tables import metadata

on_one_database = pytest.mark.parametrize("database_kind", ["sqlite"])

ALICE = "@alice:hs.test"
BOB = "@bob:hs.test"
# Whose lower-cased form is another one, and kept beside it.
CANARY = "canary.strauß@canary.example"
FOLDED = "canary.strauss@canary.example"


def pass_days(nodes, days, step=5):
    """As couriers would, had they been there all the time."""
    for _ in range(0, days, step):
        nodes[0].server.clock.advance(hours=24 * step)
        for node in nodes:
            node.send()
            node.courier.purge()


def texts(node, origin):
    """By id: whether a statement has a text."""
    return {
        row["origin_id"]: row["signed"] is not None
        for row in node.server.rows("statements")
        if row["origin"] == origin
    }


def unsealed(node):
    """Everything that is stored, for who has the keys."""
    tables = [node.server.rows(name) for name in metadata.tables]
    return repr(tables).encode() + limits_of(node)


def limits_of(node):
    with node.server.services.limit_storage._database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM limits").all()
    return repr([tuple(row) for row in rows]).encode()


class TestWhatIsForgotten:
    def test_superseded_and_revoked_go_and_bindings_stay(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        a.bind("bob@example.com", ALICE)
        a.bind("bob@example.com", BOB)
        a.unbind("alice@example.com", ALICE)
        pass_days([a, b], 25)
        assert texts(a, "a.test") == texts(b, "a.test") == dict.fromkeys(range(1, 5), True)
        pass_days([a, b], 15)
        left = {1: False, 2: False, 3: True, 4: False}
        assert texts(a, "a.test") == texts(b, "a.test") == left
        assert a.digests() == b.digests()
        assert a.server.found("bob@example.com") == BOB

    def test_what_a_peer_has_not_acknowledged_is_kept(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        a.send()
        b.network.fail_with(500)
        a.unbind("alice@example.com", ALICE)
        pass_days([a], 60)
        assert texts(a, "a.test") == {1: False, 2: True}
        b.network.heal()
        pass_days([a, b], 25)
        assert texts(a, "a.test")[2]
        pass_days([a, b], 15)
        assert texts(a, "a.test") == texts(b, "a.test") == {1: False, 2: False}

    @on_one_database
    def test_suspended_peer_is_not_waited_for(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        a.send()
        a.unbind("alice@example.com", ALICE)
        b.network.fail_with(500)
        pass_days([a], 85)
        assert texts(a, "a.test")[2]
        pass_days([a], 45)
        assert not texts(a, "a.test")[2]
        b.network.heal()
        pass_days([a, b], 5)
        a.server.clock.advance(minutes=1)
        a.send()
        # It held a binding whose revocation has no text any more.
        assert b.server.found("alice@example.com") is None
        assert a.digests() == b.digests()

    @on_one_database
    def test_server_without_peers_waits_for_nobody(self, make_nodes):
        (a,) = make_nodes("a.test")
        a.bind("alice@example.com", ALICE)
        a.unbind("alice@example.com", ALICE)
        pass_days([a], 40)
        assert texts(a, "a.test") == {1: False, 2: False}

    @on_one_database
    def test_binding_of_long_ago_is_forgotten_when_it_is_replaced(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        pass_days([a, b], 40)
        assert texts(a, "a.test") == {1: True}
        a.bind("alice@example.com", BOB)
        pass_days([a, b], 1, step=1)
        assert texts(a, "a.test") == {1: False, 2: True}


class TestAfterwards:
    @pytest.fixture
    def forgotten(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        a.unbind("alice@example.com", ALICE)
        a.bind("bob@example.com", BOB)
        pass_days([a, b], 40)
        assert texts(a, "a.test") == {1: False, 2: False, 3: True}
        return a, b

    def test_view_and_index_made_anew_are_the_same(self, forgotten):
        for node in forgotten:
            before = [node.server.rows(name) for name in ("associations", "lookup_index")]
            node.server.services.associations.rebuild()
            after = [node.server.rows(name) for name in ("associations", "lookup_index")]
            assert sorted(map(repr, after[0])) == sorted(map(repr, before[0]))
            assert sorted(map(repr, after[1])) == sorted(map(repr, before[1]))

    @on_one_database
    def test_new_peer_gets_what_is_left_and_holds_the_same(self, forgotten, make_nodes):
        a, _ = forgotten
        (c,) = make_nodes("c.test")
        c.add_peer(a)
        a.add_peer(c)
        a.send()
        assert c.server.found("bob@example.com") == BOB
        assert texts(c, "a.test") == {1: False, 2: False, 3: True}
        assert c.digests() == a.digests()
        assert c.server.rows("alarms") == []

    @on_one_database
    def test_milestones_do_not_pile_up(self, make_nodes):
        a, b = make_nodes("a.test", "b.test", settings={"RETENTION__REVOCATIONS": "5h"})
        b.bind("bob@example.com", BOB)
        b.send()
        for _ in range(100):
            a.server.clock.advance(minutes=10)
            a.courier.forgetting.note_milestones()
        assert len(a.server.rows("milestones")) <= 2 * (5 + 2)

    @on_one_database
    def test_refused_statement_loses_its_text(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        b.server.services.peers.add_key("a.test", "ed25519:other", bytes(32))
        b.server.services.peers.remove_key("a.test", next(iter(a.as_peer().keys)))
        # Requests are signed by the same key, so the statement comes by a peer that may ask.
        from identity.replication.batch import Batch, Item  # noqa: PLC0415

        (row,) = a.server.rows("statements")
        peer = b.server.services.peers.get("a.test")
        b.server.services.receiver.receive(peer, Batch(0, (Item.of(1, row["signed"]),), None))
        (kept,) = b.server.rows("quarantine")
        assert kept["item"] == row["signed"]
        pass_days([b], 25)
        assert b.server.rows("quarantine")[0]["item"] is not None
        pass_days([b], 10)
        (kept,) = b.server.rows("quarantine")
        assert (kept["item"], kept["reason"]) == (None, "signature")


def test_address_is_nowhere_after_it_was_removed(pair):
    """Decision 33: every column of both databases, unsealed."""
    a, b = pair
    alice = a.server.account(ALICE)
    alice.bind(CANARY)
    invite(alice, "canary.invited@canary.example")
    a.send()
    assert b.server.found(FOLDED) == ALICE
    b.bind(CANARY, BOB)
    b.send()
    assert a.server.found(FOLDED) == BOB
    alice.request_token("canary.asked@canary.example")
    a.unbind(CANARY, BOB)
    a.send()
    for node in (a, b):
        assert b"canary.strau" in unsealed(node), "the control: it was there"
    pass_days([a, b], 100)
    for node in (a, b):
        assert node.server.found(FOLDED) is None
        assert b"canary" not in unsealed(node).lower()
    assert a.digests() == b.digests()


@on_one_database
def test_forgetting_goes_in_steps_that_are_soon_over(pair):
    a, b = pair
    a.bind_many(2_000)
    a.bind_many(2_000, BOB)
    pass_days([a, b], 40)
    for node in (a, b):
        assert sum(texts(node, "a.test").values()) == 2_000
    assert PURGE_ROWS >= 2_000
    assert a.digests() == b.digests()
