"""Telling homeservers of bindings: conformance.md section 15, as its section 21 and decision 20
changed it. Against a homeserver with failure switches, over TLS."""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import pytest
from parts.dns import FakeResolver
from parts.homeserver import ONBIND, FakeHomeserver, Reply
from parts.invitations import (
    BOB,
    REACHABLE,
    ROOM,
    bind_anyone,
    deliver,
    invite,
    is_signed,
    is_valid,
    lead,
    mailed_invitation,
    path_of,
    told,
)
from parts.parallel import second_server
from parts.processes import wait_until
from parts.server import V2
from parts.validation import UNLIMITED, Crash, sqlite_only

from identity.clock import HOUR_MS, SECOND_MS
from identity.errors import InvalidRequest
from identity.onbind.service import LEASE_MS
from identity.processes.courier import Courier
from identity.threepid import ThreePid

BOB_ID = "@bob:hs.test"
SETTINGS = {**UNLIMITED, **REACHABLE}


@pytest.fixture
def server(make_server, homeserver, resolver):
    return make_server(SETTINGS, resolver=resolver)


def methods(homeserver):
    """How onbind was called, in order."""
    return [request.method for request in homeserver.requests if request.path == ONBIND]


def outcomes(server):
    """How many notifications ended in which way; None: not yet."""
    return Counter(row["outcome"] for row in server.rows("deliveries"))


def tokens(bodies):
    """Of the invitations that were told, in order."""
    return [told["token"] for body in bodies for told in body["invites"]]


def answers(*statuses):
    """One after the other; the last for ever."""
    left = list(statuses)

    def answer(_request):
        return Reply(left.pop(0) if len(left) > 1 else left[0])

    return answer


def deliver_until_it_ends(server, clock, rounds=100):
    """The courier looks in as time goes by; returns at which instants it had something to do."""
    at_ms = []
    for _ in range(rounds):
        due = [row["next_try_at_ms"] for row in server.rows("deliveries") if not row["outcome"]]
        if not due:
            return at_ms
        clock.at_ms = max(clock.at_ms, *due)
        at_ms.append(clock.at_ms)
        deliver(server)
    raise AssertionError("it does not end")


# --- what is sent -----------------------------------------------------------------------------


@pytest.mark.requirement("ONB-01", "ONB-03", "ONB-06", "INV-16", "AMB-20")
def test_binding_is_told_to_the_homeserver_of_its_mxid_with_its_invitation(
    server, alice, clock, homeserver
):
    stored = invite(alice, "Bob@Example.com").json
    clock.advance(hours=1)
    bound = bind_anyone(server, "bOB@example.com", BOB_ID)
    assert homeserver.paths() == []  # nobody waits for it
    deliver(server)

    assert homeserver.paths() == [ONBIND]
    (request,) = homeserver.requests
    assert request.method == "POST"
    assert request.headers["Host"] == "hs.test"
    assert request.headers["Content-Type"] == "application/json"
    assert "Authorization" not in request.headers
    (body,) = told(homeserver)
    assert set(body) == {
        *("medium", "address", "mxid", "ts", "not_before", "not_after"),
        *("invites", "signatures"),
    }
    assert {name: body[name] for name in bound if name != "signatures"} == {
        name: value for name, value in bound.items() if name != "signatures"
    }
    (told_invite,) = body["invites"]
    assert {name: value for name, value in told_invite.items() if name != "signed"} == {
        "medium": "email",
        "address": BOB,
        "mxid": BOB_ID,
        "room_id": ROOM,
        "sender": alice.user_id,
        "token": stored["token"],
    }
    (row,) = server.rows("deliveries")
    assert (row["outcome"], row["next_try_at_ms"], row["tries"]) == ("delivered", None, 1)
    (row,) = server.rows("invites")
    assert row["delivered_at_ms"] == clock.now_ms()


@pytest.mark.requirement("ONB-01")
def test_only_the_homeserver_of_the_bound_mxid_is_told(server, homeserver, resolver):
    with FakeHomeserver("b.hs.test") as other:
        lead(resolver, "b.hs.test", other)
        bind_anyone(server, BOB, "@bob:b.hs.test")
        deliver(server)
        assert [body["mxid"] for body in told(other)] == ["@bob:b.hs.test"]
        assert told(homeserver) == []
        # One who moves: it is where they are now that counts.
        bind_anyone(server, BOB, BOB_ID, "another")
        deliver(server)
        assert len(told(other)) == 1
    assert [body["mxid"] for body in told(homeserver)] == [BOB_ID]


