"""The operator's hand: peers added, changed, looked at and removed; active at once."""

import json
import re

import pytest
from parts.peer import FakePeer, signing_key
from parts.processes import RunningServer, identity
from unpaddedbase64 import encode_base64

from identity.errors import InvalidRequest, KeyNotFound, UnknownPeer
from identity.replication.peer import MAX_AHEAD_MS, Scope
from identity.threepid import ThreePid

KEY = encode_base64(bytes(signing_key("peer.test").verify_key))


@pytest.fixture
def peers(server):
    return server.services.peers


def find(server, address):
    return server.services.associations.find_mxid(ThreePid.email(address))


def test_peer_that_is_added_is_kept_as_it_was_said(server, peers):
    scope = Scope.parse(media=["email"], domains=["example.com", "a.test"])
    added = FakePeer().join(server, scope=scope, supersede="own", url="https://id.test:1/x")
    assert peers.all() == [added]
    assert peers.get("peer.test") == added
    (cursor,) = server.rows("cursors")
    assert (cursor["acknowledged_id"], cursor["next_try_at_ms"]) == (0, server.clock.now_ms())


def test_peer_that_is_added_again_is_what_is_said_now_and_stays_where_it_is(server, peers):
    peer = FakePeer()
    peer.join(server, scope=Scope.parse(domains=["a.test"]))
    server.database.write(
        lambda tx: tx.exec_driver_sql(
            "UPDATE cursors SET acknowledged_id = 7, failures = 3, next_try_at_ms = 2000000000000"
        )
    )
    other = signing_key("other", "1")
    again = peer.join(server, keys={"ed25519:1": bytes(other.verify_key)}, url="https://b.test")
    assert peers.all() == [again]
    (cursor,) = server.rows("cursors")
    assert cursor["acknowledged_id"] == 7
    # It is tried at once: the operator may have mended what was wrong.
    assert (cursor["failures"], cursor["next_try_at_ms"]) == (0, server.clock.now_ms())


def test_peer_that_was_given_up_is_added_as_new(server):
    peer = FakePeer()
    peer.join(server)
    for statement in (
        "UPDATE cursors SET acknowledged_id = 7",
        "UPDATE peers SET suspended_at_ms = 1",
    ):
        server.database.write(lambda tx, statement=statement: tx.exec_driver_sql(statement))
    peer.join(server)
    assert server.rows("cursors")[0]["acknowledged_id"] == 0
    assert server.rows("peers")[0]["suspended_at_ms"] is None


def test_server_is_no_peer_of_its_own(server, peers):
    with pytest.raises(InvalidRequest):
        FakePeer(str(server.config.server.name)).join(server)
    assert peers.all() == []


def test_peer_is_heard_and_unheard_at_once(server, peers, clock):
    peer = FakePeer()
    peer.state("alice@example.com", "@alice:hs.test", clock.now_ms())
    assert peer.push(server).json["errcode"] == "M_UNKNOWN_PEER"
    peer.join(server)
    assert peer.push(server).status_code == 200
    peers.remove("peer.test")
    assert peer.push(server).json["errcode"] == "M_UNKNOWN_PEER"


def test_statements_of_a_removed_peer_stay_and_go_on_when_it_returns(server, peers, clock):
    peer = FakePeer()
    peer.join(server)
    peer.state("alice@example.com", "@alice:hs.test", clock.now_ms())
    peer.state("bob@example.com", "@bob:hs.test", clock.now_ms() + 2 * MAX_AHEAD_MS)
    peer.push(server)
    peers.remove("peer.test")
    assert find(server, "alice@example.com") == "@alice:hs.test"
    for table in ("peers", "peer_keys", "cursors", "quarantine", "alarms"):
        assert server.rows(table) == []
    clock.advance(ms=2 * MAX_AHEAD_MS)
    peer.join(server)
    peer.state("carol@example.com", "@carol:hs.test", clock.now_ms())
    assert peer.push(server, after=2).json == {"last_id": 3, "refused": []}
    # What had been refused was forgotten with the peer; it is asked for when they compare.
    live = [{"id": one, "leaf": encode_base64(peer.leaf(one))} for one in (1, 2, 3)]
    body = {"first": 0, "last_id": 3, "live": live}
    assert peer.ask(server, "repair", body).json == {"wanted": [2]}
    assert peer.push(server, after=1, ids=[2]).json["refused"] == []
    assert find(server, "bob@example.com") == "@bob:hs.test"


def test_keys_are_added_and_removed(server, peers):
    FakePeer().join(server)
    new = bytes(signing_key("new").verify_key)
    peers.add_key("peer.test", "ed25519:1", new)
    assert peers.get("peer.test").keys["ed25519:1"] == new
    peers.remove_key("peer.test", "ed25519:0")
    assert peers.get("peer.test").keys == {"ed25519:1": new}
    with pytest.raises(InvalidRequest, match="only key"):
        peers.remove_key("peer.test", "ed25519:1")
    assert peers.get("peer.test").keys == {"ed25519:1": new}
    with pytest.raises(KeyNotFound):
        peers.remove_key("peer.test", "ed25519:7")


