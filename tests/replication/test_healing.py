"""Comparing with peers, and mending what differs."""

import pytest

from identity.associations.models import associations, statements
from identity.clock import HOUR_MS, MINUTE_MS

on_one_database = pytest.mark.parametrize("database_kind", ["sqlite"])

ALICE = "@alice:hs.test"
BOB = "@bob:hs.test"


@pytest.fixture
def filled(pair):
    """Two servers that hold the same, and have compared it."""
    a, b = pair
    a.bind("alice@example.com", ALICE)
    a.bind("bob@example.com", BOB)
    a.send()
    assert a.digests() == b.digests()
    b.network.asked.clear()
    return a, b


def compare(a, clock):
    """What a courier does by itself in the next hour."""
    a.compare_with("b.test")
    a.send()
    clock.advance(ms=MINUTE_MS)
    a.send()


def lose(node, origin_id, *, text=True, view=True):
    """As a disk that forgets, or a fault in the program, would have it."""

    def work(tx):
        if view:
            tx.execute(associations.delete().where(associations.c.origin_id == origin_id))
        if text:
            chosen = statements.update().where(statements.c.origin_id == origin_id)
            tx.execute(chosen.values(signed=None, lowered=None))

    node.database.write(work)


class TestSchedule:
    def test_peers_are_compared_with_once_an_hour(self, filled, clock):
        a, b = filled
        for _ in range(12):
            clock.advance(minutes=15)
            a.send()
        assert b.network.names() == ["compare"] * 3
        assert a.cursor("b.test")["compared_at_ms"] > clock.now_ms() - HOUR_MS

    @on_one_database
    def test_what_differs_once_is_looked_at_again_after_a_minute(self, filled, clock):
        a, b = filled
        lose(b, 1)
        a.compare_with("b.test")
        a.send()
        a.send()
        assert b.network.names() == ["compare"]
        clock.advance(ms=MINUTE_MS)
        a.send()
        assert b.network.names() == ["compare", "compare", "repair", "push"]

    @on_one_database
    def test_comparison_that_fails_is_made_again_soon(self, filled, clock):
        a, b = filled
        clock.advance(hours=1)
        b.network.fail_with(500)
        a.send()
        assert a.cursor("b.test")["last_error"] == "answered 500"
        b.network.heal()
        clock.advance(seconds=2)
        a.send()
        assert b.network.names() == ["compare", "compare"]