@pytest.mark.requirement("ONB-03", "AMB-19")
def test_binding_without_invitations_is_told_bare_and_once(server, clock, homeserver):
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    (body,) = told(homeserver)
    assert body["invites"] == []
    assert body["signatures"].keys() == {"localhost"}
    bind_anyone(server, BOB, BOB_ID, "another")  # it changes nothing
    clock.advance(hours=7)
    deliver(server)
    assert len(told(homeserver)) == 1


def public_key(server, key_id):
    return server.client.get(f"{V2}/pubkey/{key_id}").json["public_key"]


@pytest.mark.requirement("ONB-04", "ONB-05")
def test_signatures_are_by_the_key_that_the_room_knows(server, alice, homeserver):
    stored = invite(alice).json
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    (body,) = told(homeserver)
    key = stored["public_keys"][0]["public_key"]
    assert is_signed(body, key, "ed25519:0")
    assert body["signatures"].keys() == {"localhost"}
    signed = body["invites"][0]["signed"]
    assert set(signed) == {"mxid", "token", "signatures"}
    assert (signed["mxid"], signed["token"]) == (BOB_ID, stored["token"])
    assert signed["signatures"].keys() == {"localhost"}
    assert is_signed(signed, key, "ed25519:0")


@pytest.mark.requirement("ONB-04", "KEY-08")
def test_invitation_of_before_a_rotation_is_signed_by_both_keys(server, alice, homeserver):
    old = invite(alice).json
    assert server.services.signing_keys.rotate() == "ed25519:1"
    new = invite(alice, room_id="!new:hs.test").json
    assert new["public_key"] == public_key(server, "ed25519:1") != old["public_key"]
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    bodies = {body["invites"][0]["token"]: body for body in told(homeserver)}
    signed = bodies[old["token"]]["invites"][0]["signed"]
    assert set(signed["signatures"]["localhost"]) == {"ed25519:0", "ed25519:1"}
    assert is_signed(signed, old["public_key"], "ed25519:0")
    assert is_signed(signed, new["public_key"], "ed25519:1")
    assert is_valid(server, old["public_keys"][0])
    signed = bodies[new["token"]]["invites"][0]["signed"]
    assert set(signed["signatures"]["localhost"]) == {"ed25519:1"}
    assert is_signed(signed, new["public_key"], "ed25519:1")
    for body in bodies.values():
        assert is_signed(body, new["public_key"], "ed25519:1")


def test_rotation_while_a_delivery_waits_changes_what_is_sent(server, alice, clock, homeserver):
    old = invite(alice).json
    homeserver.onbind = answers(500, 200)
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    server.services.signing_keys.rotate()
    clock.advance(seconds=5)
    deliver(server)
    first, second = (body["invites"][0]["signed"] for body in told(homeserver))
    assert set(first["signatures"]["localhost"]) == {"ed25519:0"}
    assert set(second["signatures"]["localhost"]) == {"ed25519:0", "ed25519:1"}
    assert is_signed(second, old["public_key"], "ed25519:0")


# --- how it is sent ---------------------------------------------------------------------------


@pytest.mark.requirement("ONB-02")
def test_homeserver_that_takes_post_gets_nothing_else(server, homeserver):
    def post_only(request):
        return Reply(200 if request.method == "POST" else 405)

    homeserver.onbind = post_only
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    assert methods(homeserver) == ["POST"]
    assert outcomes(server) == {"delivered": 1}


@pytest.mark.requirement("ONB-02", "AMB-04")
@pytest.mark.parametrize("status", [404, 405, 501])
def test_homeserver_that_takes_put_only_is_told_by_put_and_remembered(server, homeserver, status):
    homeserver.onbind = lambda request: Reply(200 if request.method == "PUT" else status)
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    assert methods(homeserver) == ["POST", "PUT"]
    first, second = told(homeserver)
    assert first == second
    assert outcomes(server) == {"delivered": 1}
    bind_anyone(server, "carol@example.com", "@carol:hs.test")
    deliver(server)
    assert methods(homeserver) == ["POST", "PUT", "PUT"]
    assert outcomes(server) == {"delivered": 2}