def test_peer_that_is_none_is_named_so(server, peers):
    for use in (
        lambda: peers.get("x.test"),
        lambda: peers.remove("x.test"),
        lambda: peers.confirm("x.test"),
        lambda: peers.add_key("x.test", "ed25519:0", bytes(32)),
        lambda: peers.remove_key("x.test", "ed25519:0"),
        lambda: server.services.receiver.retry("x.test"),
    ):
        with pytest.raises(UnknownPeer):
            use()


def test_peer_that_is_confirmed_need_not_answer(server, peers):
    FakePeer().join(server)
    server.database.write(lambda tx: tx.exec_driver_sql("UPDATE peers SET must_answer = true"))
    assert peers.report()[0].sending.must_answer
    peers.confirm("peer.test")
    assert not peers.report()[0].sending.must_answer


def test_report_says_how_each_peer_is(server, peers, clock):
    peer = FakePeer()
    peer.join(server)
    FakePeer("quiet.test").join(server)
    for number in range(3):
        server.bind_directly(f"user{number}@example.com", "@user:hs.test")
    peer.state("alice@example.com", "@alice:hs.test", clock.now_ms())
    peer.add({**peer.log[1], "mxid": "@eve:hs.test"})
    peer.push(server)
    clock.advance(minutes=2)

    report, quiet = peers.report()

    assert (report.name, report.sending.acknowledged_id, report.received_id) == ("peer.test", 0, 2)
    assert (report.lag, report.lag_ms) == (3, 120_000)
    assert report.refused == {"signature": 1}
    assert report.alarms == {"refused": (1, clock.now_ms() - 120_000)}
    assert (quiet.received_id, quiet.refused, quiet.alarms) == (0, {}, {})


# --- the command line ---------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    def run(*arguments, status=0):
        settings = {"SERVER__DATA_DIR": str(tmp_path / "data"), "SERVER__NAME": "id.test"}
        done = identity("peers", *arguments, folder=tmp_path, settings=settings)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


ADD = ("add", "peer.test", "--url", "https://127.0.0.1:1/", "--key", f"ed25519:0={KEY}")


def test_commands_add_list_change_and_remove_a_peer(run):
    run(*ADD, "--no-check", "--domain", "example.com", "--domain", "a.test", "--supersede", "own")
    line = json.loads(run("list"))
    assert line == {
        "name": "peer.test",
        "url": "https://127.0.0.1:1",
        "protocol": "v2",
        "keys": {"ed25519:0": KEY},
        "supersede": "own",
        "media": ["email"],
        "domains": ["a.test", "example.com"],
        "prefixes": [],
    }
    run(*ADD, "--no-check", "--prefix", "+44", "--media", "msisdn")
    line = json.loads(run("list"))
    assert (line["domains"], line["prefixes"], line["supersede"]) == ([], ["44"], "all")
    run("key", "add", "peer.test", f"ed25519:1={KEY}")
    run("key", "remove", "peer.test", "ed25519:0")
    assert json.loads(run("list"))["keys"] == {"ed25519:1": KEY}
    assert run("retry", "peer.test") == "0 of 0 taken\n"
    run("confirm", "peer.test")
    status = json.loads(run("status", "--json"))
    assert (status["name"], status["cursor"], status["lag"], status["quarantined"]) == (
        "peer.test",
        0,
        0,
        {},
    )
    assert re.search(r"peer\.test.*v2.*never", run("status"))
    run("remove", "peer.test")
    assert run("list") == ""


@pytest.mark.parametrize(
    "wrong",
    [
        ("add", "peer test", *ADD[2:]),
        (*ADD[:3], "peer.test", *ADD[4:]),
        (*ADD[:5], KEY),
        (*ADD[:5], "ed25519:0=abc"),
        (*ADD, "--media", "fax"),
        (*ADD, "--prefix", "x"),
        ("add", "id.test", *ADD[2:]),
        ("remove", "peer.test"),
        ("retry", "peer.test"),
        ("confirm", "peer.test"),
        ("key", "add", "peer.test", f"ed25519:1={KEY}"),
    ],
    ids=str,
)
def test_command_that_cannot_be_carried_out_says_why_in_one_line(run, wrong):
    reason = run(*wrong, *(["--no-check"] if wrong[0] == "add" else []), status=1)
    assert len(reason.splitlines()) == 1
    assert run("list") == ""


def test_peer_that_cannot_be_asked_for_its_keys_is_not_added(run):
    assert "127.0.0.1" in run(*ADD, status=1)
    assert run("list") == ""


def test_peer_is_asked_for_its_keys(run, tmp_path):
    other = RunningServer(tmp_path / "other", {"SERVER__NAME": "other.test"})
    other.start()
    try:
        published = other.get("/_matrix/identity/v2/pubkey/ed25519:0").json()["public_key"]
        url = f"http://127.0.0.1:{other.port}"
        add = ("add", "other.test", "--url", url, "--key")
        assert "publishes another key as ed25519:0" in run(*add, f"ed25519:0={KEY}", status=1)
        assert "publishes no such key" in run(*add, f"ed25519:9={published}", status=1)
        assert run("list") == ""
        run(*add, f"ed25519:0={published}")
        assert json.loads(run("list"))["url"] == url
    finally:
        other.stop()
