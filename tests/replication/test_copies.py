"""What a peer is told of its own statements: state, pull, compare, repair."""

import json

import pytest
from parts.peer import FakePeer
from unpaddedbase64 import decode_base64, encode_base64

from identity.replication.batch import MAX_BATCH_BYTES
from identity.replication.digest import digests
from identity.replication.peer import MAX_AHEAD_MS, Scope
from identity.threepid import ThreePid


@pytest.fixture
def now_ms(clock):
    return clock.now_ms()


@pytest.fixture
def peer(server):
    peer = FakePeer()
    peer.join(server)
    return peer


def find(server, address):
    return server.services.associations.find_mxid(ThreePid.email(address))


def live(peer, *ids):
    return [{"id": one, "leaf": encode_base64(peer.leaf(one))} for one in ids]


def ranges(peer, *ids):
    digested = digests((one, peer.leaf(one)) for one in ids)
    return {str(first): digest for first, digest in digested.items()}


def test_state_tells_how_far_we_are(server, peer, now_ms):
    nothing = {"last_id": 0, "head": encode_base64(bytes(32))}
    assert peer.ask(server, "state", {}).json == nothing
    peer.state("alice@example.com", "@alice:hs.test", now_ms, origin_id=5)
    peer.push(server)
    assert peer.ask(server, "state", {}).json == {
        "last_id": 5,
        "head": encode_base64(peer.head()),
    }
    # Of others it is told nothing.
    other = FakePeer("other.test")
    assert other.ask(server, "state", {}).json["errcode"] == "M_UNKNOWN_PEER"
    other.join(server)
    assert other.ask(server, "state", {}).json == nothing


def test_pull_gives_the_peer_its_own_statements_back(server, peer, now_ms):
    other = FakePeer("other.test")
    other.join(server)
    other.state("eve@example.com", "@eve:hs.test", now_ms)
    other.push(server)
    server.bind_directly("dora@example.com", "@dora:hs.test")
    for number in range(1_200):
        peer.state(f"user{number}@example.com", f"@user{number}:hs.test", now_ms)
    peer.forget(1)
    peer.push(server, ids=list(range(1, 1_001)))
    peer.push(server, after=1_000)

    first = peer.ask(server, "pull", {"after": 0}).json
    assert [item["id"] for item in first["statements"]] == list(range(1, 1_001))
    assert first["statements"][:2] == [*live(peer, 1), {"id": 2, "signed": peer.log[2]}]
    assert first["head"] is None
    second = peer.ask(server, "pull", {"after": 1_000}).json
    assert [item["signed"] for item in second["statements"]] == [
        peer.log[one] for one in range(1_001, 1_201)
    ]
    assert decode_base64(second["head"]) == peer.head()
    assert peer.ask(server, "pull", {"after": 1_200}).json == {
        "after": 1_200,
        "head": second["head"],
        "statements": [],
    }


def test_pull_is_bounded_in_bytes(server, peer, now_ms):
    pad = "x" * 900
    for number in range(1_000):
        peer.add({"pad": pad, "number": number})
    peer.push(server, ids=list(range(1, 501)))
    peer.push(server, after=500)
    answer = peer.ask(server, "pull", {"after": 0})
    assert MAX_BATCH_BYTES - 2_000 < len(answer.data) <= MAX_BATCH_BYTES
    assert answer.json["head"] is None


def test_pull_gives_back_what_was_refused_here(server, peer, now_ms):
    """It is the peer's all the same, and may be the only copy."""
    peer.state("alice@example.com", "@alice:hs.test", now_ms + 2 * MAX_AHEAD_MS)
    assert len(peer.push(server).json["refused"]) == 1
    pulled = peer.ask(server, "pull", {"after": 0}).json
    assert pulled["statements"] == [{"id": 1, "signed": peer.log[1]}]


@pytest.mark.parametrize("after", [None, "0", -1, 2**53 - 1])
def test_pull_from_somewhere_else(server, peer, after):
    answer = peer.ask(server, "pull", {"after": after})
    assert answer.status_code == (200 if after == 2**53 - 1 else 400)


def test_compare_names_the_ranges_that_differ(server, peer, now_ms):
    for origin_id in (1, 2, 1_500, 2_500):
        address = f"user{origin_id}@example.com"
        peer.state(address, f"@user{origin_id}:hs.test", now_ms, origin_id=origin_id)
    peer.push(server)

    def compare(*ids, last_id=2_500):
        body = {"last_id": last_id, "ranges": ranges(peer, *ids)}
        return peer.ask(server, "compare", body).json

    assert compare(1, 2, 1_500, 2_500) == {"last_id": 2_500, "differ": []}
    assert compare(1, 1_500, 2_500) == {"last_id": 2_500, "differ": [0]}
    assert compare(1, 2, 2_500) == {"last_id": 2_500, "differ": [1_000]}
    assert compare() == {"last_id": 2_500, "differ": [0, 1_000, 2_000]}
    # Who is on the way is not compared.
    assert compare(last_id=2_501) == {"last_id": 2_500, "differ": []}
    # What was replaced here is live no more; the peer will hear of it from whoever did it.
    server.clock.advance(ms=1)
    server.bind_directly("user1500@example.com", "@new:hs.test")
    assert compare(1, 2, 1_500, 2_500)["differ"] == [1_000]