class TestMending:
    def test_binding_that_the_peer_lost_is_sent_again(self, filled, clock):
        a, b = filled
        lose(b, 1)
        assert b.digests()["a.test"] != a.digests()["a.test"]
        compare(a, clock)
        assert a.digests() == b.digests()
        assert b.server.found("alice@example.com") == ALICE
        assert b.server.found("bob@example.com") == BOB

    def test_binding_that_is_none_here_is_dropped_by_the_peer(self, filled, clock):
        a, b = filled
        a.unbind("alice@example.com", ALICE)
        a.send()
        # The revocation never took effect over there.
        lose(b, 3)
        b.server.services.associations.rebuild()
        self.resurrect(b)
        assert b.server.found("alice@example.com") == ALICE
        compare(a, clock)
        assert b.server.found("alice@example.com") is None
        assert a.digests() == b.digests()

    def resurrect(self, node):
        def work(tx):
            tx.execute(statements.delete().where(statements.c.origin_id == 3))

        node.database.write(work)
        node.server.services.associations.rebuild()

    @on_one_database
    def test_many_ranges_are_mended_in_one_go(self, filled, clock):
        a, b = filled
        a.bind_many(2_500)
        a.send()
        for origin_id in (5, 1_005, 2_005):
            lose(b, origin_id)
        compare(a, clock)
        assert b.network.names().count("repair") == 3
        assert a.digests() == b.digests()

    @on_one_database
    def test_statement_that_the_peer_refuses_is_not_sent_again_and_again(self, filled, clock):
        a, b = filled
        a.bind("carol@example.com", "@carol:hs.test")
        self.spoil(a, 3)
        a.send()
        compare(a, clock)
        b.network.asked.clear()
        clock.advance(hours=1)
        a.send()
        a.send()
        assert "push" not in b.network.names()
        assert len(b.network.names()) <= 2

    def spoil(self, node, origin_id):
        (row,) = [row for row in node.server.rows("statements") if row["origin_id"] == origin_id]
        signed = row["signed"].replace("carol", "mallory")
        chosen = statements.update().where(statements.c.origin_id == origin_id)
        node.database.write(lambda tx: tx.execute(chosen.values(signed=signed)))

    @on_one_database
    @pytest.mark.parametrize(
        ("name", "lie"),
        [
            ("compare", {"last_id": 2, "differ": "all"}),
            ("compare", {"last_id": 2, "differ": [1]}),
            ("compare", {"last_id": 2, "differ": [10**6]}),
            ("compare", {"last_id": 2, "differ": [True]}),
            ("compare", {}),
            ("repair", {"wanted": None}),
            ("repair", {"wanted": ["1"]}),
        ],
    )
    def test_peer_that_answers_nonsense_is_failing(self, filled, clock, name, lie):
        a, b = filled
        lose(b, 1)
        b.network.lie({name: lie})
        compare(a, clock)
        assert a.cursor("b.test")["last_error"] == "malformed answer"

    @on_one_database
    def test_peer_that_wants_what_was_not_named_does_not_get_it(self, filled, clock):
        a, b = filled
        a.unbind("bob@example.com", BOB)
        a.send()
        lose(b, 1)
        b.network.lie({"repair": {"wanted": [1, 2, 3, 4, 99]}})
        b.network.asked.clear()
        compare(a, clock)
        (push,) = [asked.body for asked in b.network.asked if asked.name == "push"]
        assert [item["id"] for item in push["statements"]] == [1]


@on_one_database
def test_restored_peer_that_holds_what_was_replaced_and_forgotten_drops_it(make_nodes, clock):
    """It is rewound, and what revoked its binding comes without a text."""
    a, b = make_nodes("a.test", "b.test", settings={"RETENTION__REVOCATIONS": "1d"})
    a.bind("alice@example.com", ALICE)
    a.send()
    b.back_up()
    a.unbind("alice@example.com", ALICE)
    a.send()
    a.courier.forgetting.note_milestones()
    clock.advance(hours=25)
    assert a.courier.forgetting.forget() == 2
    b.restore()
    assert b.server.found("alice@example.com") == ALICE
    a.bind("bob@example.com", BOB)
    a.send()
    clock.advance(ms=MINUTE_MS)
    a.send()
    assert b.server.found("alice@example.com") is None
    assert b.server.found("bob@example.com") == BOB
    assert a.digests() == b.digests()


@on_one_database
class TestRestoredPeer:
    """It is rewound though nothing new is stated that would show how far it is."""

    def test_comparison_shows_that_it_holds_less(self, filled, clock):
        a, b = filled
        b.back_up()
        a.bind("carol@example.com", "@carol:hs.test")
        a.send()
        b.restore()
        clock.advance(hours=1)
        a.send()
        assert b.server.found("carol@example.com") == "@carol:hs.test"
        assert a.digests() == b.digests()
        assert b.server.rows("alarms") == []

    def test_peer_that_starts_is_compared_with_at_once(self, filled):
        a, b = filled
        b.back_up()
        a.bind("carol@example.com", "@carol:hs.test")
        a.send()
        b.restore()
        b.courier.recovery.look_around()
        a.send()
        assert b.server.found("carol@example.com") == "@carol:hs.test"
        assert a.digests() == b.digests()

    def test_comparison_shows_that_we_were_restored(self, filled, clock):
        a, b = filled
        a.back_up()
        a.bind("carol@example.com", "@carol:hs.test")
        a.send()
        a.restore()
        clock.advance(hours=1)
        a.send()
        assert a.server.found("carol@example.com") == "@carol:hs.test"
        assert a.digests() == b.digests()
