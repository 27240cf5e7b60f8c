"""`hash_details` and `lookup`, and the pepper that rotates under them."""

import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from parts import vectors
from parts.parallel import second_server

from identity.lookup.hashing import encode_hash, lookup_hash
from identity.lookup.models import peppers
from identity.lookup.service import _PEPPERS_KEPT_MS
from identity.mxid import UserId
from identity.threepid import ThreePid

VECTORS = vectors.load("lookup_hashes")
PLAIN = {"LOOKUP__ALGORITHMS": '["sha256", "none"]'}

on_one_database = pytest.mark.parametrize("database_kind", ["sqlite"])


def ask(account, addresses, algorithm="sha256", pepper=None):
    """A lookup, by the current pepper where none is given."""
    pepper = pepper_of(account) if pepper is None else pepper
    body = {"algorithm": algorithm, "pepper": pepper, "addresses": addresses}
    return account.post("/lookup", json=body)


def pepper_of(account):
    return account.get("/hash_details").json["lookup_pepper"]


def assert_error(response, status, errcode, keys=("errcode", "error")):
    assert (response.status_code, response.json["errcode"]) == (status, errcode)
    assert set(response.json) == set(keys)


def rotate(server):
    peppers = server.services.peppers
    peppers.finish(peppers.begin())


@pytest.mark.requirement("LOOK-01", "LOOK-02")
@on_one_database
@pytest.mark.parametrize("algorithms", [["sha256"], ["sha256", "none"]])
def test_hash_details_name_pepper_and_algorithms(make_server, algorithms):
    text = str(algorithms).replace("'", '"')
    server = make_server({"LOOKUP__ALGORITHMS": text})
    details = server.account("@alice:hs.test").get("/hash_details")
    assert details.status_code == 200
    assert set(details.json) == {"lookup_pepper", "algorithms"}
    assert details.json["algorithms"] == algorithms
    assert re.fullmatch("[a-zA-Z0-9]+", details.json["lookup_pepper"])
    assert [row["pepper"] for row in server.rows("peppers")] == [details.json["lookup_pepper"]]


@pytest.mark.requirement("LOOK-01", "LOOK-03")
@on_one_database
def test_lookups_need_a_token(server):
    for response in (
        server.client.get("/_matrix/identity/v2/hash_details"),
        server.client.post("/_matrix/identity/v2/lookup", json={}),
    ):
        assert_error(response, 401, "M_UNAUTHORIZED")


@pytest.mark.requirement("LOOK-03")
def test_lookup_finds_what_is_bound_and_leaves_out_the_rest(server, alice, bob):
    server.bind_directly("alice@example.com", "@alice:hs.test")
    server.bind_directly("18005552067", "@bob:hs.test", "msisdn")
    hashes = [
        server.hash_of("alice@example.com"),
        server.hash_of("nobody@example.com"),
        server.hash_of("18005552067", "msisdn"),
        # The medium is part of what is hashed.
        server.hash_of("18005552067", "email"),
    ]
    found = ask(bob, hashes)
    assert found.status_code == 200
    assert found.json == {"mappings": {hashes[0]: "@alice:hs.test", hashes[2]: "@bob:hs.test"}}
    assert ask(alice, hashes[1:2]).json == {"mappings": {}}
    # Named twice, answered once.
    assert ask(alice, hashes[:1] * 3).json == {"mappings": {hashes[0]: "@alice:hs.test"}}


@pytest.mark.requirement("LOOK-03")
@on_one_database
@pytest.mark.parametrize("algorithm", ["sha256", "none"])
@pytest.mark.parametrize("name", ["algorithm", "pepper", "addresses"])
def test_lookup_needs_all_three_parameters_for_every_algorithm(make_server, algorithm, name):
    alice = make_server(PLAIN).account("@alice:hs.test")
    body = {"algorithm": algorithm, "pepper": pepper_of(alice), "addresses": []}
    assert alice.post("/lookup", json=body).status_code == 200
    del body[name]
    response = alice.post("/lookup", json=body)
    assert_error(response, 400, "M_MISSING_PARAMS")
    assert name in response.json["error"]


