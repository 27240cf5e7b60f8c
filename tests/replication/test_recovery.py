"""A server that was restored from a backup: it gives out no id that its peers know (decision 6)."""

import json
import time

import pytest
from parts.pairing import Node

from identity.associations.statement import encode_signed
from identity.replication import cursors, store
from identity.replication.batch import Batch, Item
from identity.signing import SigningKey
from identity.strict_json import MAX_INTEGER

# Backups are copies of the file.
pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"])

ALICE = "@alice:hs.test"
BOB = "@bob:hs.test"
CAROL = "@carol:hs.test"


@pytest.fixture
def restored(pair):
    """`a` has lost two binds and an unbind, which `b` holds."""
    a, b = pair
    a.bind("alice@example.com", ALICE)
    a.send()
    a.back_up()
    a.bind("bob@example.com", BOB)
    a.unbind("alice@example.com", ALICE)
    a.bind("carol@example.com", CAROL)
    a.send()
    lost = a.digests()
    a.restore()
    assert a.digests() != lost
    return a, b, lost


def is_recovering(node) -> bool:
    rows = {row["origin"]: row["recovering"] for row in node.server.rows("origins")}
    return rows[node.name]


def bind_by_api(node, address="dave@example.com"):
    return node.server.account("@dave:hs.test").bind(address)


