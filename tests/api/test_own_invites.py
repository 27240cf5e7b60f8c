"""An inviter's own invitations over the API, and the operator's over the command line."""

import json
from datetime import timedelta

import pytest
from parts.homeserver import Reply
from parts.invitations import (
    OWN,
    REACHABLE,
    ROOM,
    bind_anyone,
    deliver,
    invite,
    is_valid,
    mailed_invitation,
    path_of,
    told,
)
from parts.processes import identity
from parts.validation import UNLIMITED, refused, sqlite_only


@pytest.fixture
def server(make_server, homeserver, resolver):
    return make_server({**UNLIMITED, **REACHABLE}, resolver=resolver)


@pytest.fixture
def run(server, tmp_path):
    """A command over the database and the keys of `server`; its lines of JSON."""
    config = server.config
    settings = {
        "SERVER__DATA_DIR": str(config.server.data_dir),
        "DATABASE__URL": config.database_url,
    }

    def run(*arguments, status=0):
        result = identity(*arguments, folder=tmp_path, settings=settings)
        assert result.returncode == status, result.stderr
        if status:
            assert result.stdout == ""
            assert result.stderr.count("\n") == 1
        return [json.loads(line) for line in result.stdout.splitlines()]

    return run


def test_inviter_lists_what_they_sent_newest_first(server, alice, bob, clock):
    assert alice.get(OWN).json == {"invites": []}
    first = invite(alice, "Carol@example.com").json["token"]
    clock.advance(minutes=1)
    second = invite(alice, "dave@example.com", room_id="!other:hs.test").json["token"]
    assert invite(bob, "carol@example.com").status_code == 200

    listed = alice.get(OWN)
    assert listed.status_code == 200
    newest, oldest = listed.json["invites"]
    now_ms = clock.now_ms()
    assert newest == {
        "token": second,
        "medium": "email",
        "address": "dave@example.com",
        "room_id": "!other:hs.test",
        "created_at": now_ms,
        "expires_at": now_ms + 90 * 86_400_000,
        "delivered_at": None,
        "revoked_at": None,
    }
    assert (oldest["token"], oldest["address"], oldest["room_id"]) == (
        first,
        "carol@example.com",
        ROOM,
    )
    assert len(bob.get(OWN).json["invites"]) == 1


def test_inviter_revokes_an_invitation(server, alice, clock, homeserver):
    answer = invite(alice).json
    mail = mailed_invitation(server)
    kept = invite(alice, room_id="!kept:hs.test").json
    clock.advance(minutes=1)
    for _ in range(2):
        revoked = alice.request("DELETE", f"{OWN}/{answer['token']}")
        assert (revoked.status_code, revoked.json) == (200, {})
        clock.advance(minutes=1)
    states = {invite["token"]: invite["revoked_at"] for invite in alice.get(OWN).json["invites"]}
    assert states == {answer["token"]: clock.now_ms() - 120_000, kept["token"]: None}
    assert not is_valid(server, answer["public_keys"][1])
    assert is_valid(server, answer["public_keys"][0])
    assert is_valid(server, kept["public_keys"][1])
    signed = server.client.post(f"{path_of(mail.sign_url)}&mxid=@bob:hs.test")
    assert refused(signed, 404, "M_UNRECOGNIZED")
    bind_anyone(server, "bob@example.com", "@bob:hs.test")
    deliver(server)
    assert [body["invites"][0]["token"] for body in told(homeserver)] == [kept["token"]]


def test_invitation_that_is_revoked_before_its_delivery_is_not_delivered(
    server, alice, clock, homeserver
):
    token = invite(alice).json["token"]
    homeserver.onbind = Reply(500)
    bind_anyone(server, "bob@example.com", "@bob:hs.test")
    deliver(server)
    assert len(told(homeserver)) == 1
    homeserver.onbind = Reply()
    assert alice.request("DELETE", f"{OWN}/{token}").status_code == 200
    clock.advance(minutes=1)
    deliver(server)
    assert len(told(homeserver)) == 1
    (delivery,) = server.rows("deliveries")
    assert (delivery["outcome"], delivery["next_try_at_ms"]) == ("stale", None)
    (row,) = server.rows("invites")
    assert row["delivered_at_ms"] is None


