"""Binds of one 3PID at once: all are acknowledged, in one order, and the last one counts."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from host import email, user

from identity.keys.service import SigningKeys


def assert_one_history(host, address, count):
    """As many statements as were acknowledged, later ones with later ts, and the last one live."""
    blind = host.database.keys.blind_index(email(address))
    log = [row for row in host.rows("statements") if row["threepid"] == blind]
    assert len(log) == count
    times = [row["ts_ms"] for row in log]
    assert all(earlier < later for earlier, later in pairwise(times))
    (current,) = [row for row in host.rows("associations") if row["threepid"] == blind]
    assert (current["origin_id"], current["ts_ms"]) == (log[-1]["origin_id"], times[-1])
    return current


@pytest.fixture
def meeting_keys():
    """Keys of two hosts: whoever signs first waits until the other has come as far, once."""
    meeting, met = threading.Barrier(2, timeout=10), threading.Event()

    class MeetingKeys(SigningKeys):
        def active(self, tx):
            if not met.is_set():
                meeting.wait()
                met.set()
            return super().active(tx)

    return MeetingKeys


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_first_binds_that_both_found_nobody_are_put_in_order(make_host, meeting_keys):
    """Neither could lock the row that was not there; SQLite lets only one of them begin."""
    hosts = [make_host(signing_keys=meeting_keys) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        names = ("alice", "bob")
        signed = list(threads.map(lambda h, n: h.bind("new@example.com", n), hosts, names))

    current = assert_one_history(hosts[0], "new@example.com", 2)
    first, last = sorted(signed, key=lambda item: item["ts"])
    assert last["ts"] == first["ts"] + 1
    assert current["mxid"] == last["mxid"]
    for host in hosts:
        assert host.found("new@example.com") == last["mxid"]


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_first_binds_in_two_spellings_leave_the_index_as_a_rebuild_does(make_host, meeting_keys):
    hosts = [make_host(signing_keys=meeting_keys) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        typed = ("strauß@example.com", "strauss@example.com")
        list(threads.map(lambda host, address: host.bind(address, "alice"), hosts, typed))
    assert_one_history(hosts[0], "strauss@example.com", 2)
    before = hosts[0].rows("lookup_index")
    hosts[0].associations.rebuild()
    assert hosts[0].rows("lookup_index") == before


def test_binds_of_one_3pid_by_many_threads_are_put_in_order(make_host):
    hosts = [make_host() for _ in range(4)]
    names = [f"user{number}" for number in range(24)]
    with ThreadPoolExecutor(12) as threads:
        work = [
            threads.submit(hosts[number % 4].bind, "one@example.com", name)
            for number, name in enumerate(names)
        ]
        signed = [future.result() for future in work]
    current = assert_one_history(hosts[0], "one@example.com", len(names))
    last = max(signed, key=lambda item: item["ts"])
    assert current["mxid"] == last["mxid"]
    assert {host.found("one@example.com") for host in hosts} == {last["mxid"]}
    assert len(hosts[0].rows("lookup_index")) == 1


def test_bind_and_unbind_at_once_leave_what_the_log_says(make_host):
    hosts = [make_host() for _ in range(4)]
    hosts[0].bind("one@example.com", "alice")

    def change(number):
        host = hosts[number % 4]
        if number % 2:
            return host.unbind("one@example.com", "alice")
        host.bind("one@example.com", "alice")
        return True

    with ThreadPoolExecutor(8) as threads:
        acknowledged = sum(threads.map(change, range(24)))
    current = assert_one_history(hosts[0], "one@example.com", acknowledged + 1)
    assert {host.found("one@example.com") for host in hosts} == {current["mxid"]}
    assert len(hosts[0].rows("lookup_index")) == (current["mxid"] is not None)


def test_binds_of_several_3pids_in_opposite_order_do_not_block_each_other(make_host):
    hosts = [make_host() for _ in range(2)]
    addresses = [f"{number}@example.com" for number in range(8)]
    for address in addresses:
        hosts[0].bind(address, "alice")

    def publish(host, order):
        for _ in range(5):
            wanted = {email(address): user("bob") for address in order}
            host.database.write(lambda tx, wanted=wanted: host.associations.publish_all(tx, wanted))

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(publish, hosts, (addresses, addresses[::-1])))
    for address in addresses:
        assert_one_history(hosts[0], address, 11)


def test_clock_that_jumps_back_loses_no_update(host, clock):
    first = host.bind("one@example.com", "alice")
    clock.advance(hours=-24)
    second = host.bind("one@example.com", "bob")
    assert second["ts"] == first["ts"] + 1
    # Valid at once, by the clock as it is now.
    assert second["not_before"] == clock.now_ms()
    assert host.found("one@example.com") == "@bob:hs.test"
    assert host.unbind("one@example.com", "bob")
    assert host.found("one@example.com") is None
    third = host.bind("one@example.com", "carol")
    assert third["ts"] == first["ts"] + 3
    assert host.found("one@example.com") == "@carol:hs.test"
    # When the clock is right again, time goes on from there.
    clock.advance(hours=25)
    fourth = host.bind("one@example.com", "dave")
    assert fourth["ts"] == fourth["not_before"] == clock.now_ms()
    assert_one_history(host, "one@example.com", 5)
    host.associations.rebuild()
    assert host.found("one@example.com") == "@dave:hs.test"


def test_revocation_under_a_clock_that_jumped_back_counts(host, clock):
    host.bind("one@example.com", "alice")
    clock.advance(hours=-24)
    assert host.unbind("one@example.com", "alice")
    clock.advance(hours=48)
    assert host.found("one@example.com") is None


def test_unbind_of_what_is_not_bound_to_that_user_states_nothing(host):
    assert not host.unbind("one@example.com", "alice")
    host.bind("one@example.com", "alice")
    assert not host.unbind("one@example.com", "bob")
    assert host.unbind("one@example.com", "alice")
    assert not host.unbind("one@example.com", "alice")
    assert_one_history(host, "one@example.com", 2)