@pytest.mark.requirement("LOOK-04", "TPID-01", "TPID-03")
def test_lookup_by_the_published_hashes(server, alice):
    # Before anything is bound, so that nothing has to be indexed anew.
    change = peppers.update().values(pepper=VECTORS["pepper"])
    server.database.write(lambda tx: tx.execute(change))
    expected = {}
    for number, row in enumerate(VECTORS["hashes"]):
        # The last two are one 3PID, whose later binding counts for both hashes.
        mxid = f"@user{min(number, len(VECTORS['hashes']) - 2)}:hs.test"
        server.bind_directly(row["address"], mxid, row["medium"])
        expected[row["hash"]] = mxid
    assert ask(alice, list(expected)).json == {"mappings": expected}


@pytest.mark.requirement("LOOK-05")
def test_plain_lookup_echoes_exactly_what_was_sent(make_server):
    server = make_server(PLAIN)
    alice = server.account("@alice:hs.test")
    server.bind_directly("alice@example.com", "@alice:hs.test")
    server.bind_directly("18005552067", "@bob:hs.test", "msisdn")
    entries = ["alice@example.com email", "18005552067 msisdn", "bob@example.com email"]
    found = ask(alice, entries, "none")
    assert found.status_code == 200
    assert found.json["mappings"] == {entries[0]: "@alice:hs.test", entries[1]: "@bob:hs.test"}


@pytest.mark.requirement("TPID-05", "TPID-06", "LOOK-08", "AMB-17")
@on_one_database
def test_plain_entry_is_compared_as_it_is(make_server):
    server = make_server(PLAIN)
    alice = server.account("@alice:hs.test")
    server.bind_directly("alice@example.com", "@alice:hs.test")
    good = "alice@example.com email"
    bad = [
        "ALICE@example.com email",
        "alice@example.com Email",
        "alice@example.com fax",
        "alice@example.com msisdn",
        "alice@example.com",
        "alice@example.com email email",
        " alice@example.com email",
        "alice@example.com  email",
        "email alice@example.com",
        "",
        server.hash_of("alice@example.com"),
        "@alice:hs.test mxid",
        "*@example.com email",
    ]
    found = ask(alice, [*bad, good], "none")
    assert (found.status_code, found.json) == (200, {"mappings": {good: "@alice:hs.test"}})


@pytest.mark.requirement("LOOK-08", "AMB-17")
@on_one_database
def test_entry_that_is_no_hash_matches_nothing(server, alice):
    server.bind_directly("alice@example.com", "@alice:hs.test")
    good = server.hash_of("alice@example.com")
    bad = [
        good + "=",
        good[:-1],
        good + "A",
        good.swapcase(),
        good[:-1] + chr(ord(good[-1]) + 1),
        " " + good,
        "",
        "!" * 43,
        "é" * 43,
        "alice@example.com email",
        "@alice:hs.test",
    ]
    found = ask(alice, [*bad, good])
    assert (found.status_code, found.json) == (200, {"mappings": {good: "@alice:hs.test"}})


@pytest.mark.requirement("LOOK-06", "AMB-18")
@on_one_database
@pytest.mark.parametrize("algorithm", ["sha256", "none"])
@pytest.mark.parametrize("pepper", ["wrong", "", "é"])
def test_wrong_pepper_is_answered_with_the_right_one(make_server, algorithm, pepper):
    server = make_server(PLAIN)
    alice = server.account("@alice:hs.test")
    server.bind_directly("alice@example.com", "@alice:hs.test")
    entry = {"none": "alice@example.com email", "sha256": server.hash_of("alice@example.com")}
    response = ask(alice, [entry[algorithm]], algorithm, pepper=pepper)
    keys = ("errcode", "error", "algorithm", "lookup_pepper")
    assert_error(response, 400, "M_INVALID_PEPPER", keys)
    assert response.json["algorithm"] == algorithm
    assert response.json["lookup_pepper"] == pepper_of(alice)
    # A client that takes over what the error says is answered.
    again = (response.json["algorithm"], response.json["lookup_pepper"])
    found = ask(alice, [entry[algorithm]], *again)
    assert found.json == {"mappings": {entry[algorithm]: "@alice:hs.test"}}


