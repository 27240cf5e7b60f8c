"""A new generation of the lookup index: begun, interrupted, finished, and the old one purged."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from host import GRACE, email, user, wait_until_blocked

from identity.errors import PepperMismatch, SetupError
from identity.lookup import service

pytestmark = pytest.mark.requirement("LOOK-10")

GRACE_MS = GRACE // timedelta(milliseconds=1)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    """So that a dozen associations make several steps."""
    monkeypatch.setattr(service, "_BATCH", 4)


class Killed(Exception):
    """What the process dies of in the middle of a rotation."""


def generations(host):
    """Generation to the 3PIDs that its index has."""
    found = {row["pepper_id"]: set() for row in host.rows("peppers")}
    for row in host.rows("lookup_index"):
        found[row["pepper_id"]].add(row["threepid"])
    return found


def live(host):
    return {row["threepid"] for row in host.rows("associations") if row["mxid"] is not None}


def bind_some(host, count=12):
    for number in range(count):
        host.bind(f"user{number}@example.com", f"user{number}")


def test_rotation_indexes_everything_and_then_switches(host):
    bind_some(host)
    old = host.lookups.hash_details()[0]
    steps = []

    def progress(count):
        steps.append(count)
        assert host.lookups.hash_details()[0] == old

    new = host.peppers.begin()
    assert host.peppers.count() == 12
    host.peppers.finish(new, progress)

    assert steps == [4, 4, 4]
    assert host.lookups.hash_details()[0] == new.text != old
    assert generations(host) == {1: live(host), 2: live(host)}
    for number in range(12):
        assert host.found_by_all(f"user{number}@example.com") == {f"@user{number}:hs.test"}


def test_rotation_of_an_empty_directory_switches(host):
    host.rotate()
    host.bind("alice@example.com", "alice")
    assert host.found_by_all("alice@example.com") == {"@alice:hs.test"}
    assert generations(host) == {1: live(host), 2: live(host)}


def test_pepper_that_is_being_indexed_is_not_answered(host):
    bind_some(host, 1)
    begun = host.peppers.begin()
    with pytest.raises(PepperMismatch):
        host.lookups.check("sha256", begun.text, [])


def test_interrupted_rotation_goes_on_where_it_stopped(make_host):
    host = make_host()
    bind_some(host)
    steps = []

    def die(count):
        steps.append(count)
        if len(steps) == 2:
            raise Killed

    begun = host.peppers.begin()
    with pytest.raises(Killed):
        host.peppers.finish(begun, die)
    assert host.ready_peppers() == [host.lookups.hash_details()[0]]

    # Another process finds it, and does only the rest.
    after = make_host()
    with pytest.raises(SetupError, match="under way"):
        after.peppers.begin()
    unfinished = after.peppers.find_unfinished()
    assert unfinished.text == begun.text
    rest = []
    after.peppers.finish(unfinished, rest.append)
    assert (steps, rest) == ([4, 4], [4])
    assert after.lookups.hash_details()[0] == begun.text
    assert after.peppers.find_unfinished() is None
    assert generations(after) == {1: live(after), 2: live(after)}


def test_rotation_that_is_told_to_stop_neither_switches_nor_loses_its_place(host):
    bind_some(host)
    begun = host.peppers.begin()
    steps = []
    host.peppers.finish(begun, steps.append, lambda: len(steps) == 2)
    assert steps == [4, 4]
    assert len(host.ready_peppers()) == 1
    host.peppers.finish(host.peppers.find_unfinished(), steps.append)
    assert steps == [4, 4, 4]
    assert generations(host) == {1: live(host), 2: live(host)}


def test_changes_during_a_rotation_are_right_in_both_generations(make_host):
    """At every step: behind the cursor, ahead of it, and what is being indexed."""
    host, other = make_host(), make_host()
    bind_some(host)
    fresh = iter(range(100))

    def change(_count=0):
        """Binds, rebinds, unbinds and binds again, all over the table."""
        for number in (next(fresh), next(fresh)):
            other.bind(f"new{number}@example.com", "new")
            other.bind(f"strauß{number}@example.com", "new")
            other.bind(f"user{number}@example.com", "rebound")
        other.unbind(f"user{number - 1}@example.com", "rebound")
        other.unbind(f"strauß{number}@example.com", "new")
        other.unbind(f"user{11 - number}@example.com", f"user{11 - number}")
        other.bind(f"strauss{number - 1}@example.com", "new")

    begun = host.peppers.begin()
    change()
    host.peppers.finish(begun, change)

    assert generations(host) == {1: live(host), 2: live(host)}
    before = host.rows("lookup_index")
    host.associations.rebuild()
    assert host.rows("lookup_index") == before
    for address in ("strauß1@example.com", "user0@example.com"):
        assert host.found_by_all(address) == {None}


def test_what_was_unbound_after_it_was_read_does_not_come_back(make_host):
    """Between the reading of a batch and its indexing the view moves on."""
    host, other = make_host(), make_host()
    bind_some(host, 4)

    begun = host.peppers.begin()
    stale = [row["threepid"] for row in host.rows("associations")]
    other.unbind("user0@example.com", "user0")
    other.bind("user1@example.com", "rebound")
    host.database.write(lambda tx: host.peppers._index(tx, begun, stale))
    host.peppers.finish(begun)
    assert generations(host) == {1: live(host), 2: live(host)}
    assert host.found_by_all("user0@example.com") == {None}
    assert host.found_by_all("user1@example.com") == {"@rebound:hs.test"}


def test_two_processes_may_finish_one_rotation(make_host):
    hosts = [make_host() for _ in range(2)]
    bind_some(hosts[0])
    begun = hosts[0].peppers.begin()
    both = threading.Barrier(2, timeout=10)

    def finish(host):
        both.wait()
        host.peppers.finish(begun)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(finish, hosts))
    assert generations(hosts[0]) == {1: live(hosts[0]), 2: live(hosts[0])}
    assert [row["retires_at_ms"] is None for row in hosts[0].rows("peppers")] == [False, True]


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_bind_that_is_under_way_is_waited_for(make_host):
    """It does not see the generation that is being begun, and nobody sees it yet."""
    host, other = make_host(), make_host()
    published, committing = threading.Event(), threading.Event()

    def publish(tx):
        other.associations.publish(tx, email("alice@example.com"), user("alice"))
        published.set()
        assert committing.wait(10)

    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(other.database.write, publish)
        assert published.wait(10)
        rotating = threads.submit(host.rotate)
        wait_until_blocked(host.database)
        committing.set()
        slow.result()
        rotating.result()
    assert host.found_by_all("alice@example.com") == {"@alice:hs.test"}
    assert generations(host) == {1: live(host), 2: live(host)}


def test_old_pepper_is_answered_for_the_time_of_grace_only(host, clock):
    host.bind("alice@example.com", "alice")
    old = host.lookups.hash_details()[0]
    host.rotate()
    clock.advance(ms=GRACE_MS - 1)
    assert host.found("alice@example.com", old) == "@alice:hs.test"
    clock.advance(ms=1)
    with pytest.raises(PepperMismatch) as caught:
        host.found("alice@example.com", old)
    assert caught.value.lookup_pepper == host.lookups.hash_details()[0]
    assert host.found("alice@example.com") == "@alice:hs.test"


def test_grace_of_a_pepper_is_not_prolonged_by_the_next_rotation(host, clock):
    first = host.lookups.hash_details()[0]
    host.rotate()
    clock.advance(ms=GRACE_MS // 2)
    host.rotate()
    clock.advance(ms=GRACE_MS // 2)
    with pytest.raises(PepperMismatch):
        host.lookups.check("sha256", first, [])
    assert len(host.rows("peppers")) == 3


def test_retired_generation_is_purged_in_steps_and_nothing_else(host, clock):
    bind_some(host, 6)
    host.rotate()
    clock.advance(ms=GRACE_MS)
    # Others may take it for good for some seconds more.
    assert host.peppers.purge() == 0
    clock.advance(minutes=1, ms=1)
    assert [host.peppers.purge() for _ in range(4)] == [4, 2, 1, 0]
    assert generations(host) == {2: live(host)}
    assert host.found("user0@example.com") == "@user0:hs.test"
    # Its number is not used again.
    host.rotate()
    assert set(generations(host)) == {2, 3}


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_bind_during_the_purge_leaves_no_row_without_a_pepper(make_host, clock):
    host, other = make_host(), make_host()
    bind_some(host, 2)
    host.rotate()
    clock.advance(ms=GRACE_MS, minutes=2)
    published, committing = threading.Event(), threading.Event()

    def publish(tx):
        other.associations.publish(tx, email("alice@example.com"), user("alice"))
        published.set()
        assert committing.wait(10)

    def purge():
        while host.peppers.purge():
            pass

    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(other.database.write, publish)
        assert published.wait(10)
        purging = threads.submit(purge)
        wait_until_blocked(host.database)
        committing.set()
        slow.result()
        purging.result()
    assert generations(host) == {2: live(host)}


def test_automatic_rotation_begins_when_the_pepper_is_old(host, clock):
    month = timedelta(days=30)
    host.peppers.begin_if_older(month)
    clock.advance(hours=30 * 24)
    host.peppers.begin_if_older(month)
    assert host.peppers.find_unfinished() is None
    clock.advance(ms=1)
    host.peppers.begin_if_older(timedelta(0))
    assert host.peppers.find_unfinished() is None
    host.peppers.begin_if_older(month)
    begun = host.peppers.find_unfinished()
    # Not a second one while the first is being indexed, nor right after it.
    host.peppers.begin_if_older(month)
    assert len(host.rows("peppers")) == 2
    host.peppers.finish(begun)
    host.peppers.begin_if_older(month)
    assert len(host.rows("peppers")) == 2