@sqlite_only
@pytest.mark.requirement("ONB-02")
def test_homeserver_that_changes_from_put_to_post_is_still_told(server, homeserver):
    homeserver.onbind = lambda request: Reply(200 if request.method == "PUT" else 405)
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    homeserver.onbind = lambda request: Reply(200 if request.method == "POST" else 405)
    bind_anyone(server, "carol@example.com", "@carol:hs.test")
    deliver(server)
    assert methods(homeserver) == ["POST", "PUT", "PUT", "POST"]
    assert outcomes(server) == {"delivered": 2}


@sqlite_only
@pytest.mark.requirement("ONB-02")
@pytest.mark.parametrize("status", [404, 405, 501])
def test_homeserver_that_knows_neither_is_asked_by_each_once(server, clock, homeserver, status):
    homeserver.onbind = Reply(status)
    bind_anyone(server, BOB, BOB_ID)
    deliver_until_it_ends(server, clock)
    assert methods(homeserver) == ["POST", "PUT"]
    (row,) = server.rows("deliveries")
    assert (row["outcome"], row["last_error"]) == ("dead", f"answered {status}")


@pytest.mark.requirement("ONB-08")
def test_every_invitation_of_the_address_is_told_in_a_request_of_its_own(
    server, alice, bob, clock, homeserver
):
    """From all senders and rooms; of one address only."""
    wanted = [
        invite(alice).json["token"],
        invite(alice, "BOB@example.com", room_id="!second:hs.test").json["token"],
        invite(bob).json["token"],
    ]
    other = invite(alice, "carol@example.com").json["token"]
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    bodies = told(homeserver)
    assert [len(body["invites"]) for body in bodies] == [1, 1, 1]
    assert sorted(tokens(bodies)) == sorted(wanted)
    assert {body["invites"][0]["sender"] for body in bodies} == {alice.user_id, bob.user_id}
    # Told once is told for good: not again by another bind, nor to another homeserver.
    bind_anyone(server, BOB, BOB_ID, "another")
    bind_anyone(server, BOB, "@robert:hs.test", "third")
    clock.advance(hours=7)
    deliver(server)
    assert sorted(tokens(told(homeserver))) == sorted(wanted)
    assert {row["token"]: bool(row["delivered_at_ms"]) for row in server.rows("invites")} == {
        **dict.fromkeys(wanted, True),
        other: False,
    }


@pytest.mark.requirement("ONB-08")
def test_invitation_that_fails_does_not_hold_up_the_others(server, alice, clock, homeserver):
    """Section 21: of several in one request the answer says nothing of each."""
    rooms = {invite(alice, room_id=f"!{n}:hs.test").json["token"]: n for n in range(3)}

    def answer(request):
        (invitation,) = json.loads(request.body)["invites"]
        return Reply({0: 403, 1: 200, 2: 500}[rooms[invitation["token"]]])

    homeserver.onbind = answer
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    assert outcomes(server) == {"dead": 1, "delivered": 1, None: 1}
    deliver_until_it_ends(server, clock)
    asked = Counter(rooms[token] for token in tokens(told(homeserver)))
    assert asked == {0: 1, 1: 1, 2: 20}
    delivered = {rooms[row["token"]] for row in server.rows("invites") if row["delivered_at_ms"]}
    assert delivered == {1}


@pytest.mark.requirement("ONB-07", "ONB-11")
def test_homeserver_may_ask_and_change_things_before_it_answers(server, alice, homeserver):
    """It checks the keys of the invitation; meanwhile other people's requests go on."""
    keys = invite(alice).json["public_keys"]
    asked = []

    def check_first(_request):
        client = server.app.test_client()
        for key in keys:
            query = {"public_key": key["public_key"]}
            answer = client.get(path_of(key["key_validity_url"]), query_string=query)
            asked.append(answer.json)
        bind_anyone(server, "carol@example.com", "@carol:elsewhere.test")
        return Reply()

    homeserver.onbind = check_first
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    assert asked == [{"valid": True}] * 2
    assert {row["mxid"]: row["outcome"] for row in server.rows("deliveries")} == {
        BOB_ID: "delivered",
        "@carol:elsewhere.test": None,
    }