@pytest.mark.requirement("LOOK-07")
@on_one_database
@pytest.mark.parametrize("algorithm", ["md5", "none", "SHA256", "", "sha256 "])
@pytest.mark.parametrize("pepper", [None, "wrong"])
def test_unknown_algorithm_is_refused_before_the_pepper_is_looked_at(alice, algorithm, pepper):
    response = ask(alice, [], algorithm, pepper)
    assert_error(response, 400, "M_INVALID_PARAM")


@pytest.mark.requirement("LOOK-09")
@on_one_database
@pytest.mark.parametrize("addresses", ["x", [1], ["x", None], {}, {"a": "b"}, 1, [["x"]], False])
def test_addresses_of_another_type_are_refused(alice, addresses):
    assert_error(ask(alice, addresses), 400, "M_INVALID_PARAM")


@pytest.mark.requirement("LOOK-09")
@on_one_database
def test_number_of_addresses_is_limited(server, alice, bob):
    server.bind_directly("alice@example.com", "@alice:hs.test")
    known = server.hash_of("alice@example.com")
    assert ask(alice, []).json == {"mappings": {}}
    others = [encode_hash(number.to_bytes(32)) for number in range(9_999)]
    assert ask(alice, [known, *others]).json == {"mappings": {known: "@alice:hs.test"}}
    assert_error(ask(bob, [known, *others, "x"]), 400, "M_TOO_LARGE")


@pytest.mark.requirement("LOOK-09")
@on_one_database
def test_number_of_addresses_can_be_configured(make_server):
    alice = make_server({"LOOKUP__MAX_ADDRESSES": "2"}).account("@alice:hs.test")
    assert ask(alice, ["a", "b"]).status_code == 200
    assert_error(ask(alice, ["a", "b", "c"]), 400, "M_TOO_LARGE")


@pytest.mark.requirement("LOOK-11")
def test_only_what_is_bound_now_is_found(server, alice, clock):
    session = alice.validate("alice@example.com")
    assert server.found("alice@example.com") is None
    alice.post("/3pid/bind", json={**session, "mxid": alice.user_id})
    assert server.found("alice@example.com") == alice.user_id

    threepid = {"medium": "email", "address": "alice@example.com"}
    body = {**session, "mxid": alice.user_id, "threepid": threepid}
    assert alice.post("/3pid/unbind", json=body).status_code == 200
    assert server.found("alice@example.com") is None

    clock.advance(minutes=1)
    alice.post("/3pid/bind", json={**session, "mxid": alice.user_id})
    assert server.found("alice@example.com") == alice.user_id


@pytest.mark.requirement("LOOK-11")
def test_binding_is_found_from_not_before_to_not_after(server, clock):
    signed = server.bind_directly("alice@example.com", "@alice:hs.test")
    for at_ms, found in (
        (signed["not_before"] - 1, None),
        (signed["not_before"], "@alice:hs.test"),
        (signed["not_after"], "@alice:hs.test"),
        (signed["not_after"] + 1, None),
    ):
        clock.at_ms = at_ms
        assert server.found("alice@example.com") == found


@pytest.mark.requirement("LOOK-11")
def test_newest_binding_counts(server, clock):
    for mxid in ("@zoe:hs.test", "@alice:hs.test", "@bob:hs.test"):
        server.bind_directly("alice@example.com", mxid)
        clock.advance(seconds=1)
    assert server.found("alice@example.com") == "@bob:hs.test"


