"""Servers that are processes, over sockets: what one states is found on the others (issue 5)."""

import pytest
from parts.mesh import wait_until_equal

on_one_database = pytest.mark.parametrize("database_kind", ["sqlite"])

ALICE = "@alice:hs.test"
BOB = "@bob:hs.test"


@pytest.fixture
def running_pair(mesh):
    return mesh.servers("a.test", "b.test")


def test_binding_is_found_on_the_peer_and_unbinding_takes_it_away(running_pair):
    a, b = running_pair
    a.bind("alice@example.com", ALICE)
    assert b.wait_for("alice@example.com", ALICE) < 1
    b.bind("bob@example.com", BOB)
    assert a.wait_for("bob@example.com", BOB) < 1
    # What another server stated is revoked in our own name.
    assert b.unbind("alice@example.com", ALICE)
    assert a.wait_for("alice@example.com", None) < 1
    wait_until_equal(running_pair)
    assert a.digests().keys() == {"a.test", "b.test"}