@pytest.mark.requirement("ONB-11", "AMB-30")
def test_keys_stay_valid_and_the_mailed_link_works_after_delivery(server, alice, clock, homeserver):
    stored = invite(alice).json
    mail = mailed_invitation(server)
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    assert outcomes(server) == {"delivered": 1}
    for days in (0, 30, 59):
        clock.advance(hours=24 * days)
        server.services.invites.purge()
        assert [is_valid(server, key) for key in stored["public_keys"]] == [True, True]
        signed = server.client.post(f"{path_of(mail.sign_url)}&mxid={BOB_ID}")
        assert is_signed(signed.json, stored["public_keys"][1]["public_key"], "ed25519:0")
    # The invitation is forgotten with its time; the room may ask for ever.
    clock.advance(hours=24 * 365)
    server.services.invites.purge()
    assert server.rows("invites") == []
    assert [is_valid(server, key) for key in stored["public_keys"]] == [True, True]


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.requirement("ONB-09")
def test_failure_is_tried_again_until_a_2xx(server, alice, clock, homeserver):
    stored = invite(alice).json
    homeserver.onbind = answers(500, 500, 204)
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    (row,) = server.rows("deliveries")
    assert (row["outcome"], row["tries"], row["last_error"]) == (None, 1, "answered 500")
    began_ms = clock.now_ms()
    deliver(server)  # not due yet
    assert len(told(homeserver)) == 1
    at_ms = deliver_until_it_ends(server, clock)
    assert 0 < at_ms[0] - began_ms <= 5 * SECOND_MS
    assert at_ms[0] < at_ms[1]
    assert tokens(told(homeserver)) == [stored["token"]] * 3
    (row,) = server.rows("deliveries")
    assert (row["outcome"], row["tries"]) == ("delivered", 3)
    clock.advance(hours=1000)
    deliver(server)
    assert len(told(homeserver)) == 3


@sqlite_only
@pytest.mark.requirement("ONB-09", "ONB-12")
@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 425, 429, 302])
def test_failure_that_may_pass_is_tried_with_growing_pauses_up_to_an_end(
    server, clock, homeserver, status
):
    homeserver.onbind = Reply(status)
    bind_anyone(server, BOB, BOB_ID)
    began_ms = clock.now_ms()
    at_ms = deliver_until_it_ends(server, clock)
    assert len(told(homeserver)) == len(at_ms) == 20
    (row,) = server.rows("deliveries")
    assert (row["outcome"], row["tries"]) == ("dead", 20)
    assert row["last_error"] == f"answered {status}"
    assert at_ms[0] == began_ms
    pauses = [later - earlier for earlier, later in pairwise(at_ms)]
    assert 0 < pauses[0] <= 5 * SECOND_MS
    for earlier, later in pairwise(pauses):
        # Doubling, give or take the jitter, up to six hours.
        assert later <= 6 * HOUR_MS
        assert later >= 6 * HOUR_MS * 0.7 or 1.4 * earlier < later < 2.8 * earlier
    assert pauses[-1] > 4 * HOUR_MS
    # Jitter: nobody waits for a round time.
    assert len({pause % SECOND_MS for pause in pauses}) > 2
    clock.advance(hours=1000)
    deliver(server)
    assert len(told(homeserver)) == 20


@pytest.mark.requirement("ONB-09")
def test_homeserver_that_cannot_be_reached_is_tried_again(server, clock, homeserver, resolver):
    """No name, nobody there, and one who hangs up without an answer."""
    bind_anyone(server, BOB, "@bob:nowhere.test")
    deliver(server)
    clock.advance(seconds=5)
    with FakeHomeserver("nowhere.test") as gone:
        lead(resolver, "nowhere.test", gone)
    deliver(server)
    clock.advance(seconds=10)
    homeserver.onbind = Reply(raw=[])
    resolver.host("target.nowhere.test", "127.0.0.1")
    (row,) = server.rows("deliveries")
    assert (row["outcome"], row["tries"]) == (None, 2)
    assert row["last_error"]
    with FakeHomeserver("nowhere.test") as back:
        back.onbind = answers(200)
        lead(resolver, "nowhere.test", back)
        deliver(server)
        assert [body["mxid"] for body in told(back)] == ["@bob:nowhere.test"]
    assert outcomes(server) == {"delivered": 1}