def test_repair_drops_what_is_not_named_and_asks_for_what_is_lacking(server, peer, now_ms):
    for number in range(1, 6):
        peer.state(f"user{number}@example.com", f"@user{number}:hs.test", now_ms)
    peer.push(server, ids=[1, 2, 3, 5])
    server.database.write(lambda tx: server.services.associations.drop(tx, peer.name, [2]))

    body = {"first": 0, "last_id": 5, "live": live(peer, 2, 3, 4, 5)}
    assert peer.ask(server, "repair", body).json == {"wanted": [2, 4]}

    assert find(server, "user1@example.com") is None
    assert server.found("user1@example.com") is None
    assert find(server, "user3@example.com") == "@user3:hs.test"
    (dropped,) = [row for row in server.rows("statements") if row["origin_id"] == 1]
    assert (dropped["leaf"], dropped["signed"]) == (peer.leaf(1), None)
    # What is asked for comes by a push.
    peer.push(server, ids=[2], after=1, head=None)
    peer.push(server, ids=[4], after=3, head=None)
    assert find(server, "user2@example.com") == "@user2:hs.test"
    assert find(server, "user4@example.com") == "@user4:hs.test"
    assert peer.ask(server, "repair", body).json == {"wanted": []}
    compared = {"last_id": 5, "ranges": ranges(peer, 2, 3, 4, 5)}
    assert peer.ask(server, "compare", compared).json["differ"] == []
    # Neither what was dropped nor what it replaced comes back by itself.
    server.services.associations.rebuild()
    assert find(server, "user1@example.com") is None


def test_repair_does_not_drop_what_is_younger_than_it(server, peer, now_ms):
    peer.state("alice@example.com", "@alice:hs.test", now_ms)
    peer.push(server)
    body = {"first": 0, "last_id": 0, "live": []}
    assert peer.ask(server, "repair", body).json == {"wanted": []}
    assert find(server, "alice@example.com") == "@alice:hs.test"


def test_repair_does_not_touch_other_ranges_and_other_origins(server, peer, now_ms):
    other = FakePeer("other.test")
    other.join(server)
    other.state("bob@example.com", "@bob:hs.test", now_ms)
    other.push(server)
    peer.state("alice@example.com", "@alice:hs.test", now_ms, origin_id=1_000)
    peer.state("carol@example.com", "@carol:hs.test", now_ms, origin_id=999)
    peer.push(server)
    peer.ask(server, "repair", {"first": 0, "last_id": 1_000, "live": []})
    assert find(server, "alice@example.com") == "@alice:hs.test"
    assert find(server, "bob@example.com") == "@bob:hs.test"
    assert find(server, "carol@example.com") is None


def test_repair_asks_neither_for_what_was_refused_nor_for_what_is_to_come(server, now_ms):
    peer = FakePeer()
    peer.join(server, scope=Scope.parse(media=["msisdn"]))
    peer.state("alice@example.com", "@alice:hs.test", now_ms)
    peer.push(server)
    peer.state("441632960000", "@bob:hs.test", now_ms, medium="msisdn")
    body = {"first": 0, "last_id": 2, "live": live(peer, 1, 2)}
    assert peer.ask(server, "repair", body).json == {"wanted": []}


def test_dropping_ends_what_was_to_be_told_of_it(server, alice, peer, clock):
    body = {"medium": "email", "address": "bob@example.com", "room_id": "!r:hs.test"}
    assert alice.post("/store-invite", json={**body, "sender": alice.user_id}).status_code == 200
    peer.state("bob@example.com", "@bob:hs.test", clock.now_ms())
    peer.push(server)
    assert [row["outcome"] for row in server.rows("deliveries")] == [None]
    peer.ask(server, "repair", {"first": 0, "last_id": 1, "live": []})
    assert [row["outcome"] for row in server.rows("deliveries")] == ["stale"]


@pytest.mark.parametrize("name", ["state", "pull", "compare", "repair"])
def test_request_of_a_stranger_or_by_another_key_is_refused(server, peer, name):
    stranger = FakePeer("stranger.test")
    assert stranger.ask(server, name, {}).json["errcode"] == "M_UNKNOWN_PEER"
    peer.key = stranger.key
    assert peer.ask(server, name, {}).json["errcode"] == "M_FORBIDDEN"
    unsigned = server.client.post(f"/_matrix/identity/replicate/v2/{name}", data=json.dumps({}))
    assert unsigned.status_code == 401


@pytest.mark.parametrize("name", ["pull", "compare", "repair"])
def test_request_that_lacks_what_it_needs_is_refused(server, peer, name):
    answer = peer.ask(server, name, {})
    assert (answer.status_code, answer.json["errcode"]) == (400, "M_INVALID_PARAM")
