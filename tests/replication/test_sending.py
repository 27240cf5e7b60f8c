"""Bringing peers up to our last statement: cursors, leases, back-off, and peers that misbehave."""

import threading
import time
from itertools import pairwise
from random import Random

import pytest
from parts.server import Server
from unpaddedbase64 import decode_base64

from identity.clock import DAY_MS, MINUTE_MS, SECOND_MS
from identity.federation import xmatrix
from identity.processes.courier import Courier
from identity.replication.chain import EMPTY_HEAD
from identity.replication.client import COMPRESSED_FROM_BYTES, PeerError
from identity.replication.cursors import LEASE_MS
from identity.replication.schedule import LONGEST_MS, LONGEST_SOON_MS, delay_ms
from identity.sealing import SealBroken
from identity.signing import is_signature
from identity.strict_json import encode_canonical

on_one_database = pytest.mark.parametrize("database_kind", ["sqlite"])

ALICE = "@alice:hs.test"


class TestPushing:
    def test_statements_reach_the_peer_in_order_and_the_cursor_follows(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        a.bind("bob@example.com", "@bob:hs.test")
        a.unbind("alice@example.com", ALICE)
        a.send()
        assert b.server.found("alice@example.com") is None
        assert b.server.found("bob@example.com") == "@bob:hs.test"
        assert a.digests() == b.digests()
        cursor = a.cursor("b.test")
        assert cursor["acknowledged_id"] == 3
        assert cursor["head"].hex() == a.digests()["a.test"].head
        assert cursor["last_success_at_ms"] == a.server.clock.now_ms()
        (push,) = [asked for asked in b.network.asked if asked.name == "push"]
        assert push.body["after"] == 0
        assert [item["id"] for item in push.body["statements"]] == [1, 2, 3]

    def test_nothing_new_is_nothing_to_do(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        a.send()
        assert a.courier.sending.due() == []
        before = len(b.network.asked)
        a.send()
        assert len(b.network.asked) == before

    def test_request_is_signed_for_the_peer_by_the_active_key(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        a.send()
        (push,) = [asked for asked in b.network.asked if asked.name == "push"]
        claimed = xmatrix.parse([push.headers["AUTHORIZATION"]])
        assert (str(claimed.origin), claimed.destination) == ("a.test", "b.test")
        ((key_id, signature),) = claimed.signatures
        message = xmatrix.signed_message(
            "POST",
            "/_matrix/identity/replicate/v2/push",
            "a.test",
            "b.test",
            encode_canonical(push.body),
        )
        assert is_signature(message, signature, a.as_peer().keys[key_id])

    def test_backlog_goes_out_in_batches_at_once_and_large_ones_are_compressed(self, pair):
        a, b = pair
        a.bind_many(2_500)
        a.send()
        pushes = [asked for asked in b.network.asked if asked.name == "push"]
        assert [len(push.body["statements"]) for push in pushes] == [1_000, 1_000, 500]
        for push in pushes:
            assert push.headers["CONTENT_ENCODING"] == "gzip"
            assert push.size < len(encode_canonical(push.body)) * 0.8
            assert len(encode_canonical(push.body)) > COMPRESSED_FROM_BYTES
        assert decode_base64(pushes[-1].body["head"]).hex() == a.digests()["a.test"].head
        assert a.digests() == b.digests()
        # The peer reckoned the same heads.
        assert b.server.rows("alarms") == []

    def test_configured_batch_size_is_kept(self, make_nodes):
        a, b = make_nodes("a.test", "b.test", settings={"REPLICATION__BATCH_SIZE": "10"})
        a.bind_many(25)
        a.send()
        pushes = [asked.body for asked in b.network.asked if asked.name == "push"]
        assert [len(body["statements"]) for body in pushes] == [10, 10, 5]
        assert a.digests() == b.digests()

    def test_new_peer_gets_everything(self, make_nodes):
        a, b, c = make_nodes("a.test", "b.test", "c.test")
        a.bind_many(30)
        a.send()
        assert a.digests() == b.digests() == c.digests()

    def test_answer_that_is_lost_is_asked_for_again_and_changes_nothing(self, pair, clock):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        b.network.lose_answers()
        a.send()
        assert b.server.found("alice@example.com") == ALICE
        assert a.cursor("b.test")["acknowledged_id"] == 0
        b.network.heal()
        clock.advance(seconds=30)
        a.send()
        assert a.cursor("b.test")["acknowledged_id"] == 1
        assert a.digests() == b.digests()
        assert b.server.rows("alarms") == []


class TestRewinding:
    def test_peer_that_lost_everything_gets_it_again(self, make_nodes):
        a, b = make_nodes("a.test", "b.test", settings={"REPLICATION__BATCH_SIZE": "10"})
        a.bind_many(25)
        a.send()
        self.restore(b, up_to=0)
        a.bind("alice@example.com", ALICE)
        a.send()
        assert b.server.found("alice@example.com") == ALICE
        assert a.digests() == b.digests()
        assert b.server.rows("alarms") == []

    def test_peer_restored_to_somewhere_in_between_gets_what_follows(self, make_nodes):
        a, b = make_nodes("a.test", "b.test", settings={"REPLICATION__BATCH_SIZE": "10"})
        a.bind_many(15)
        a.send()
        head = a.digests()["a.test"].head
        a.bind_many(20, first=15)
        a.send()
        self.restore(b, up_to=15, head=bytes.fromhex(head))
        a.bind("alice@example.com", ALICE)
        b.network.asked.clear()
        a.send()
        pushes = [asked.body for asked in b.network.asked if asked.name == "push"]
        assert [body["after"] for body in pushes] == [35, 15, 25, 35]
        assert a.digests() == b.digests()
        # Heads behind a rewind are reckoned anew, and are right.
        assert b.server.rows("alarms") == []

    def restore(self, node, *, up_to, head=EMPTY_HEAD):
        """As an older backup would have it."""
        tables = node.server.services.database
        from identity.associations.models import associations, origins, statements  # noqa: PLC0415

        def work(tx):
            for table in (statements, associations):
                tx.execute(
                    table.delete().where(table.c.origin == "a.test", table.c.origin_id > up_to)
                )
            tx.execute(
                origins.update()
                .where(origins.c.origin == "a.test")
                .values(last_id=up_to, head=head)
            )

        tables.write(work)
        node.server.services.associations.rebuild()


FAULTS = {
    "500": (lambda network: network.fail_with(500), "answered 500"),
    "unknown peer": (
        lambda network: network.fail_with(403, {"errcode": "M_UNKNOWN_PEER"}),
        "answered 403 M_UNKNOWN_PEER",
    ),
    "strange errcode": (
        lambda network: network.fail_with(403, {"errcode": "alice@example.com"}),
        "answered 403",
    ),
    "redirect": (lambda network: network.fail_with(307), "answered 307"),
    "no object": (lambda network: network.fail_with(200, [1]), "malformed answer"),
    "no id": (lambda network: network.fail_with(200, {"last_id": "1"}), "malformed answer"),
    "negative id": (lambda network: network.fail_with(200, {"last_id": -1}), "malformed answer"),
    "too little": (lambda network: network.fail_with(200, {"last_id": 0}), "malformed answer"),
    "senseless 409": (lambda network: network.fail_with(409, {"last_id": 1}), "malformed answer"),
    "flood": (lambda network: network.flood(), "answer too large"),
    "lost": (lambda network: network.lose_answers(), "connection lost"),
}


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    @on_one_database
    def test_fault_is_recorded_in_fixed_words_and_the_cursor_stays(self, pair, fault):
        a, b = pair
        misbehave, words = FAULTS[fault]
        a.bind("alice@example.com", ALICE)
        misbehave(b.network)
        a.send()
        cursor = a.cursor("b.test")
        assert cursor["last_error"] == words
        assert cursor["last_error_at_ms"] == a.server.clock.now_ms()
        assert (cursor["acknowledged_id"], cursor["failures"]) == (0, 1)
        assert cursor["leased_until_ms"] == 0

    @on_one_database
    def test_peer_that_refuses_connections_is_tried_later(self, pair, clock):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        b.network.close()
        a.send()
        assert a.cursor("b.test")["last_error"] == "connection refused"
        assert a.courier.sending.due() == []
        clock.advance(seconds=1)
        assert a.courier.sending.due() == ["b.test"]

    @on_one_database
    def test_peer_that_drips_is_given_up_in_time(self, pair):
        a, b = pair
        b.network.drip()
        client = a.courier.clients.open("b.test", b.network.url)
        began = time.monotonic()
        with pytest.raises(PeerError, match="timed out"):
            client.ask("state", b"{}", 0.5)
        assert 0.4 < time.monotonic() - began < 5
        client.close()

    @on_one_database
    def test_refused_statement_does_not_stop_those_after_it(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        self.spoil(a, 1)
        a.bind("bob@example.com", "@bob:hs.test")
        a.send()
        assert b.server.found("alice@example.com") is None
        assert b.server.found("bob@example.com") == "@bob:hs.test"
        assert a.cursor("b.test")["acknowledged_id"] == 2
        assert [row["reason"] for row in b.server.rows("quarantine")] == ["signature"]

    @on_one_database
    def test_fault_of_ours_is_put_off_like_any_other(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        break_seal = "UPDATE statements SET signed = x'00'"
        a.database.write(lambda tx: tx.exec_driver_sql(break_seal))
        with pytest.raises(SealBroken):
            a.send()
        assert a.cursor("b.test")["last_error"] == "failed here"
        assert a.courier.sending.due() == []
        assert b.network.asked == []

    def spoil(self, node, origin_id):
        from identity.associations.models import statements  # noqa: PLC0415

        def work(tx):
            query = statements.update().where(statements.c.origin_id == origin_id)
            (row,) = [
                row for row in node.server.rows("statements") if row["origin_id"] == origin_id
            ]
            tx.execute(query.values(signed=row["signed"].replace("alice", "mallory")))

        node.database.write(work)


class TestBackOff:
    def test_delays_double_to_a_limit_that_depends_on_when_the_peer_was_well(self):
        class Longest(Random):
            def uniform(self, _low, high):
                return high

        def delays(well_ms_ago):
            return [delay_ms(n, 10**12 - well_ms_ago, 10**12, Longest()) for n in range(1, 12)]

        seconds = [1, 2, 4, 8, 16]
        assert delays(0) == [*(s * SECOND_MS for s in seconds), *6 * [LONGEST_SOON_MS]]
        assert delays(20 * MINUTE_MS)[-2:] == [LONGEST_MS, LONGEST_MS]
        assert delays(20 * MINUTE_MS)[5] == 32 * SECOND_MS
        spread = {delay_ms(6, 0, 10**12, Random(seed)) for seed in range(100)}
        assert len(spread) > 50
        assert min(spread) >= 32 * SECOND_MS * 0.75

    @on_one_database
    def test_peer_is_left_alone_until_its_next_try(self, pair, clock):
        a, b = pair
        b.network.fail_with(500)
        a.bind("alice@example.com", ALICE)
        tries = []
        for _ in range(600):
            clock.advance(ms=200)
            before = len(b.network.asked)
            a.send()
            if len(b.network.asked) > before:
                tries.append(clock.now_ms())
        gaps = [later - earlier for earlier, later in pairwise(tries)]
        # Two minutes: 1, 2, 4, 8, 16 and then 20 seconds, less up to a quarter.
        assert 9 <= len(tries) <= 14
        assert all(gap >= 750 for gap in gaps)
        assert max(gaps) <= LONGEST_SOON_MS + 200
        b.network.heal()
        clock.advance(seconds=20)
        a.send()
        assert a.cursor("b.test")["failures"] == 0
        assert b.server.found("alice@example.com") == ALICE

    @on_one_database
    def test_whatever_a_peer_asks_makes_its_next_try_now(self, pair, clock):
        a, b = pair
        b.network.fail_with(500)
        a.bind("alice@example.com", ALICE)
        for _ in range(8):
            a.send()
            clock.advance(minutes=30)
        a.send()
        assert a.cursor("b.test")["next_try_at_ms"] > clock.now_ms() + MINUTE_MS
        b.network.heal()
        b.bind("bob@example.com", "@bob:hs.test")
        b.send()
        a.send()
        assert b.server.found("alice@example.com") == ALICE

    @on_one_database
    def test_clock_set_back_keeps_no_peer_waiting(self, pair, clock):
        a, b = pair
        b.network.fail_with(500)
        a.bind("alice@example.com", ALICE)
        a.send()
        b.network.heal()
        clock.advance(hours=-24 * 365)
        a.send()
        assert a.cursor("b.test")["acknowledged_id"] == 1


class TestLeases:
    def other(self, node) -> Courier:
        """The courier of another host on the same database."""
        return Courier(node.server.services, node.server.clock, "another host")

    def test_one_sender_a_peer_until_its_lease_is_over(self, pair, clock):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        self.hold(a, "dead host")
        a.send()
        assert b.network.asked == []
        clock.advance(ms=LEASE_MS - 1)
        a.send()
        assert b.network.asked == []
        clock.advance(ms=1)
        a.send()
        assert b.server.found("alice@example.com") == ALICE

    def hold(self, node, holder):
        from identity.replication import cursors  # noqa: PLC0415

        now_ms = node.server.clock.now_ms()
        assert node.database.write(lambda tx: cursors.lease(tx, "b.test", holder, now_ms))

    def test_sender_that_lost_its_lease_moves_nothing(self, pair, clock):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        other = self.other(a)

        def meanwhile(environ, start_response):
            # While the answer is under way, the lease runs out and another host takes over.
            clock.advance(ms=LEASE_MS)
            b.network.heal()
            other.sending.attend("b.test", lambda: False)
            a.bind("bob@example.com", "@bob:hs.test")
            return b.server.app(environ, start_response)

        b.network._instead = meanwhile
        a.send()
        cursor = a.cursor("b.test")
        assert cursor["lease_holder"] == "another host"
        assert cursor["acknowledged_id"] == 1
        a.send()
        assert a.digests() == b.digests()

    def test_two_hosts_at_once_send_each_statement_once(self, pair):
        a, b = pair
        a.bind_many(2_500)
        couriers = [a.courier, self.other(a)]
        threads = [
            threading.Thread(target=courier.sending.attend, args=("b.test", lambda: False))
            for courier in couriers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert b.network.names().count("push") == 3
        assert a.digests() == b.digests()

    @on_one_database
    def test_successor_on_the_same_host_takes_over_at_once(self, pair):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        self.hold(a, "a.test 0")
        a.send()
        assert b.server.found("alice@example.com") == ALICE


class TestSuspending:
    def test_silent_peer_is_suspended_and_starts_anew_when_it_is_back(self, pair, clock):
        a, b = pair
        a.bind("alice@example.com", ALICE)
        a.send()
        b.network.fail_with(500)
        a.bind("bob@example.com", "@bob:hs.test")
        clock.advance(ms=89 * DAY_MS)
        a.courier.sending.suspend_silent()
        assert a.peer("b.test")["suspended_at_ms"] is None
        clock.advance(ms=2 * DAY_MS)
        a.courier.sending.suspend_silent()
        assert a.peer("b.test")["suspended_at_ms"] == clock.now_ms()
        a.send()
        assert a.cursor("b.test")["last_error"] == "answered 500"
        b.network.heal()
        b.network.asked.clear()
        clock.advance(minutes=5)
        a.send()
        assert a.peer("b.test")["suspended_at_ms"] is None
        assert b.network.names() == ["state", "push", "compare"]
        assert b.network.asked[1].body["after"] == 0
        assert a.digests() == b.digests()


class TestReadiness:
    def degraded(self, server: Server):
        response = server.client.get("/ready")
        assert response.status_code == 200
        return response.json["degraded"]

    def test_peer_that_lags_for_ten_minutes_is_named(self, pair, clock):
        a, b = pair
        assert self.degraded(a.server) == []
        clock.advance(hours=1)
        a.bind("alice@example.com", ALICE)
        b.network.fail_with(500)
        a.send()
        clock.advance(minutes=10)
        assert self.degraded(a.server) == []
        clock.advance(ms=1)
        assert self.degraded(a.server) == ["peer:b.test"]
        b.network.heal()
        clock.advance(minutes=1)
        a.send()
        assert self.degraded(a.server) == []

    @on_one_database
    def test_peer_that_was_just_added_or_is_suspended_is_not_named(self, make_nodes, clock):
        a, b = make_nodes("a.test", "b.test")
        b.network.fail_with(500)
        a.bind("alice@example.com", ALICE)
        clock.advance(hours=24 * 91)
        assert self.degraded(a.server) == ["peer:b.test"]
        a.courier.sending.suspend_silent()
        assert self.degraded(a.server) == []
        (c,) = make_nodes("c.test")
        a.add_peer(c)
        assert self.degraded(a.server) == []