class TestAtStart:
    def test_restored_server_binds_nothing_before_it_has_its_statements_back(self, restored):
        a, b, lost = restored
        a.courier.recovery.look_around()
        assert is_recovering(a)
        refused = bind_by_api(a)
        assert refused.status_code == 503
        assert refused.json["errcode"] == "M_UNKNOWN"
        assert int(refused.headers["Retry-After"]) > 0
        # Who asks for something else is served.
        assert a.server.found("alice@example.com") == ALICE
        a.recover()
        assert not is_recovering(a)
        assert a.digests() == lost
        assert a.server.found("alice@example.com") is None
        assert a.server.found("bob@example.com") == BOB
        bound = bind_by_api(a)
        assert bound.status_code == 200
        a.send()
        assert a.digests() == b.digests()
        assert b.server.rows("alarms") == []

    def test_long_tail_is_fetched_in_batches(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        a.send()
        a.back_up()
        a.bind_many(2_500)
        a.send()
        lost = a.digests()
        a.restore()
        a.courier.recovery.look_around()
        a.recover()
        assert a.digests() == lost
        assert b.network.names().count("pull") == 3

    def test_server_that_lost_nothing_goes_on(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        a.send()
        a.courier.recovery.look_around()
        assert not is_recovering(a)
        assert bind_by_api(a).status_code == 200
        assert b.network.names()[-1] == "state"

    def test_server_without_peers_asks_and_waits_for_nobody(self, make_server):
        server = make_server({"SERVER__NAME": "a.test"})
        node = Node(server, "a.test")
        began = time.monotonic()
        node.courier.recovery.look_around()
        assert time.monotonic() - began < 0.5
        node.close()

    def test_silent_peers_hold_up_the_start_for_five_seconds_at_most(self, make_nodes):
        a, *silent = make_nodes("a.test", "b.test", "c.test", "d.test")
        for node in silent:
            node.network.drip()
        began = time.monotonic()
        a.courier.recovery.look_around()
        assert 4 < time.monotonic() - began < 8
        # They were not known to hold more, and nobody restored anything.
        assert not is_recovering(a)

    def test_crash_in_between_is_no_way_around_it(self, restored):
        a, b, lost = restored
        a.courier.recovery.look_around()
        b.network.fail_with(500)
        # Started anew, with a peer that is silent now.
        a.courier.recovery.look_around()
        assert is_recovering(a)
        assert bind_by_api(a).status_code == 503
        a.recover()
        assert is_recovering(a)
        b.network.heal()
        a.server.clock.advance(seconds=5)
        a.recover()
        assert not is_recovering(a)
        assert a.digests() == lost

    def test_peer_that_is_away_is_not_asked_all_the_time(self, restored, clock):
        a, b, _ = restored
        a.courier.recovery.look_around()
        b.network.fail_with(500)
        b.network.asked.clear()
        for _ in range(50):
            a.recover()
            clock.advance(ms=200)
        assert len(b.network.asked) == 2

    def test_several_peers_give_back_what_one_alone_lacks(self, make_nodes):
        a, b, c = make_nodes("a.test", "b.test", "c.test")
        a.bind("alice@example.com", ALICE)
        a.send()
        a.back_up()
        a.bind("bob@example.com", BOB)
        c.network.fail_with(500)
        a.send()
        c.network.heal()
        a.bind("carol@example.com", CAROL)
        b.network.fail_with(500)
        a.server.clock.advance(minutes=1)
        a.send()
        b.network.heal()
        lost = a.digests()
        a.restore()
        a.courier.recovery.look_around()
        a.recover()
        assert a.digests() == lost
        a.server.clock.advance(minutes=1)
        a.send()
        assert a.digests() == b.digests() == c.digests()


class TestByTheOperator:
    """After `identity restore` every v2 peer must have answered."""

    @pytest.fixture
    def told(self, make_nodes):
        a, b, c = make_nodes("a.test", "b.test", "c.test")
        a.bind("alice@example.com", ALICE)
        a.send()
        for peer in ("b.test", "c.test"):
            a.database.write(
                lambda tx, peer=peer: store.set_must_answer(tx, peer, must_answer=True)
            )
        return a, b, c

    def test_silent_peer_is_waited_for(self, told):
        a, _, c = told
        c.network.fail_with(500)
        a.courier.recovery.look_around()
        a.recover()
        assert a.database.read(cursors.waited_for) == ["c.test"]
        assert bind_by_api(a).status_code == 503
        c.network.heal()
        a.server.clock.advance(seconds=5)
        a.recover()
        assert bind_by_api(a).status_code == 200

    def test_peer_that_the_operator_confirms_is_not_waited_for(self, told):
        a, _, c = told
        c.network.fail_with(500)
        a.courier.recovery.look_around()
        assert bind_by_api(a).status_code == 503
        a.server.services.peers.confirm("c.test")
        a.recover()
        assert bind_by_api(a).status_code == 200

    def test_peer_that_is_removed_is_not_waited_for(self, told):
        a, _, c = told
        c.network.fail_with(500)
        a.courier.recovery.look_around()
        a.server.services.peers.remove("c.test")
        a.recover()
        assert bind_by_api(a).status_code == 200


class TestLater:
    """A peer that was silent at the start answers while we are serving."""

    def test_answer_beyond_our_last_id_starts_a_recovery(self, restored):
        a, b, _ = restored
        # One new statement, under an id that the peer knows.
        a.bind("dave@example.com", "@dave:hs.test")
        a.send()
        assert a.cursor("b.test")["last_error"] == "holds more of ours than we have"
        a.recover()
        assert not is_recovering(a)
        assert a.server.found("carol@example.com") == CAROL
        assert a.server.found("alice@example.com") is None
        assert "fork" in {row["kind"] for row in b.server.rows("alarms")}
        a.server.clock.advance(seconds=30)
        a.send()
        a.send()
        # What collided is stated again, under an id of its own; so is what it had taken the place of.
        for node in (a, b):
            assert node.server.found("dave@example.com") == "@dave:hs.test"
            assert node.server.found("bob@example.com") == BOB


class TestLies:
    """A peer cannot stop us from binding by saying that it holds more."""

    @pytest.mark.parametrize(
        "pulled",
        [
            {"after": 1, "head": None, "statements": []},
            {"after": 0, "head": None, "statements": [{"id": 2, "leaf": "A" * 43}]},
            {"after": 1, "head": None, "statements": [{"id": 2, "leaf": "A" * 43}]},
            {"after": 1, "head": None, "statements": [{"id": 2, "signed": {"mxid": None}}]},
            {"statements": 1},
            {},
        ],
    )
    def test_peer_that_shows_nothing_of_ours_is_not_believed(self, pair, pulled):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        b.network.lie({"push": {"last_id": 10**9}, "state": {"last_id": 10**9}, "pull": pulled})
        a.send()
        assert not is_recovering(a)
        assert bind_by_api(a).status_code == 200
        assert a.digests()["a.test"].last_id == 2

    def test_peer_that_would_use_up_our_ids_is_not_believed(self, pair):
        """It holds a statement that we lost, and says that its id is the last there is."""
        a, b = pair
        a.bind("alice@example.com", ALICE)
        a.send()
        a.back_up()
        a.bind("bob@example.com", BOB)
        (lost,) = [row for row in a.server.rows("statements") if row["origin_id"] == 2]
        a.restore()
        item = {"id": MAX_INTEGER, "signed": json.loads(lost["signed"])}
        pulled = {"after": 1, "head": None, "statements": [item]}
        b.network.lie({"state": {"last_id": MAX_INTEGER}, "pull": pulled})
        a.courier.recovery.look_around()
        a.recover()
        assert a.digests()["a.test"].last_id == 1

    def test_statement_that_is_not_signed_by_us_is_not_taken(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        a.send()
        stranger = SigningKey.generate("ed25519:0")
        (row,) = a.server.rows("statements")
        said = json.loads(row["signed"])
        del said["signatures"]
        forged = stranger.sign({**said, "mxid": "@mallory:hs.test"}, "a.test")
        batch = Batch(1, (Item.of(2, encode_signed(forged)),), None)
        b.network.lie(
            {"state": {"last_id": 2}, "pull": json.loads(batch.encode()), "push": {"last_id": 2}}
        )
        a.courier.recovery.look_around()
        a.recover()
        assert a.server.found("alice@example.com") == ALICE
        assert a.digests()["a.test"].last_id == 1
        # Whoever was started with such a peer waits for the operator.
        assert is_recovering(a)