@pytest.mark.requirement("ONB-09")
def test_delivery_survives_a_restart_of_both_sides(make_server, server, alice, clock, resolver):
    stored = invite(alice).json
    with FakeHomeserver() as before:
        lead(resolver, "hs.test", before)
        before.onbind = Reply(503)
        bind_anyone(server, BOB, BOB_ID)
        deliver(server)
        assert len(told(before)) == 1
    deliver(server)
    clock.advance(seconds=10)
    again = second_server(make_server, server, **SETTINGS, resolver=resolver)
    server.close()
    with FakeHomeserver() as after:
        lead(resolver, "hs.test", after)
        deliver(again)
        assert tokens(told(after)) == [stored["token"]]
    assert outcomes(again) == {"delivered": 1}


@pytest.mark.requirement("ONB-12")
@pytest.mark.parametrize("status", [400, 401, 403, 410, 422])
def test_refusal_is_final_and_kept_as_a_dead_letter(server, alice, clock, homeserver, status):
    stored = invite(alice).json
    homeserver.onbind = Reply(status)
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    (row,) = server.rows("deliveries")
    assert (row["outcome"], row["next_try_at_ms"]) == ("dead", None)
    assert row["last_error"] == f"answered {status}"
    clock.advance(hours=1000)
    deliver(server)
    assert methods(homeserver) == ["POST"]
    (letter,) = server.services.notifications.undelivered()
    assert letter.mxid == BOB_ID
    (row,) = server.rows("invites")
    assert (row["token"], row["delivered_at_ms"]) == (stored["token"], None)


@pytest.mark.requirement("ONB-12")
def test_homeserver_that_fails_does_not_delay_the_others(server, homeserver, resolver):
    """One refuses, one hangs; a third is told at once by the same courier."""
    with FakeHomeserver("hangs.test") as hanging, FakeHomeserver("good.test") as good:
        lead(resolver, "hangs.test", hanging)
        lead(resolver, "good.test", good)
        hanging.hold = threading.Event()
        homeserver.onbind = Reply(403)
        for name in ("hangs.test", "hs.test", "good.test"):
            for number in range(3):
                bind_anyone(server, f"{number}@{name}", f"@user{number}:{name}")
        with running_courier(server):
            wait_until(lambda: len(told(good)) == len(told(homeserver)) == 3)
            wait_until(lambda: outcomes(server) == {"delivered": 3, "dead": 3, None: 3})
            assert told(hanging)
            hanging.hold.set()


@contextmanager
def running_courier(server):
    """The courier in a thread. Its clock goes little faster than real calls do, so that no lease
    ends before its call."""
    courier = Courier(server.services, server.clock)
    stop = threading.Event()

    def run():
        while not stop.wait(0.01):
            server.clock.advance(ms=20)
            courier.run_due()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        courier._calls.shutdown()


# --- what is out of date ----------------------------------------------------------------------


@pytest.mark.requirement("ONB-08", "ONB-12")
def test_dead_letter_that_is_brought_back_is_told_once(server, alice, clock, homeserver):
    token = invite(alice).json["token"]
    homeserver.onbind = Reply(403)
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    notifications = server.services.notifications
    (letter,) = notifications.undelivered()
    homeserver.onbind = answers(503, 200)
    notifications.retry(letter.delivery_id)
    (row,) = server.rows("deliveries")
    assert (row["outcome"], row["tries"]) == (None, 0)
    deliver_until_it_ends(server, clock)
    assert tokens(told(homeserver)) == [token] * 3
    assert notifications.undelivered() == []
    for delivery_id in (letter.delivery_id, "nope"):
        with pytest.raises(InvalidRequest):
            notifications.retry(delivery_id)


@pytest.mark.requirement("ONB-10")
def test_binding_that_was_taken_back_is_not_told(server, alice, bob, clock, homeserver):
    invite(alice)
    homeserver.onbind = Reply(503)
    session = bob.validate(BOB)
    bob.post("/3pid/bind", json={**session, "mxid": BOB_ID})
    deliver(server)
    assert len(told(homeserver)) == 1
    threepid = {"medium": "email", "address": BOB}
    body = {**session, "mxid": BOB_ID, "threepid": threepid}
    assert server.client.post(f"{V2}/3pid/unbind", json=body).status_code == 200
    homeserver.onbind = Reply()
    clock.advance(hours=1000)
    deliver(server)
    assert len(told(homeserver)) == 1
    assert outcomes(server) == {"stale": 1}
    # The invitation still waits for whoever owns the address next.
    bind_anyone(server, BOB, "@robert:hs.test", "another")
    deliver(server)
    assert [body["mxid"] for body in told(homeserver)] == [BOB_ID, "@robert:hs.test"]
    assert len(told(homeserver)[1]["invites"]) == 1


