"""Servers that are processes, over sockets: what one states is found on the others (issue 5)."""

import socket
from dataclasses import replace

import pytest
from parts.mesh import wait_until_equal
from parts.processes import wait_until

from identity.replication.peer import Peer, Protocol, Scope

on_one_database = pytest.mark.parametrize("database_kind", ["sqlite"])

ALICE = "@alice:hs.test"
BOB = "@bob:hs.test"
CAROL = "@carol:hs.test"


def many(count, mxid=ALICE):
    return {f"many{number}@example.com": mxid for number in range(count)}


def test_binding_is_found_on_the_peer_and_unbinding_takes_it_away(mesh):
    a, b = servers = mesh.servers("a.test", "b.test")
    a.bind("alice@example.com", ALICE)
    assert b.wait_for("alice@example.com", ALICE) < 1
    b.bind("bob@example.com", BOB)
    assert a.wait_for("bob@example.com", BOB) < 1
    # What another server stated is revoked in our own name.
    assert b.unbind("alice@example.com", ALICE)
    assert a.wait_for("alice@example.com", None) < 1
    wait_until_equal(servers)
    assert a.digests().keys() == {"a.test", "b.test"}
    for server in servers:
        assert server.get("/ready").json() == {"status": "ok", "degraded": []}


def test_processes_that_are_killed_lose_nothing(mesh):
    a, b = mesh.servers("a.test", "b.test")
    a.bind_all(many(5_000))
    wait_until(lambda: a.acknowledged("b.test") > 0)
    # The receiver, in the middle of a backlog, and with it the connection.
    b.kill()
    a.bind("alice@example.com", ALICE)
    b.start()
    # The sender's courier, which another one follows.
    crashed = a.crash("courier")
    assert a.process("courier") != crashed
    a.bind("bob@example.com", BOB)
    b.wait_for("alice@example.com", ALICE)
    b.wait_for("bob@example.com", BOB)
    # All of the sender.
    a.bind("carol@example.com", CAROL)
    a.kill()
    a.start()
    b.wait_for("carol@example.com", CAROL)
    wait_until_equal([a, b])
    assert a.digests()["a.test"].last_id == 5_003
    assert b.inside.rows("alarms") == []


@on_one_database
def test_servers_that_could_not_talk_agree_on_the_newest(mesh):
    a, b, c = servers = mesh.servers("a.test", "b.test", "c.test")
    a.bind("alice@example.com", ALICE)
    a.bind("bob@example.com", BOB)
    for server in (b, c):
        server.wait_for("bob@example.com", BOB)
    # Nobody is there but the one who states.
    b.kill()
    c.kill()
    a.bind("alice@example.com", BOB)
    a.unbind("bob@example.com", BOB)
    a.kill()
    b.start()
    b.bind("alice@example.com", CAROL)
    b.kill()
    c.start()
    c.bind("bob@example.com", CAROL)
    c.unbind("bob@example.com", CAROL)
    a.start()
    b.start()
    for server in servers:
        server.wait_for("alice@example.com", CAROL)
        server.wait_for("bob@example.com", None)
    wait_until_equal(servers)


@on_one_database
def test_peers_in_trouble_do_not_hold_up_a_good_one(mesh):
    a, b = mesh.servers("a.test", "b.test")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        # It takes connections, and never says a word.
        port = silent.getsockname()[1]
        for name, url in {
            "silent.test": f"http://127.0.0.1:{port}",
            "away.test": "http://127.0.0.1:9",
            "unresolvable.test": "https://nowhere.invalid",
        }.items():
            a.add_peer(Peer(name, url, Protocol.V2, b.as_peer.keys))
        for number in range(10):
            a.bind(f"alice{number}@example.com", ALICE)
            assert b.wait_for(f"alice{number}@example.com", ALICE) < 2
        wait_until(lambda: a.last_error("away.test") == "connection refused")
        # A server that is told to stop does not wait for the silent one.
        assert a.stop() == 0


@on_one_database
def test_statement_that_is_refused_stops_nothing(mesh):
    a, b = mesh.make("a.test"), mesh.make("b.test")
    for server in (a, b):
        server.start()
    a.bind_all({**many(50), "alice@elsewhere.example": ALICE, **many(99)})
    b.add_peer(replace(a.as_peer, scope=Scope.parse(domains=["example.com"])))
    a.add_peer(b.as_peer)
    wait_until(lambda: a.acknowledged("b.test") == 100)
    assert b.found("many49@example.com") == b.found("many50@example.com") == ALICE
    assert b.found("alice@elsewhere.example") is None
    (refused,) = b.inside.rows("quarantine")
    assert (refused["origin_id"], refused["reason"]) == (51, "scope")
    (alarm,) = b.inside.rows("alarms")
    assert (alarm["kind"], alarm["count"]) == ("refused", 1)


@on_one_database
def test_restored_receiver_gets_what_it_lost(mesh):
    a, b = mesh.servers("a.test", "b.test")
    a.bind("alice@example.com", ALICE)
    b.wait_for("alice@example.com", ALICE)
    assert b.stop() == 0
    backup = b.copy_database()
    b.start()
    a.bind_all(many(1_500))
    a.unbind("alice@example.com", ALICE)
    b.wait_for("alice@example.com", None)
    b.kill()
    b.restore_database(backup)
    b.start()
    assert b.found("alice@example.com") == ALICE
    a.bind("bob@example.com", BOB)
    b.wait_for("bob@example.com", BOB)
    assert b.found("alice@example.com") is None
    wait_until_equal([a, b])


@on_one_database
def test_restored_sender_gets_its_statements_back_before_it_binds(mesh):
    """E12: 1,000 statements old, then 100 new ones."""
    a, b = mesh.servers("a.test", "b.test")
    a.bind("alice@example.com", ALICE)
    b.wait_for("alice@example.com", ALICE)
    assert a.stop() == 0
    backup = a.copy_database()
    a.start()
    a.bind_all(many(1_000))
    a.unbind("alice@example.com", ALICE)
    b.wait_for("alice@example.com", None)
    a.kill()
    a.restore_database(backup)
    a.start(wait=False)
    a.wait_until_ready()
    a.wait_for_log("recovered")
    assert a.found("alice@example.com") is None
    assert a.found("many999@example.com") == ALICE
    a.bind_all({f"new{number}@example.com": BOB for number in range(100)})
    b.wait_for("new99@example.com", BOB)
    wait_until_equal([a, b])
    assert a.digests()["a.test"].last_id == 1_102
    assert b.inside.rows("alarms") == []