def test_invitation_of_another_is_neither_seen_nor_revoked(server, alice, bob):
    token = invite(alice).json["token"]
    for unknown in (token, "nope", token[:-1], "%C3%A9", "%00"):
        answer = bob.request("DELETE", f"{OWN}/{unknown}")
        assert refused(answer, 404, "M_UNRECOGNIZED")
    assert bob.get(OWN).json == {"invites": []}
    (row,) = server.rows("invites")
    assert row["revoked_at_ms"] is None


@sqlite_only
def test_own_invitations_need_an_access_token_and_accepted_terms(make_server, tmp_path):
    terms = tmp_path / "terms.yaml"
    terms.write_text(
        "docs: {privacy: {version: '1', langs: {en: {name: P, url: 'https://id.example.org/'}}}}"
    )
    server = make_server({"TERMS__FILE": str(terms)})
    alice = server.account("@alice:hs.test")
    for method, path in (("GET", OWN), ("DELETE", f"{OWN}/token")):
        assert refused(server.client.open(path, method=method), 401, "M_UNAUTHORIZED")
        query = {"access_token": alice.token}
        in_query = server.client.open(path, method=method, query_string=query)
        assert refused(in_query, 401, "M_UNAUTHORIZED")
        assert refused(alice.request(method, path), 403, "M_TERMS_NOT_SIGNED")


@sqlite_only
def test_operator_lists_and_revokes_invitations(server, alice, bob, clock, run):
    assert run("invites", "list") == []
    first = invite(alice, "carol@example.com").json
    clock.advance(minutes=1)
    second = invite(bob, "dave@example.com").json
    newest, oldest = run("invites", "list")
    assert [newest["token"], oldest["token"]] == [second["token"], first["token"]]
    assert [newest["sender"], oldest["sender"]] == [bob.user_id, alice.user_id]
    # Enough to recognise it by, and no more.
    assert oldest["address"] == first["display_name"]
    assert oldest["revoked_at_ms"] is None

    run("invites", "revoke", first["token"])
    _, oldest = run("invites", "list")
    assert oldest["revoked_at_ms"] > 0
    assert not is_valid(server, first["public_keys"][1])
    assert is_valid(server, second["public_keys"][1])
    run("invites", "revoke", "nope", status=1)


@sqlite_only
def test_operator_sees_what_is_not_delivered_and_tries_dead_letters_again(
    server, alice, clock, homeserver, run
):
    assert run("deliveries", "list") == []
    token = invite(alice).json["token"]
    homeserver.onbind = Reply(403)
    bind_anyone(server, "bob@example.com", "@bob:hs.test")
    bind_anyone(server, "carol@example.com", "@carol:elsewhere.test")
    letters = {letter["mxid"]: letter for letter in run("deliveries", "list")}
    assert set(letters) == {"@bob:hs.test", "@carol:elsewhere.test"}
    bob = letters["@bob:hs.test"]
    assert (bob["invitation"], bob["tries"], bob["outcome"], bob["last_error"]) == (
        True,
        0,
        None,
        None,
    )
    assert letters["@carol:elsewhere.test"]["invitation"] is False
    # What is on its way is no dead letter.
    run("deliveries", "retry", bob["id"], status=1)

    deliver(server)
    letters = {letter["mxid"]: letter for letter in run("deliveries", "list")}
    dead = letters["@bob:hs.test"]
    assert (dead["outcome"], dead["tries"]) == ("dead", 1)
    assert (dead["last_error"], dead["next_try_at_ms"]) == ("answered 403", None)
    waiting = letters["@carol:elsewhere.test"]
    assert (waiting["outcome"], waiting["tries"]) == (None, 1)
    assert waiting["last_error"]
    assert waiting["next_try_at_ms"] > clock.now_ms()

    # Kept for as long as nobody has looked after it.
    clock.advance(hours=24 * 365)
    server.services.notifications.purge(timedelta())
    homeserver.onbind = Reply()
    deliver(server)
    assert len(told(homeserver)) == 1
    run("deliveries", "retry", dead["id"])
    deliver(server)
    assert [body["invites"][0]["token"] for body in told(homeserver)] == [token] * 2
    assert [letter["mxid"] for letter in run("deliveries", "list")] == ["@carol:elsewhere.test"]
    # Never again.
    run("deliveries", "retry", dead["id"], status=1)
    run("deliveries", "retry", "nope", status=1)