@pytest.mark.requirement("LOOK-10")
def test_pepper_rotates_with_a_time_of_grace(make_server, clock):
    server = make_server({"LOOKUP__PEPPER_GRACE": "1h"})
    other = second_server(make_server, server)
    alice, bob = server.account("@alice:hs.test"), other.account("@bob:hs.test")
    server.bind_directly("alice@example.com", "@alice:hs.test")
    old, old_hash = pepper_of(alice), server.hash_of("alice@example.com")
    # The other process has the peppers in its memory.
    assert ask(bob, [old_hash], pepper=old).json["mappings"] == {old_hash: "@alice:hs.test"}

    rotate(server)

    new, new_hash = pepper_of(bob), other.hash_of("alice@example.com")
    assert new != old
    server.bind_directly("bob@example.com", "@bob:hs.test")
    bob_hashes = {pepper: hash_by(pepper, "bob@example.com") for pepper in (old, new)}
    for account in (alice, bob):
        for pepper, known in ((old, old_hash), (new, new_hash)):
            found = ask(account, [known, bob_hashes[pepper]], pepper=pepper)
            assert found.json["mappings"] == {
                known: "@alice:hs.test",
                bob_hashes[pepper]: "@bob:hs.test",
            }
        # Each hash goes with its own pepper.
        assert ask(account, [old_hash], pepper=new).json["mappings"] == {}

    clock.advance(hours=1)
    for account in (alice, bob):
        response = ask(account, [old_hash], pepper=old)
        assert response.json["errcode"] == "M_INVALID_PEPPER"
        assert response.json["lookup_pepper"] == new
        assert ask(account, [new_hash], pepper=new).json["mappings"] == {new_hash: "@alice:hs.test"}


def hash_by(pepper, address):
    return encode_hash(lookup_hash(address, "email", pepper))


@pytest.mark.requirement("LOOK-10")
def test_pepper_without_grace_is_refused_at_once_or_answered_rightly(make_server, clock):
    """Another process may still hold the pepper for good; then it has to find what it indexed."""
    server = make_server({"LOOKUP__PEPPER_GRACE": "0s"})
    other = second_server(make_server, server)
    bob = other.account("@bob:hs.test")
    server.bind_directly("alice@example.com", "@alice:hs.test")
    old = pepper_of(bob)
    old_hash = hash_by(old, "alice@example.com")
    assert ask(bob, [old_hash], pepper=old).status_code == 200
    rotate(server)
    clock.advance(ms=1)
    while server.services.peppers.purge():
        pass
    found = ask(bob, [old_hash], pepper=old)
    if found.status_code == 200:
        assert found.json["mappings"] == {old_hash: "@alice:hs.test"}
    clock.advance(ms=_PEPPERS_KEPT_MS)
    assert ask(bob, [old_hash], pepper=old).json["errcode"] == "M_INVALID_PEPPER"


class Traffic:
    """Threads that ask all the time, and how much they have done."""

    def __init__(self):
        self.done = threading.Event()
        self._counts = Counter()
        self._changed = threading.Condition()

    def repeat(self, work):
        """Call `work`, which returns what to count, until the test is over or something is wrong."""
        try:
            while not self.done.is_set():
                event = work()
                with self._changed:
                    self._counts[event] += 1
                    self._changed.notify_all()
        finally:
            self.stop()

    def stop(self):
        with self._changed:
            self.done.set()
            self._changed.notify_all()

    def wait_for(self, *events):
        """Until each has happened twice more."""
        with self._changed:
            goals = {event: self._counts[event] + 2 for event in events}
            assert self._changed.wait_for(
                lambda: (
                    self.done.is_set()
                    or all(self._counts[event] >= goal for event, goal in goals.items())
                ),
                timeout=30,
            )


