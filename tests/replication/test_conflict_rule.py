"""Whatever the order, the repetitions and the pieces in which statements arrive: one view.

The rule itself is in tests/unit; here it is what the database holds in the end.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts.peer import FakePeer

from identity.associations.statement import Version
from identity.threepid import ThreePid

# Sorted by code point, the last is not the last by locale.
ORIGINS = ("B.test", "a.test", "z.test")
ADDRESSES = ("alice@example.com", "bob@example.com")

# (origin, address, how much later, who or nobody)
stated = st.tuples(
    st.integers(0, 2), st.integers(0, 1), st.integers(-2, 2), st.sampled_from([None, "a", "b"])
)


def winners(said, now_ms):
    """By the definition: the newest of (ts, origin, id)."""
    counters = dict.fromkeys(ORIGINS, 0)
    newest = {}
    for origin, address, later_ms, who in said:
        counters[ORIGINS[origin]] += 1
        version = Version(now_ms + later_ms, ORIGINS[origin], counters[ORIGINS[origin]])
        if address not in newest or version > newest[address][0]:
            newest[address] = (version, who)
    return {ADDRESSES[address]: winner for address, winner in newest.items()}


@pytest.fixture
def empty(server):
    """The same server, without anything that was received."""

    def clear():
        tables = ("statements", "origins", "associations", "lookup_index", "quarantine", "alarms")
        for table in tables:
            server.database.write(
                lambda tx, table=table: tx.exec_driver_sql(f"DELETE FROM {table}")
            )
        return server

    return clear


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(said=st.lists(stated, max_size=10), data=st.data())
def test_any_order_repetition_and_cut_gives_the_view_of_the_rule(empty, clock, said, data):
    server, now_ms = empty(), clock.now_ms()
    peers = [FakePeer(name) for name in ORIGINS]
    for peer in peers:
        peer.join(server)
    for origin, address, later_ms, who in said:
        mxid = who and f"@{who}:hs.test"
        peers[origin].state(ADDRESSES[address], mxid, now_ms + later_ms)

    pushes = data.draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10), st.integers(0, 10)), max_size=8)
    )
    for number, after, last in pushes:
        peer = peers[number]
        ids = [one for one in sorted(peer.log) if after < one <= last]
        assert peer.push(server, after=min(after, len(peer.log)), ids=ids).status_code in (200, 409)
    for number in data.draw(st.permutations(range(3))):
        peers[number].push(server)

    expected = winners(said, now_ms)
    view = {
        row["threepid"]: (Version(row["ts_ms"], row["origin"], row["origin_id"]), row["mxid"])
        for row in server.rows("associations")
    }
    assert view == {
        server.database.keys.blind_index(ThreePid.email(address)): (
            version,
            who and f"@{who}:hs.test",
        )
        for address, (version, who) in expected.items()
    }
    clock.advance(ms=3)
    for address, (_, who) in expected.items():
        assert server.found(address) == (who and f"@{who}:hs.test")
    assert server.rows("alarms") == server.rows("quarantine") == []
    before = (server.rows("associations"), sorted(map(repr, server.rows("lookup_index"))))
    server.services.associations.rebuild()
    assert sorted(map(repr, server.rows("associations"))) == sorted(map(repr, before[0]))
    assert sorted(map(repr, server.rows("lookup_index"))) == before[1]


def test_rebuild_keeps_what_is_forgotten_and_brings_nothing_back(server, clock):
    """The revocation is reduced to its leaf and version; what it replaced is still in the log."""
    peer = FakePeer()
    peer.join(server)
    peer.state("alice@example.com", "@old:hs.test", clock.now_ms() - 2)
    peer.push(server)
    threepid = ThreePid.email("alice@example.com")
    server.database.write(lambda tx: server.services.associations.publish(tx, threepid, None))
    server.database.write(
        lambda tx: tx.exec_driver_sql(
            "UPDATE statements SET signed = NULL WHERE origin_id = 1 "
            f"AND origin = '{server.config.server.name}'"
        )
    )
    before = server.rows("associations")
    server.services.associations.rebuild()
    assert server.rows("associations") == before
    assert server.found("alice@example.com") is None