@pytest.mark.requirement("ONB-10")
def test_address_that_was_bound_anew_is_told_for_its_new_owner_only(
    server, alice, clock, homeserver
):
    token = invite(alice).json["token"]
    homeserver.onbind = Reply(503)
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    bind_anyone(server, BOB, "@robert:hs.test", "another")
    homeserver.onbind = Reply()
    clock.advance(hours=1000)
    deliver(server)
    bodies = told(homeserver)
    assert [body["mxid"] for body in bodies] == [BOB_ID, "@robert:hs.test"]
    assert tokens(bodies) == [token, token]
    assert outcomes(server) == {"stale": 1, "delivered": 1}


@pytest.mark.requirement("ONB-10")
def test_dead_letter_that_is_out_of_date_is_not_brought_back(server, alice, clock, homeserver):
    invite(alice)
    homeserver.onbind = Reply(403)
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    (letter,) = server.services.notifications.undelivered()
    bind_anyone(server, BOB, "@robert:hs.test", "another")
    homeserver.onbind = Reply()
    deliver(server)
    assert server.services.notifications.undelivered() == []
    with pytest.raises(InvalidRequest):
        server.services.notifications.retry(letter.delivery_id)
    clock.advance(minutes=1)
    deliver(server)
    assert [body["mxid"] for body in told(homeserver)] == [BOB_ID, "@robert:hs.test"]


@pytest.mark.requirement("ONB-10")
def test_binding_that_is_taken_back_while_its_courier_is_busy_is_not_told(server, homeserver):
    """Two are leased for one homeserver; one changes hands while the other is told."""
    addresses = {BOB_ID: BOB, "@carol:hs.test": "carol@example.com"}
    for mxid, address in addresses.items():
        bind_anyone(server, address, mxid)

    def rebind_other(request):
        (other,) = addresses.keys() - {json.loads(request.body)["mxid"]}
        server.bind_directly(addresses[other], "@new:elsewhere.test")
        return Reply()

    homeserver.onbind = rebind_other
    deliver(server)
    assert len(told(homeserver)) == 1
    assert outcomes(server) == {"delivered": 1, "stale": 1, None: 1}


@pytest.mark.requirement("ONB-10")
def test_failure_that_comes_after_it_was_out_of_date_makes_no_dead_letter(
    server, alice, clock, homeserver
):
    """The address changes hands while the homeserver of the old owner thinks about it."""
    invite(alice)

    def rebind_then_refuse(_request):
        homeserver.onbind = Reply()
        bind_anyone(server, BOB, "@robert:hs.test", "another")
        return Reply(403)

    homeserver.onbind = rebind_then_refuse
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    clock.advance(minutes=1)
    deliver(server)
    assert [body["mxid"] for body in told(homeserver)] == [BOB_ID, "@robert:hs.test"]
    assert outcomes(server) == {"stale": 1, "delivered": 1}
    assert server.services.notifications.undelivered() == []


@pytest.mark.requirement("ONB-08")
def test_bind_that_is_repeated_while_its_invitation_is_being_told_tells_it_once(
    server, alice, clock, homeserver
):
    """A client that did not wait for the answer binds again: the invitee is not thrown out."""
    token = invite(alice).json["token"]

    def rebind_meanwhile(_request):
        homeserver.onbind = Reply()
        bind_anyone(server, BOB, BOB_ID, "another")
        deliver(second)  # another courier looks for work at that very moment
        return Reply()

    second = server
    homeserver.onbind = rebind_meanwhile
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    for _ in range(3):
        clock.advance(hours=1)
        deliver(server)
    assert tokens(told(homeserver)) == [token]