@pytest.mark.requirement("LOOK-10")
def test_pepper_rotates_under_traffic(make_server):
    """Every answer is right, whatever happens to the index meanwhile."""
    server = make_server({"RATE_LIMITS__ENABLED": "false"})
    other = second_server(make_server, server, RATE_LIMITS__ENABLED="false")
    steady = {f"user{number}@example.com": f"@user{number}:hs.test" for number in range(20)}
    for address, mxid in steady.items():
        server.bind_directly(address, mxid)
    traffic = Traffic()

    def look(place):
        account = place.account("@stranger:elsewhere.test")

        def work():
            pepper = pepper_of(account)
            hashes = {hash_by(pepper, address): mxid for address, mxid in steady.items()}
            assert ask(account, list(hashes), pepper=pepper).json["mappings"] == hashes
            return (place, pepper)

        traffic.repeat(work)

    def change():
        threepid, mxid = ThreePid.email("new@example.com"), UserId.parse("@new:hs.test")
        account = server.account("@changer:elsewhere.test")

        def work():
            server.services.associations.bind(threepid, mxid)
            assert found_by_every_pepper(server, account, threepid.address) == {str(mxid)}
            server.services.associations.unbind(threepid, mxid)
            assert found_by_every_pepper(server, account, threepid.address) == {None}
            return "change"

        traffic.repeat(work)

    with ThreadPoolExecutor(3) as threads:
        current = pepper_of(server.account("@alice:hs.test"))
        work = [threads.submit(look, server), threads.submit(look, other), threads.submit(change)]
        for _ in range(3):
            old = [(server, current), (other, current), "change"]
            traffic.wait_for(*old)
            begun = server.services.peppers.begin()
            traffic.wait_for(*old)
            # The callback comes between the indexing and the switch.
            other.services.peppers.finish(begun, lambda _, old=old: traffic.wait_for(*old))
            current = begun.text
        traffic.wait_for((server, current), (other, current), "change")
        traffic.stop()
        for future in work:
            future.result()


def found_by_every_pepper(server, account, address):
    """What each pepper that is answered finds: it must be the same."""
    ready = sa.select(peppers.c.pepper).where(peppers.c.ready_at_ms.is_not(None))
    found = set()
    for pepper in server.database.read(lambda tx: tx.execute(ready).scalars().all()):
        asked = hash_by(pepper, address)
        found.add(ask(account, [asked], pepper=pepper).json["mappings"].get(asked))
    return found


@pytest.mark.requirement("LOOK-13")
@on_one_database
def test_lookups_of_one_account_are_limited(make_server, clock):
    server = make_server({"RATE_LIMITS__LIMITS": '{lookup_account = "10/d"}'})
    alice, bob = server.account("@alice:hs.test"), server.account("@bob:hs.test")
    server.bind_directly("alice@example.com", "@alice:hs.test")
    known = server.hash_of("alice@example.com")
    found = {"mappings": {known: "@alice:hs.test"}}

    assert ask(alice, [known, *"abcdefghi"]).json == found
    refused = ask(alice, [known])
    assert_error(refused, 429, "M_LIMIT_EXCEEDED", ("errcode", "error", "retry_after_ms"))
    assert int(refused.headers["Retry-After"]) * 1_000 >= refused.json["retry_after_ms"] > 0
    # Another token of the same account is no way round; another account is not held back.
    assert ask(server.account("@alice:hs.test"), [known]).status_code == 429
    assert ask(bob, [known]).json == found
    # What asks for nothing costs nothing.
    assert ask(alice, []).json == {"mappings": {}}
    assert ask(alice, [known], pepper="wrong").json["errcode"] == "M_INVALID_PEPPER"

    clock.advance(ms=refused.json["retry_after_ms"])
    assert ask(alice, [known]).json == found
    assert ask(alice, [known]).status_code == 429


@pytest.mark.requirement("LOOK-13")
@on_one_database
def test_address_book_of_5000_passes_three_times(server, alice):
    """The default: 15,000 in three days."""
    book = [encode_hash(number.to_bytes(32)) for number in range(5_000)]
    for _ in range(3):
        assert ask(alice, book).status_code == 200
    assert ask(alice, book[:200]).status_code == 429


@pytest.mark.requirement("LOOK-13")
@on_one_database
def test_hash_details_of_one_account_are_limited(make_server):
    server = make_server({"RATE_LIMITS__LIMITS": '{hash_details_account = "3/h"}'})
    alice = server.account("@alice:hs.test")
    statuses = [alice.get("/hash_details").status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert server.account("@bob:hs.test").get("/hash_details").status_code == 200
