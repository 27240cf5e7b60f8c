"""What peers push: what is taken, what is refused, and that nothing happens twice."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from parts.peer import FakePeer, leaf_of, signing_key
from parts.statements import recorded
from unpaddedbase64 import encode_base64

from identity.mxid import UserId
from identity.replication import receiving
from identity.replication.peer import MAX_AHEAD_MS, Scope
from identity.threepid import ThreePid

PUSH = "/_matrix/identity/replicate/v2/push"


@pytest.fixture
def peer(server):
    peer = FakePeer()
    peer.join(server)
    return peer


@pytest.fixture
def now_ms(clock):
    return clock.now_ms()


def bound(server, address="alice@example.com", medium="email"):
    """Who is bound, by the view and by a lookup of the hash: the two agree."""
    mxid = server.services.associations.find_mxid(ThreePid.parse(medium, address))
    assert server.found(address, medium) == mxid
    return mxid


def origin(server, name="peer.test"):
    """(last id, head) of what is held of a peer."""
    return next(
        ((row["last_id"], row["head"]) for row in server.rows("origins") if row["origin"] == name),
        (0, bytes(32)),
    )


def alarms(server):
    return {row["kind"]: row["count"] for row in server.rows("alarms")}


def quarantined(server):
    return [(row["origin_id"], row["reason"]) for row in server.rows("quarantine")]


def stored(server):
    """Everything that a push may change."""
    tables = ("statements", "origins", "associations", "lookup_index", "quarantine", "alarms")
    return {table: sorted(server.rows(table), key=repr) for table in (*tables, "deliveries")}


def test_push_is_stored_and_found(server, peer, now_ms):
    peer.state("alice@example.com", "@alice:hs.test", now_ms)
    peer.state("441632960000", "@bob:hs.test", now_ms, medium="msisdn")
    answer = peer.push(server)
    assert answer.status_code == 200
    assert answer.json == {"last_id": 2, "refused": []}
    assert bound(server) == "@alice:hs.test"
    assert bound(server, "441632960000", "msisdn") == "@bob:hs.test"
    assert origin(server) == (2, peer.head())
    assert alarms(server) == {}
    # Every statement stands in the log as it was signed.
    (row, _) = sorted(server.rows("statements"), key=lambda row: row["origin_id"])
    assert json.loads(row["signed"]) == peer.log[1]
    assert row["leaf"] == leaf_of(peer.log[1])


def test_same_push_again_changes_nothing(server, peer, now_ms):
    peer.state("alice@example.com", "@alice:hs.test", now_ms)
    peer.state("bob@example.com", "@bob:hs.test", now_ms + 2 * MAX_AHEAD_MS)
    first = peer.push(server)
    before = stored(server)
    assert peer.push(server).json == first.json
    assert peer.push(server, ids=[2], after=1).json == first.json
    assert stored(server) == before


def test_two_hosts_that_get_the_same_push_at_once_store_it_once(make_server, server, peer, now_ms):
    from parts.parallel import second_server  # noqa: PLC0415 - it is the subject of this test alone

    other = second_server(make_server, server)
    for number in range(200):
        peer.state(f"user{number}@example.com", f"@user{number}:hs.test", now_ms)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(peer.push, [server, other] * 2))
    assert [answer.json for answer in answers] == [{"last_id": 200, "refused": []}] * 4
    assert len(server.rows("statements")) == 200
    assert origin(server) == (200, peer.head())


def test_push_behind_a_gap_is_a_conflict_and_stores_nothing(server, peer, now_ms):
    for number in range(5):
        peer.state(f"user{number}@example.com", "@user:hs.test", now_ms)
    peer.push(server, ids=[1, 2])
    before = stored(server)
    answer = peer.push(server, after=3)
    assert answer.status_code == 409
    assert answer.json["errcode"] == "M_CONFLICT"
    assert answer.json["last_id"] == 2
    assert stored(server) == before
    assert peer.push(server, after=2).json["last_id"] == 5


def test_push_that_overlaps_takes_what_is_new(server, peer, now_ms):
    for number in range(4):
        peer.state(f"user{number}@example.com", f"@user{number}:hs.test", now_ms)
    peer.push(server, ids=[1, 2])
    assert peer.push(server, after=1).json["last_id"] == 4
    assert origin(server) == (4, peer.head())
    assert alarms(server) == {}


def test_ids_may_have_gaps(server, peer, now_ms):
    peer.state("alice@example.com", "@alice:hs.test", now_ms, origin_id=7)
    peer.state("bob@example.com", "@bob:hs.test", now_ms, origin_id=1_000_007)
    assert peer.push(server).json["last_id"] == 1_000_007
    assert origin(server) == (1_000_007, peer.head())


def test_push_without_statements_says_how_far_we_are(server, peer, now_ms):
    assert peer.push(server).json == {"last_id": 0, "refused": []}
    peer.state("alice@example.com", "@alice:hs.test", now_ms)
    peer.push(server)
    assert peer.push(server, after=1).json == {"last_id": 1, "refused": []}


def test_forgotten_statement_counts_and_has_no_effect(server, peer, now_ms):
    peer.state("alice@example.com", "@old:hs.test", now_ms - 2)
    peer.state("alice@example.com", "@alice:hs.test", now_ms - 1)
    peer.forget(1)
    assert peer.push(server).json == {"last_id": 2, "refused": []}
    assert bound(server) == "@alice:hs.test"
    assert origin(server) == (2, peer.head())
    (row, _) = sorted(server.rows("statements"), key=lambda row: row["origin_id"])
    assert (row["leaf"], row["signed"], row["threepid"]) == (peer.leaf(1), None, None)
    assert server.services.associations.rebuild() == 1
    assert bound(server) == "@alice:hs.test"


# --- refusals -----------------------------------------------------------------------------


def shape(peer, now_ms, **changed):
    statement = {**peer.statement("alice@example.com", "@alice:hs.test", now_ms), **changed}
    return peer.sign({name: value for name, value in statement.items() if value != "absent"})


REFUSED = {
    "further key": ("shape", lambda peer, now: shape(peer, now, extra=1)),
    "invites, as in onbind": ("shape", lambda peer, now: shape(peer, now, invites=[])),
    "missing key": ("shape", lambda peer, now: shape(peer, now, not_after="absent")),
    "ts is text": ("shape", lambda peer, now: shape(peer, now, ts=str(now))),
    "ts is true": ("shape", lambda peer, now: shape(peer, now, ts=True)),
    "ts is negative": ("shape", lambda peer, now: shape(peer, now, ts=-1)),
    "ts is null": ("shape", lambda peer, now: shape(peer, now, ts=None)),
    "address is a list": ("shape", lambda peer, now: shape(peer, now, address=["a@b.test"])),
    "medium is unknown": ("shape", lambda peer, now: shape(peer, now, medium="fax")),
    "medium is a number": ("shape", lambda peer, now: shape(peer, now, medium=1)),
    "mxid is none": ("shape", lambda peer, now: shape(peer, now, mxid="alice")),
    "mxid is a list": ("shape", lambda peer, now: shape(peer, now, mxid=[])),
    "mxid is too long": ("shape", lambda peer, now: shape(peer, now, mxid=f"@{'a' * 300}:b.test")),
    "revocation with validity": ("shape", lambda peer, now: shape(peer, now, mxid=None)),
    "binding without validity": ("shape", lambda peer, now: shape(peer, now, not_before=None)),
    "too long": ("shape", lambda peer, now: shape(peer, now, address=f"{'a' * 5000}@b.test")),
    "signatures are a list": (
        "shape",
        lambda peer, now: {**shape(peer, now), "signatures": []},
    ),
    "signature is a number": (
        "shape",
        lambda peer, now: {**shape(peer, now), "signatures": {peer.name: {peer.key_id: 1}}},
    ),
    "address in capitals": ("address", lambda peer, now: shape(peer, now, address="A@b.test")),
    "address is none": ("address", lambda peer, now: shape(peer, now, address="a@b@c.test")),
    "address is to be folded": ("address", lambda peer, now: shape(peer, now, address="ß@b.test")),
    "number with a plus": (
        "address",
        lambda peer, now: shape(peer, now, medium="msisdn", address="+441632960000"),
    ),
    "unsigned": ("signature", lambda peer, now: {**shape(peer, now), "signatures": {}}),
    "signed by a stranger": (
        "signature",
        lambda peer, now: FakePeer("other.test").sign(
            peer.statement("alice@example.com", "@alice:hs.test", now)
        ),
    ),
    "signed by another key": (
        "signature",
        lambda peer, now: peer.sign(
            peer.statement("alice@example.com", "@alice:hs.test", now), signing_key("another")
        ),
    ),
    "changed after signing": (
        "signature",
        lambda peer, now: {**shape(peer, now), "mxid": "@eve:hs.test"},
    ),
    "too far ahead": ("future", lambda peer, now: shape(peer, now, ts=now + MAX_AHEAD_MS + 1)),
    "as far ahead as can be": ("future", lambda peer, now: shape(peer, now, ts=2**53 - 1)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_statement_is_quarantined_and_the_rest_is_taken(server, peer, now_ms, case):
    reason, make = REFUSED[case]
    peer.state("before@example.com", "@before:hs.test", now_ms)
    peer.add(make(peer, now_ms))
    peer.state("after@example.com", "@after:hs.test", now_ms)

    answer = peer.push(server)

    assert answer.status_code == 200, answer.json
    assert answer.json == {"last_id": 3, "refused": [{"id": 2, "reason": reason}]}
    assert bound(server, "before@example.com") == "@before:hs.test"
    assert bound(server, "after@example.com") == "@after:hs.test"
    assert bound(server) is None
    assert len(server.rows("associations")) == 2
    (row,) = server.rows("quarantine")
    assert (row["origin_id"], row["leaf"], row["reason"]) == (2, peer.leaf(2), reason)
    assert json.loads(row["item"]) == peer.log[2]
    # It is received: the chain goes on over it, and nobody waits for it.
    assert origin(server) == (3, peer.head())
    assert alarms(server) == {"refused": 1}


@pytest.mark.parametrize(
    ("scope", "threepid", "allowed"),
    [
        (Scope.parse(media=["msisdn"]), ("email", "alice@example.com"), False),
        (Scope.parse(media=["email"]), ("email", "alice@example.com"), True),
        (Scope.parse(domains=["example.com"]), ("email", "alice@example.com"), True),
        (Scope.parse(domains=["example.com"]), ("email", "alice@sub.example.com"), False),
        (Scope.parse(domains=["example.com"]), ("email", "alice@notexample.com"), False),
        (Scope.parse(domains=["example.com"]), ("msisdn", "441632960000"), False),
        (Scope.parse(prefixes=["+44"]), ("msisdn", "441632960000"), True),
        (Scope.parse(prefixes=["44", "49"]), ("msisdn", "15551234"), False),
        (Scope.parse(prefixes=["44"]), ("email", "alice@example.com"), False),
        (
            Scope.parse(media=["email", "msisdn"], domains=["example.com"]),
            ("msisdn", "441632960000"),
            True,
        ),
    ],
)
def test_peer_speaks_within_its_scope_only(server, now_ms, scope, threepid, allowed):
    peer = FakePeer()
    peer.join(server, scope=scope)
    medium, address = threepid
    peer.state(address, "@alice:hs.test", now_ms, medium=medium)
    refused = peer.push(server).json["refused"]
    assert refused == ([] if allowed else [{"id": 1, "reason": "scope"}])
    assert bound(server, address, medium) == ("@alice:hs.test" if allowed else None)


def test_known_id_with_other_content_is_a_fork(server, peer, now_ms):
    peer.state("alice@example.com", "@alice:hs.test", now_ms)
    peer.push(server)
    peer.state("alice@example.com", "@eve:hs.test", now_ms + 1, origin_id=1)
    before = stored(server)

    answer = peer.push(server)

    assert answer.json == {"last_id": 1, "refused": [{"id": 1, "reason": "fork"}]}
    assert bound(server) == "@alice:hs.test"
    assert alarms(server) == {"fork": 1}
    after = stored(server)
    for table in ("statements", "origins", "associations", "lookup_index"):
        assert after[table] == before[table]
    # Said again, it is no news.
    assert peer.push(server).json == answer.json
    assert stored(server) == after
    # And no operator can let it in.
    assert server.services.receiver.retry("peer.test") == (1, 0)
    assert quarantined(server) == [(1, "fork")]


def test_head_that_does_not_follow_raises_an_alarm_once(server, peer, now_ms):
    peer.state("alice@example.com", "@alice:hs.test", now_ms)
    peer.push(server)
    # The peer has lived through something that we have not seen.
    peer.log[1] = bytes(32)
    peer.state("bob@example.com", "@bob:hs.test", now_ms)
    assert peer.push(server, after=1).json == {"last_id": 2, "refused": []}
    assert bound(server, "bob@example.com") == "@bob:hs.test"
    assert alarms(server) == {"chain": 1}
    # Its head was taken over, so what follows fits again.
    assert origin(server) == (2, peer.head())
    peer.state("carol@example.com", "@carol:hs.test", now_ms)
    peer.push(server, after=2)
    assert alarms(server) == {"chain": 1}


def test_lost_statement_is_taken_when_it_comes_again(server, peer, now_ms):
    for number in range(3):
        peer.state(f"user{number}@example.com", f"@user{number}:hs.test", now_ms)
    # The second one is left out, which only the head shows.
    peer.push(server, ids=[1, 3])
    assert alarms(server) == {"chain": 1} or peer.head() != origin(server)[1]
    peer.push(server, after=1)
    assert bound(server, "user1@example.com") == "@user1:hs.test"
    assert len(server.rows("statements")) == 3
    assert alarms(server)["lost"] == 1


def test_dropped_statement_is_taken_when_it_comes_again(server, peer, now_ms):
    peer.state("alice@example.com", "@alice:hs.test", now_ms)
    peer.push(server)
    server.database.write(lambda tx: server.services.associations.drop(tx, "peer.test", [1]))
    assert bound(server) is None
    assert server.rows("lookup_index") == []
    server.services.associations.rebuild()
    assert bound(server) is None
    assert peer.push(server).json == {"last_id": 1, "refused": []}
    assert bound(server) == "@alice:hs.test"


# --- who wins -----------------------------------------------------------------------------


@pytest.mark.requirement("LOOK-12")
def test_binding_of_a_peer_is_looked_up_by_our_pepper_and_the_newest_counts(server, peer, clock):
    peer.state("alice@example.com", "@alice:hs.test", clock.now_ms())
    peer.push(server)
    assert bound(server) == server.found("alice@example.com") == "@alice:hs.test"
    peer.state("alice@example.com", "@older:hs.test", clock.now_ms() - 1)
    peer.push(server)
    assert bound(server) == "@alice:hs.test"
    peer.state("alice@example.com", "@newer:hs.test", clock.now_ms() + 1)
    peer.push(server)
    clock.advance(ms=1)
    assert bound(server) == "@newer:hs.test"


def test_older_statement_of_a_peer_has_no_effect(server, peer, clock):
    server.bind_directly("alice@example.com", "@alice:hs.test")
    peer.state("alice@example.com", "@eve:hs.test", clock.now_ms() - 1)
    peer.state("alice@example.com", None, clock.now_ms() - 1)
    assert peer.push(server).json["refused"] == []
    assert bound(server) == "@alice:hs.test"


@pytest.mark.parametrize("mxid", ["@other:hs.test", None])
def test_newer_statement_of_a_peer_wins(server, peer, clock, mxid):
    server.bind_directly("alice@example.com", "@alice:hs.test")
    peer.state("alice@example.com", mxid, clock.now_ms() + 1)
    assert peer.push(server).json["refused"] == []
    clock.advance(ms=1)
    assert bound(server) == mxid


@pytest.mark.parametrize("mxid", ["@other:hs.test", None])
def test_newer_statement_outside_the_scope_is_refused(server, clock, mxid):
    peer = FakePeer()
    peer.join(server, scope=Scope.parse(domains=["elsewhere.test"]))
    server.bind_directly("alice@example.com", "@alice:hs.test")
    peer.state("alice@example.com", mxid, clock.now_ms() + 1)
    assert peer.push(server).json["refused"] == [{"id": 1, "reason": "scope"}]
    assert bound(server) == "@alice:hs.test"


def test_revocation_is_remembered_so_that_what_is_older_does_not_come_back(server, peer, clock):
    other = FakePeer("other.test")
    other.join(server)
    now_ms = clock.now_ms()
    peer.state("alice@example.com", None, now_ms)
    other.state("alice@example.com", "@old:hs.test", now_ms - 1)
    peer.push(server)
    other.push(server)
    assert bound(server) is None


@pytest.mark.parametrize("mxid", ["@other:hs.test", None])
def test_peer_that_may_supersede_its_own_only_replaces_no_others(server, clock, mxid):
    peer = FakePeer()
    peer.join(server, supersede="own")
    server.bind_directly("alice@example.com", "@alice:hs.test")
    now_ms = clock.now_ms()
    peer.state("alice@example.com", mxid, now_ms + 1)
    peer.state("bob@example.com", "@bob:hs.test", now_ms)
    peer.state("bob@example.com", "@robert:hs.test", now_ms + 1)
    # What is older has no effect, and is no offence.
    peer.state("alice@example.com", "@older:hs.test", now_ms - 1)
    assert peer.push(server).json["refused"] == [{"id": 1, "reason": "supersede"}]
    clock.advance(ms=1)
    assert bound(server) == "@alice:hs.test"
    assert bound(server, "bob@example.com") == "@robert:hs.test"


def test_server_unbinds_what_a_peer_has_bound(server, peer, clock):
    peer.state("alice@example.com", "@alice:hs.test", clock.now_ms() + 5)
    peer.push(server)
    threepid, mxid = ThreePid.email("alice@example.com"), UserId.parse("@alice:hs.test")
    assert server.services.associations.unbind(threepid, mxid)
    assert bound(server) is None
    (own,) = [row for row in server.rows("statements") if row["origin"] != peer.name]
    assert own["ts_ms"] == clock.now_ms() + 6


def test_hundred_replacements_in_a_minute_raise_an_alarm(server, peer, clock):
    for number in range(150):
        server.bind_directly(f"user{number}@example.com", f"@user{number}:hs.test")
        peer.state(f"user{number}@example.com", "@eve:hs.test", clock.now_ms() + 1)
    peer.push(server, ids=list(range(1, 100)))
    assert alarms(server) == {}
    peer.push(server, after=99)
    assert alarms(server) == {"replacements": 1}
    # They count all the same: an operator decides.
    clock.advance(ms=1)
    assert bound(server, "user149@example.com") == "@eve:hs.test"


def test_replacements_over_a_longer_time_raise_none(server, peer, clock):
    for number in range(150):
        server.bind_directly(f"user{number}@example.com", f"@user{number}:hs.test")
        peer.state(f"user{number}@example.com", "@new:hs.test", clock.now_ms() + 1)
    peer.push(server, ids=list(range(1, 100)))
    clock.advance(minutes=1)
    peer.push(server, after=99)
    # Nor do repetitions of what was bound so already, or what nobody had bound.
    peer.state("nobody@example.com", "@new:hs.test", clock.now_ms())
    peer.push(server, after=150)
    assert alarms(server) == {}


# --- the future, and what was refused before ------------------------------------------------


def test_statement_from_the_future_is_taken_when_it_is_due(server, peer, clock):
    ahead_ms = 3 * MAX_AHEAD_MS
    peer.state("alice@example.com", "@alice:hs.test", clock.now_ms() + ahead_ms)
    assert peer.push(server).json["refused"] == [{"id": 1, "reason": "future"}]
    clock.advance(ms=ahead_ms - MAX_AHEAD_MS - 1)
    assert server.services.receiver.take_due() == 0
    assert bound(server) is None
    clock.advance(ms=1)
    assert server.services.receiver.take_due() == 1
    clock.advance(ms=MAX_AHEAD_MS)
    assert bound(server) == "@alice:hs.test"
    assert server.rows("quarantine") == []
    assert server.services.receiver.take_due() == 0


def test_due_statement_of_a_peer_that_was_removed_is_not_taken(server, peer, clock):
    peer.state("alice@example.com", "@alice:hs.test", clock.now_ms() + 2 * MAX_AHEAD_MS)
    peer.push(server)
    server.services.peers.remove(peer.name)
    clock.advance(ms=3 * MAX_AHEAD_MS)
    assert server.services.receiver.take_due() == 0
    assert bound(server) is None


def test_due_statement_that_is_out_of_scope_by_now_stays(server, peer, clock):
    peer.state("alice@example.com", "@alice:hs.test", clock.now_ms() + 2 * MAX_AHEAD_MS)
    peer.push(server)
    peer.join(server, scope=Scope.parse(media=["msisdn"]))
    clock.advance(ms=3 * MAX_AHEAD_MS)
    assert server.services.receiver.take_due() == 1
    assert server.services.receiver.take_due() == 0
    assert quarantined(server) == [(1, "scope")]
    assert bound(server) is None


def test_refused_statements_are_taken_when_they_are_good_by_now(server, now_ms):
    peer = FakePeer()
    peer.join(server, scope=Scope.parse(media=["msisdn"]))
    peer.state("alice@example.com", "@alice:hs.test", now_ms)
    peer.add({**peer.log[1], "mxid": "@eve:hs.test"})
    peer.push(server)
    assert server.services.receiver.retry(peer.name) == (2, 0)
    peer.join(server)
    assert server.services.receiver.retry(peer.name) == (2, 1)
    assert bound(server) == "@alice:hs.test"
    assert quarantined(server) == [(2, "signature")]
    server.services.associations.rebuild()
    assert bound(server) == "@alice:hs.test"


def test_quarantine_does_not_keep_what_a_peer_says_without_end(server, peer, now_ms, monkeypatch):
    monkeypatch.setattr(receiving, "MAX_KEPT_TEXTS", 2)
    for number in range(6):
        peer.add(shape(peer, now_ms, extra=number))
    peer.push(server, ids=[1, 2])
    peer.push(server, after=2)
    kept = [row["item"] is not None for row in server.rows("quarantine")]
    assert kept == [True, True, False, False, False, False]
    assert len(server.rows("statements")) == 6


# --- invitations --------------------------------------------------------------------------


def test_statement_from_the_future_of_which_nothing_was_kept_is_not_due(
    server, peer, clock, monkeypatch
):
    monkeypatch.setattr(receiving, "MAX_KEPT_TEXTS", 0)
    peer.state("alice@example.com", "@alice:hs.test", clock.now_ms() + 2 * MAX_AHEAD_MS)
    peer.push(server)
    clock.advance(ms=3 * MAX_AHEAD_MS)
    assert server.services.receiver.take_due() == 0


def test_binding_from_a_peer_tells_no_homeserver(server, peer, now_ms):
    peer.state("alice@example.com", "@alice:hs.test", now_ms)
    peer.push(server)
    assert server.rows("deliveries") == []


def test_binding_from_a_peer_fulfils_the_invitations_that_wait_here(server, alice, peer, clock):
    body = {"medium": "email", "address": "bob@example.com", "room_id": "!r:hs.test"}
    assert alice.post("/store-invite", json={**body, "sender": alice.user_id}).status_code == 200
    peer.state("bob@example.com", "@bob:hs.test", clock.now_ms())
    peer.state("carol@example.com", "@carol:hs.test", clock.now_ms())
    peer.push(server)
    (delivery,) = server.rows("deliveries")
    assert delivery["mxid"] == "@bob:hs.test"
    assert delivery["invite"] == server.rows("invites")[0]["token_hash"]
    assert json.loads(delivery["signed"]) == peer.log[1]
    peer.push(server)
    assert len(server.rows("deliveries")) == 1
    # Who is bound no more is told of no more.
    peer.state("bob@example.com", None, clock.now_ms() + 1)
    peer.push(server, after=2)
    assert [row["outcome"] for row in server.rows("deliveries")] == ["stale"]


# --- requests -----------------------------------------------------------------------------


def assert_refused(server, answer, status, errcode):
    assert (answer.status_code, answer.json["errcode"]) == (status, errcode)
    assert server.rows("statements") == server.rows("quarantine") == []


@pytest.fixture
def body(peer, now_ms):
    peer.state("alice@example.com", "@alice:hs.test", now_ms)
    return peer.batch()


def test_request_without_authorization_is_refused(server, body):
    assert_refused(server, server.client.post(PUSH, json=body), 401, "M_UNAUTHORIZED")
    answer = server.client.post(PUSH, json=body, headers={"Authorization": "Bearer abc"})
    assert_refused(server, answer, 401, "M_UNAUTHORIZED")


def test_request_for_another_server_is_refused(server, peer, body):
    headers = {
        "Authorization": peer.authorization(PUSH, json.dumps(body).encode(), "elsewhere.test")
    }
    answer = server.client.post(PUSH, data=json.dumps(body), headers=headers)
    assert_refused(server, answer, 401, "M_UNAUTHORIZED")
    # Nor does it help to say so in the header only.
    answer = peer.ask(server, "push", body, signed_destination="elsewhere.test")
    assert_refused(server, answer, 403, "M_FORBIDDEN")


def test_stranger_is_refused(server, body):
    assert_refused(server, FakePeer("stranger.test").push(server), 403, "M_UNKNOWN_PEER")


def test_sydent_peer_is_no_v2_peer(server, body):
    sydent = FakePeer("sydent.test")
    sydent.join(server, protocol="sydent")
    assert_refused(server, sydent.push(server), 403, "M_UNKNOWN_PEER")


@pytest.mark.parametrize(
    "signed",
    [
        {"key": signing_key("another")},
        {"key_id": "ed25519:1"},
        {"method": "PUT"},
        {"signed_uri": PUSH.replace("push", "state")},
    ],
    ids=["wrong key", "unknown key id", "other method", "other path"],
)
def test_request_whose_signature_is_not_that_of_the_peer_is_refused(server, peer, body, signed):
    assert_refused(server, peer.ask(server, "push", body, **signed), 403, "M_FORBIDDEN")


def test_request_with_another_body_than_was_signed_is_refused(server, peer, body):
    authorization = peer.authorization(PUSH, b'{"after":0}', str(server.config.server.name))
    headers = {"Authorization": authorization}
    answer = server.client.post(PUSH, data=json.dumps(body), headers=headers)
    assert_refused(server, answer, 403, "M_FORBIDDEN")


def test_any_of_several_keys_of_a_peer_serves(server, peer, now_ms):
    new = signing_key("new", "1")
    keys = {key.alg + ":" + key.version: bytes(key.verify_key) for key in (peer.key, new)}
    peer.join(server, keys=keys)
    peer.state("alice@example.com", "@alice:hs.test", now_ms)
    peer.key = new
    peer.state("bob@example.com", "@bob:hs.test", now_ms)
    assert peer.push(server).json == {"last_id": 2, "refused": []}
    server.services.peers.remove_key(peer.name, "ed25519:0")
    peer.state("carol@example.com", "@carol:hs.test", now_ms)
    assert peer.push(server, after=2).json == {"last_id": 3, "refused": []}


def test_request_that_a_proxy_gave_another_path_is_taken(server, peer, body):
    """The sender signs the path of the protocol, whatever came before it in the URL."""
    answer = peer.ask(server, "push", body, headers={}, environ={"RAW_URI": f"/identity{PUSH}"})
    assert answer.json == {"last_id": 1, "refused": []}


def test_compressed_push_is_taken(server, peer, now_ms):
    for number in range(300):
        peer.state(f"user{number}@example.com", f"@user{number}:hs.test", now_ms)
    answer = peer.ask(server, "push", peer.batch(), compressed=True)
    assert answer.json == {"last_id": 300, "refused": []}


def test_oversized_body_is_refused(server, peer, monkeypatch):
    big = b'{"after":0,"pad":"' + b"x" * (4 * 1024 * 1024) + b'"}'
    assert_refused(server, peer.ask(server, "push", big), 413, "M_TOO_LARGE")
    assert_refused(server, peer.ask(server, "push", big, compressed=True), 413, "M_TOO_LARGE")


def test_body_larger_than_other_routes_take_is_taken(server, peer, now_ms):
    peer.state("alice@example.com", "@alice:hs.test", now_ms)
    body = peer.batch(pad="x" * (3 * 1024 * 1024))
    assert peer.ask(server, "push", body).status_code == 200


def test_gzip_that_is_none_is_refused(server, peer):
    for encoding, data in (("gzip", b"{}"), ("br", b"{}"), ("gzip", b"")):
        answer = peer.ask(server, "push", data, headers={"Content-Encoding": encoding})
        assert_refused(server, answer, 400, "M_NOT_JSON")


NOT_JSON = {
    "deep": b"[" * 100_000,
    "deep and whole": b'{"after":' + b"[" * 40 + b"]" * 40 + b"}",
    "NaN": b'{"after":NaN}',
    "infinity": b'{"after":1e999}',
    "twice the same key": b'{"after":0,"after":1}',
    "beyond 2^53": b'{"after":9007199254740992}',
    "NUL": b'{"after":"\\u0000"}',
    "lone surrogate": b'{"after":"\\ud800"}',
    "no UTF-8": b'{"after":"\xff"}',
    "nothing": b"",
}


@pytest.mark.parametrize("case", NOT_JSON)
def test_what_is_no_json_is_refused(server, peer, case):
    assert_refused(server, peer.ask(server, "push", NOT_JSON[case]), 400, "M_NOT_JSON")


def test_json_that_is_no_object_is_refused(server, peer):
    assert_refused(server, peer.ask(server, "push", b"[]"), 400, "M_BAD_JSON")


def leaf(origin_id):
    return {"id": origin_id, "leaf": encode_base64(bytes(32))}


@pytest.mark.parametrize(
    "wrong",
    [
        {"after": None},
        {"after": -1},
        {"after": "0"},
        {"after": True},
        {"head": "abc"},
        {"head": 1},
        {"statements": None},
        {"statements": {}},
        {"statements": [1]},
        {"statements": [{"id": 1}]},
        {"statements": [{"id": 0, "leaf": leaf(1)["leaf"]}]},
        {"statements": [{"id": 1, "leaf": "abc"}]},
        {"statements": [{"id": 1, "signed": "text"}]},
        {"statements": [leaf(2), leaf(1)]},
        {"statements": [leaf(1), leaf(1)]},
        {"after": 1, "statements": [leaf(1)]},
        {"statements": [leaf(number) for number in range(1, 1_002)]},
    ],
    ids=lambda wrong: str(wrong)[:60],
)
def test_what_is_no_batch_is_refused_as_a_whole(server, peer, body, wrong):
    answer = peer.ask(server, "push", {**body, **wrong})
    assert_refused(server, answer, 400, "M_INVALID_PARAM")


# --- work ---------------------------------------------------------------------------------


def test_statements_to_the_database_do_not_depend_on_how_many_are_pushed(server, peer, now_ms):
    """Measured in statements, since time depends on the machine: nothing is done one by one."""
    other = FakePeer("other.test")
    other.join(server)
    for number in range(400):
        other.state(f"user{number}@example.com", f"@user{number}:hs.test", now_ms)
        peer.state(f"user{number}@example.com", "@new:hs.test", now_ms + 1)
    other.push(server)
    with recorded(server) as few:
        peer.push(server, ids=[1, 2])
    with recorded(server) as many:
        peer.push(server, after=2)
    # One more for the alarm that so many raise.
    assert len(many) == len(few) + 1