@pytest.mark.requirement("ONB-08")
def test_bind_that_comes_and_goes_while_its_invitation_is_being_told_tells_it_once(
    server, alice, clock, homeserver
):
    token = invite(alice).json["token"]
    threepid = ThreePid.email(BOB)

    def change_meanwhile(_request):
        homeserver.onbind = Reply()
        associations = server.services.associations
        associations.unbind(threepid, server.services.accounts.authenticate(bob.token))
        bind_anyone(server, BOB, BOB_ID, "another")
        return Reply()

    bob = server.account(BOB_ID)
    homeserver.onbind = change_meanwhile
    bind_anyone(server, BOB, BOB_ID)
    for _ in range(3):
        deliver(server)
        clock.advance(hours=1)
    assert tokens(told(homeserver)) == [token]


@pytest.mark.requirement("ONB-08")
def test_invitation_taken_up_by_its_link_while_its_delivery_waits_is_not_told(
    server, alice, clock, homeserver
):
    invite(alice)
    homeserver.onbind = Reply(503)
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    mail = mailed_invitation(server, 0)
    signed = server.client.post(f"{path_of(mail.sign_url)}&mxid={BOB_ID}")
    assert signed.status_code == 200
    homeserver.onbind = Reply()
    clock.advance(minutes=1)
    deliver(server)
    assert len(told(homeserver)) == 1
    assert outcomes(server) == {"stale": 1}


@pytest.mark.requirement("ONB-09")
def test_bare_binding_that_could_not_be_told_yet_is_told_after_a_second_bind(
    server, clock, homeserver
):
    homeserver.onbind = Reply(503)
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    bind_anyone(server, BOB, BOB_ID, "another")
    homeserver.onbind = Reply()
    clock.advance(minutes=1)
    deliver(server)
    assert [body["invites"] for body in told(homeserver)] == [[], []]
    assert outcomes(server)["delivered"] == 1


# --- leases -----------------------------------------------------------------------------------


@pytest.mark.requirement("ONB-09")
def test_delivery_whose_courier_died_is_repeated_when_its_lease_is_over(
    server, alice, clock, homeserver
):
    token = invite(alice).json["token"]
    bind_anyone(server, BOB, BOB_ID)
    notifications = server.services.notifications
    # It asked, and was gone before it could write down the answer.
    (leased,) = notifications.lease_due(10).values()

    def lost(_work):
        raise Crash

    homeserver.onbind = lambda _: Reply()
    written = server.database.write
    server.database.write = lost
    with pytest.raises(Crash):
        notifications.deliver(leased, clock.now_ms())
    server.database.write = written
    assert tokens(told(homeserver)) == [token]
    clock.advance(ms=LEASE_MS - 1)
    deliver(server)
    assert len(told(homeserver)) == 1
    clock.advance(ms=1)
    deliver(server)
    assert tokens(told(homeserver)) == [token] * 2
    assert outcomes(server) == {"delivered": 1}
    assert LEASE_MS == 30 * SECOND_MS


@pytest.mark.requirement("ONB-09")
def test_delivery_is_tried_again_although_the_clock_was_set_back(server, clock, homeserver):
    """It was put off, and another leased by a courier that died, when it was a year later."""
    homeserver.onbind = Reply(503)
    bind_anyone(server, BOB, BOB_ID)
    clock.advance(hours=24 * 365)
    deliver(server)
    bind_anyone(server, "carol@example.com", "@carol:hs.test")
    server.services.notifications.lease_due(10)
    clock.advance(hours=-24 * 365)
    homeserver.onbind = Reply()
    deliver(server)
    assert outcomes(server) == {"delivered": 2}


@pytest.mark.requirement("ONB-12")
def test_delivery_that_was_never_tried_goes_before_those_that_failed(server, clock, homeserver):
    """However many homeservers do not answer, and are tried again and again."""
    homeserver.onbind = Reply(503)
    for number in range(5):
        bind_anyone(server, f"{number}@example.com", f"@failed{number}:hs.test")
    deliver(server)
    clock.advance(minutes=1)
    for number in range(5):
        bind_anyone(server, f"new{number}@example.com", f"@new{number}:b{number}.hs.test")
        clock.advance(ms=1)
    leased = server.services.notifications.lease_due(6)
    assert list(leased) == [*(f"b{number}.hs.test" for number in range(5)), "hs.test"]
    assert [len(deliveries) for deliveries in leased.values()] == [1] * 6


@sqlite_only
def test_call_that_could_outlast_its_lease_is_not_begun(server, clock, homeserver):
    for number in range(3):
        bind_anyone(server, f"{number}@example.com", BOB_ID)
    notifications = server.services.notifications
    (leased,) = notifications.lease_due(10).values()
    leased_at_ms = clock.now_ms()

    def slowly(_request):
        clock.advance(seconds=9)
        return Reply()

    homeserver.onbind = slowly
    notifications.deliver(leased, leased_at_ms)
    assert len(told(homeserver)) == 1
    homeserver.onbind = Reply()
    deliver(server)  # they have kept their place
    assert outcomes(server) == {"delivered": 3}
    assert {row["tries"] for row in server.rows("deliveries")} == {1}


@sqlite_only
@pytest.mark.requirement("ONB-08")
def test_lease_that_is_over_and_that_another_has_taken_is_not_released(server, clock):
    """A courier that was held up for long finds its work in other hands, and leaves it there."""
    bind_anyone(server, BOB, BOB_ID)
    notifications = server.services.notifications
    (leased,) = notifications.lease_due(10).values()
    leased_at_ms = clock.now_ms()
    clock.advance(ms=LEASE_MS)
    assert notifications.lease_due(10)
    notifications.deliver(leased, leased_at_ms)
    assert notifications.lease_due(10) == {}


@sqlite_only
def test_call_never_outlasts_its_lease_whatever_the_time_out_is(make_server, homeserver):
    """Twice the longest call, for POST and PUT, ends before the lease does."""

    class Patient(FakeResolver):
        """Notes how long each look-up may take."""

        def addresses(self, host, timeout_s):
            granted_s.append(timeout_s)
            return super().addresses(host, timeout_s)

    granted_s = []
    resolver = Patient()
    lead(resolver, "hs.test", homeserver)
    server = make_server({**SETTINGS, "FEDERATION__TIMEOUT": "5m"}, resolver=resolver)
    bind_anyone(server, BOB, BOB_ID)
    deliver(server)
    assert outcomes(server) == {"delivered": 1}
    assert 0 < max(granted_s) <= 11


def test_two_couriers_never_tell_the_same_thing_at_once(make_server, server, homeserver, resolver):
    """With threads of their own over one database; each thing is told, and told once."""
    other = second_server(make_server, server, **SETTINGS, resolver=resolver)
    count = 60
    for number in range(count):
        server.bind_directly(f"{number}@example.com", f"@user{number}:hs{number % 5}.hs.test")
    for number in range(5):
        lead(resolver, f"hs{number}.hs.test", homeserver)
    start = threading.Barrier(6)

    def work(each):
        start.wait()
        leased = []
        while taken := each.services.notifications.lease_due(7):
            for deliveries in taken.values():
                leased += [delivery.delivery_id for delivery in deliveries]
                each.services.notifications.deliver(deliveries, each.clock.now_ms())
        return leased

    with ThreadPoolExecutor(6) as threads:
        taken = [each for leased in threads.map(work, [server, other] * 3) for each in leased]
    mxids = Counter(body["mxid"] for body in told(homeserver))
    assert set(mxids.values()) == {1}
    # One that found all places for calls taken puts its work off for a second.
    server.clock.advance(seconds=1)
    deliver(server)
    mxids = Counter(body["mxid"] for body in told(homeserver))
    assert len(mxids) == count
    assert set(mxids.values()) == {1}
    assert outcomes(server) == {"delivered": count}
    assert len(taken) == len(set(taken))


def test_courier_tells_what_is_due(server, alice, homeserver):
    token = invite(alice).json["token"]
    bind_anyone(server, BOB, BOB_ID)
    with running_courier(server):
        wait_until(lambda: outcomes(server) == {"delivered": 1})
    assert tokens(told(homeserver)) == [token]


def test_old_notifications_are_purged_but_not_dead_letters(server, clock, homeserver):
    for name, status in (("a", 200), ("b", 403), ("c", 503)):
        homeserver.onbind = Reply(status)
        bind_anyone(server, f"{name}@example.com", BOB_ID)
        deliver(server)
    clock.advance(hours=24 * 7)
    assert server.services.notifications.purge(server.config.retention.sessions) == 0
    clock.advance(ms=1)
    assert server.services.notifications.purge(server.config.retention.sessions) == 1
    assert outcomes(server) == {"dead": 1, None: 1}
