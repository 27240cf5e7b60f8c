"""The v1 API that homeservers and clients still call: conformance.md section 19.

Dendrite's requests are those of its `clientapi/threepid`: forms whose fields stand in the order of
the alphabet, as Go's `url.Values.Encode` writes them.
"""

import http.client
import io
import json
import re
import socket
from urllib.parse import urlsplit

import pytest
from parts.homeserver import Reply
from parts.invitations import (
    BOB,
    REACHABLE,
    ROOM,
    deliver,
    invite,
    is_signed,
    is_valid,
    limits,
    mailed_invitation,
    path_of,
    told,
)
from parts.processes import RunningServer, wait_until
from parts.server import V1, V2
from parts.validation import UNLIMITED, refused, sqlite_only
from signedjson.key import decode_verify_key_bytes
from signedjson.sign import verify_signed_json
from unpaddedbase64 import decode_base64

from identity.associations.service import Associations
from identity.associations.store import ensure_origin
from identity.mxid import UserId
from identity.threepid import ThreePid

FORM = "application/x-www-form-urlencoded"
OPEN = {"LEGACY_API__OPEN": "true"}
ASSOCIATION = {"address", "medium", "mxid", "not_after", "not_before", "signatures", "ts"}

# Bodies as they come from Dendrite.
STORE_INVITE = (
    b"address=bob%40example.com&medium=email&room_id=%21room%3Ahs.test"
    b"&sender=%40alice%3Ahs.test&sender_display_name=Alice+%26+co"
)
REQUEST_TOKEN = b"client_secret=s3cret&email=alice%40example.com&send_attempt=1"


@pytest.fixture
def server(make_server):
    """With everything that there is."""
    return make_server({**UNLIMITED, **OPEN})


def post_form(server, path, body):
    return server.client.post(f"{V1}{path}", data=body, content_type=FORM)


def bind_form(session, mxid="%40alice%3Ahs.test"):
    return f"client_secret={session['client_secret']}&mxid={mxid}&sid={session['sid']}".encode()


def session_by_form(server):
    """A session as Dendrite asks for one; what was mailed for it."""
    answer = post_form(server, "/validate/email/requestToken", REQUEST_TOKEN)
    assert answer.status_code == 200, answer.json
    assert set(answer.json) == {"sid"}
    assert isinstance(answer.json["sid"], str)
    mailed = server.mailed()
    assert mailed["sid"] == answer.json["sid"]
    return mailed


def submit(server, mailed, **changed):
    values = {name: mailed[name] for name in ("sid", "client_secret", "token")} | changed
    return server.client.post(f"{V1}/validate/email/submitToken", json=values)


def validated_by_form(server):
    mailed = session_by_form(server)
    assert submit(server, mailed).json == {"success": True}
    return mailed


# --- what lasts: LEG-04 to LEG-07, LEG-12 -----------------------------------------------------


@pytest.mark.requirement("LEG-04")
def test_invitation_is_signed_by_its_url_alone(server, alice):
    stored = invite(alice).json
    mail = mailed_invitation(server)
    path = path_of(mail.sign_url)
    ephemeral = stored["public_keys"][1]["public_key"]
    requests = [
        {"path": f"{path}&mxid=%40bob%3Ahs.test"},
        {"path": f"{path}&mxid=@bob:hs.test"},  # iOS does not escape it
        {"path": f"{path}&mxid=@bob:hs.test", "data": b"null"},
        {
            "path": f"{path}&mxid=@bob:hs.test",
            "data": b"null",
            "content_type": "application/json",
        },
        {
            "path": f"{path}&mxid=@bob:hs.test",
            "data": b"",
            "content_type": "application/json; charset=utf-8",
        },
        {"path": f"{path}&mxid=@bob:hs.test", "headers": {"Authorization": "Bearer bogus"}},
    ]
    answers = [server.client.post(**arguments) for arguments in requests]
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        assert answer.json == answers[0].json
        assert set(answer.json) == {"mxid", "sender", "token", "signatures"}
    assert answers[0].json["mxid"] == "@bob:hs.test"
    assert is_signed(answers[0].json, ephemeral, "ed25519:0")
    by_body = {"mxid": "@bob:hs.test", "token": mail.token, "private_key": mail.private_key}
    for arguments in ({"json": by_body}, {"data": by_body}):
        assert server.client.post(f"{V1}/sign-ed25519", **arguments).json == answers[0].json
    assert refused(server.client.post(path), 400, "M_MISSING_PARAMS")
    assert refused(server.client.get(path), 405, "M_UNRECOGNIZED")


@pytest.mark.requirement("LEG-05")
def test_link_of_an_old_mail_still_validates(server, alice):
    assert alice.request_token("alice@example.com").status_code == 200
    mailed = server.mailed()
    query = {name: mailed[name] for name in ("token", "client_secret", "sid")}
    path = f"{V1}/validate/email/submitToken"
    wrong = server.client.get(path, query_string=query | {"token": "wrong"})
    assert (wrong.status_code, wrong.mimetype) == (400, "text/html")
    assert server.client.head(path, query_string=query).status_code == 200
    (row,) = server.rows("validation_sessions")
    assert row["validated_at_ms"] is None
    links = {"nextLink": "https://evil.example/", "next_link": "https://evil.example/"}
    page = server.client.get(path, query_string=query | links)
    assert (page.status_code, page.mimetype) == (200, "text/html")
    assert "Location" not in page.headers
    assert "evil" not in page.get_data(as_text=True)
    (row,) = server.rows("validation_sessions")
    assert row["validated_at_ms"] is not None


@pytest.mark.requirement("LEG-06", "LEG-07")
def test_public_keys_are_found_and_checked(server, alice):
    stored = invite(alice).json
    published = server.client.get(f"{V1}/pubkey/ed25519:0")
    assert (published.status_code, published.json) == (200, {"public_key": stored["public_key"]})
    for unknown in ("ed25519:1", "ed25519:zzz", "foo"):
        assert refused(server.client.get(f"{V1}/pubkey/{unknown}"), 404, "M_NOT_FOUND")
    long_term, ephemeral = (key["public_key"] for key in stored["public_keys"])
    for kind, valid, others in (
        ("isvalid", long_term, (ephemeral, "junk", "")),
        ("ephemeral/isvalid", ephemeral, (long_term, "junk", "")),
    ):
        for key in (valid, *others):
            query = {"public_key": key}
            answer = server.client.get(f"{V1}/pubkey/{kind}", query_string=query)
            assert (answer.status_code, answer.json) == (200, {"valid": key == valid})


@sqlite_only
@pytest.mark.requirement("LEG-12")
def test_root_answers(make_server):
    server = make_server()
    for path in (V1, f"{V1}/"):
        answer = server.client.get(path)
        assert (answer.status_code, answer.json) == (200, {})


@sqlite_only
@pytest.mark.requirement("LEG-16", "LEG-04", "LEG-06")
def test_what_mails_and_rooms_point_to_outlives_every_switch(make_server):
    server = make_server({**UNLIMITED, "LEGACY_API__CORE": "false"})
    alice = server.account("@alice:hs.test")
    for path in (V1, f"{V1}/3pid/getValidated3pid", f"{V1}/lookup?medium=email&address=a@b.c"):
        assert refused(server.client.get(path), 404, "M_UNRECOGNIZED"), path
    stored = invite(alice).json
    mail = mailed_invitation(server)
    assert server.client.post(f"{path_of(mail.sign_url)}&mxid=@bob:hs.test").status_code == 200
    for kind, key in zip(("", "ephemeral/"), stored["public_keys"], strict=True):
        query = {"public_key": key["public_key"]}
        answer = server.client.get(f"{V1}/pubkey/{kind}isvalid", query_string=query)
        assert answer.json == {"valid": True}
    assert server.client.get(f"{V1}/pubkey/ed25519:0").status_code == 200
    alice.request_token("alice@example.com")
    mailed = server.mailed()
    query = {name: mailed[name] for name in ("token", "client_secret", "sid")}
    page = server.client.get(f"{V1}/validate/email/submitToken", query_string=query)
    assert (page.status_code, page.mimetype) == (200, "text/html")


@sqlite_only
@pytest.mark.requirement("LEG-16")
def test_open_part_is_off_unless_it_is_switched_on(make_server):
    """Security, row 4."""
    server = make_server()
    server.bind_directly(BOB, "@bob:hs.test")
    for method, path in (
        ("GET", f"/lookup?medium=email&address={BOB}"),
        ("POST", "/bulk_lookup"),
        ("POST", "/store-invite"),
        ("POST", "/validate/email/requestToken"),
        ("POST", "/3pid/bind"),
        ("POST", "/3pid/unbind"),
    ):
        answer = server.client.open(f"{V1}{path}", method=method, json={"threepids": []})
        assert refused(answer, 404, "M_UNRECOGNIZED"), path
    submitted = server.client.post(f"{V1}/validate/email/submitToken")
    assert refused(submitted, 405, "M_UNRECOGNIZED")
    assert server.sender.mails == []


# --- getValidated3pid: LEG-03 -------------------------------------------------------------------


@pytest.mark.requirement("LEG-03")
def test_validated_session_is_told_without_a_token(make_server, clock):
    """Of any account: whoever has sid and secret may read it (decision 9)."""
    server = make_server()
    alice = server.account("@alice:hs.test")

    def get(session, **changed):
        values = {name: session[name] for name in ("sid", "client_secret")} | changed
        path = f"{V1}/3pid/getValidated3pid?sid={values['sid']}&client_secret={values['client_secret']}"
        return server.client.get(path)

    alice.request_token("Alice@Example.com")
    mailed = server.mailed()
    assert refused(get(mailed), 400, "M_SESSION_NOT_VALIDATED")
    clock.advance(minutes=1)
    validated_at_ms = clock.now_ms()
    alice.submit_token(**{name: mailed[name] for name in ("sid", "client_secret", "token")})
    clock.advance(minutes=1)
    answer = get(mailed)
    assert (answer.status_code, answer.json) == (
        200,
        {"medium": "email", "address": "alice@example.com", "validated_at": validated_at_ms},
    )
    assert refused(get(mailed, client_secret="other"), 404, "M_NO_VALID_SESSION")
    assert refused(get(mailed, sid="nope"), 404, "M_NO_VALID_SESSION")
    assert refused(get(mailed, client_secret="a%20b"), 400, "M_INVALID_PARAM")
    for query in ({}, {"sid": mailed["sid"]}, {"client_secret": "s"}):
        answer = server.client.get(f"{V1}/3pid/getValidated3pid", query_string=query)
        assert refused(answer, 400, "M_MISSING_PARAMS")
    clock.at_ms = validated_at_ms + 24 * 3_600_000
    assert get(mailed).status_code == 200
    clock.advance(ms=1)
    assert refused(get(mailed), 400, "M_SESSION_EXPIRED")


# --- Dendrite: LEG-08 to LEG-11 -----------------------------------------------------------------


def verify_as_dendrite(server, answer, id_server="localhost"):
    """It reads the fields that it knows, writes them anew, and checks every signature of the
    server that it asked by a key that it fetches."""
    known = {name: answer.get(name) for name in ASSOCIATION}
    signatures = known["signatures"][id_server]
    assert signatures
    for key_id in signatures:
        published = server.client.get(f"{V1}/pubkey/{key_id}").json["public_key"]
        key = decode_verify_key_bytes(key_id, decode_base64(published))
        only = {**known, "signatures": {id_server: {key_id: signatures[key_id]}}}
        verify_signed_json(only, id_server, key)
    return True


@pytest.mark.requirement("LEG-08")
def test_lookup_answers_with_the_signed_association(server, alice, clock):
    for path in ("bob%40example.com", "bob@example.com", "never%40example.com"):
        answer = server.client.get(f"{V1}/lookup?medium=email&address={path}")
        assert (answer.status_code, answer.json) == (200, {})
    bound = server.bind_directly(BOB, "@bob:hs.test")
    for path in ("bob%40example.com", "bob@example.com", "BOB%40Example.com"):
        answer = server.client.get(f"{V1}/lookup?medium=email&address={path}")
        assert answer.status_code == 200
        assert set(answer.json) == ASSOCIATION
        assert answer.json == bound
        assert verify_as_dendrite(server, answer.json)
    server.services.signing_keys.rotate()
    assert verify_as_dendrite(server, answer.json)
    server.services.associations.unbind(ThreePid.email(BOB), UserId.parse("@bob:hs.test"))
    answer = server.client.get(f"{V1}/lookup?medium=email&address=bob%40example.com")
    assert (answer.status_code, answer.json) == (200, {})


@pytest.mark.requirement("LEG-08")
def test_lookup_signs_the_association_of_a_peer_as_well(server, clock):
    peer = Associations(server.database, server.services.signing_keys, "peer.test", clock)
    server.database.write(lambda tx: ensure_origin(tx, "peer.test"))
    stated = peer.bind(ThreePid.email(BOB), UserId.parse("@bob:hs.test"))
    assert set(stated["signatures"]) == {"peer.test"}
    answer = server.client.get(f"{V1}/lookup?medium=email&address=bob%40example.com").json
    assert set(answer) == ASSOCIATION
    assert set(answer["signatures"]) == {"peer.test", "localhost"}
    assert answer["signatures"]["peer.test"] == stated["signatures"]["peer.test"]
    assert verify_as_dendrite(server, answer)


@sqlite_only
@pytest.mark.requirement("LEG-08")
def test_lookup_with_missing_or_wrong_parameters_is_refused(server):
    lookup = f"{V1}/lookup"
    for query in ("", "medium=email", f"address={BOB}"):
        assert refused(server.client.get(f"{lookup}?{query}"), 400, "M_MISSING_PARAMS")
    wrong = server.client.get(f"{lookup}?medium=email&address=a@b@c")
    assert refused(wrong, 400, "M_INVALID_EMAIL")
    wrong = server.client.get(f"{lookup}?medium=fax&address=1")
    assert refused(wrong, 400, "M_UNRECOGNIZED")


@pytest.mark.requirement("LEG-09")
def test_invitation_is_stored_by_a_form(server):
    answer = post_form(server, "/store-invite", STORE_INVITE)
    assert answer.status_code == 200
    assert set(answer.json) == {"token", "public_key", "public_keys", "display_name"}
    assert len(answer.json["public_keys"]) == 2
    assert answer.json["public_keys"][0]["public_key"] == answer.json["public_key"]
    (row,) = server.rows("invites")
    assert (row["address"], row["room_id"], row["sender"]) == (BOB, ROOM, "@alice:hs.test")
    mail = mailed_invitation(server)
    assert (mail.recipient, mail.linked["inviter_name"]) == (BOB, "Alice & co")
    assert all(is_valid(server, key) for key in answer.json["public_keys"])

    server.bind_directly(BOB, "@bob:hs.test")
    answer = post_form(server, "/store-invite", STORE_INVITE)
    assert refused(answer, 400, "M_THREEPID_IN_USE")
    assert answer.json["mxid"] == "@bob:hs.test"
    assert len(server.rows("invites")) == len(server.sender.mails) == 1


@pytest.mark.requirement("LEG-09")
def test_invitation_by_a_form_is_limited_by_network_and_sender(make_server, clock):
    server = make_server({**OPEN, **limits(invite_ip="6/h", invite_sender="3/h")})

    def store(address, sender="alice", ip="192.0.2.1"):
        body = {**json_invitation(address), "sender": f"@{sender}:hs.test"}
        origin = {"REMOTE_ADDR": ip}
        return server.client.post(f"{V1}/store-invite", json=body, environ_overrides=origin)

    assert [store(f"{n}@example.com").status_code for n in range(4)] == [200, 200, 200, 429]
    # Another sender, whom anyone can name, does not help for long; another network does.
    assert [store(f"{n}@example.com", f"u{n}").status_code for n in range(4, 7)] == [200, 200, 429]
    assert store("7@example.com", "u7", "192.0.2.2").status_code == 200
    assert len(server.rows("invites")) == len(server.sender.mails) == 6


def json_invitation(address):
    return {"medium": "email", "address": address, "room_id": ROOM, "sender": "@alice:hs.test"}


def test_whether_an_address_is_bound_is_told_to_a_network_within_a_limit(make_server):
    """Security, row 3, where nobody has an account: senders cost nothing there."""
    server = make_server({**OPEN, **limits(invite_ip="5/h")})
    for number in range(8):
        server.bind_directly(f"{number}@example.com", "@bob:hs.test")
    answers = [
        server.client.post(
            f"{V1}/store-invite",
            json=json_invitation(f"{number}@example.com")
            | {"sender": f"@u{number}:hs{number}.test"},
        )
        for number in range(8)
    ]
    assert [answer.status_code for answer in answers] == [400] * 5 + [429] * 3


@pytest.mark.requirement("LEG-10")
def test_token_is_requested_by_a_form_once_an_attempt(server):
    sid = session_by_form(server)["sid"]
    for body in (REQUEST_TOKEN, REQUEST_TOKEN.replace(b"attempt=1", b"attempt=0")):
        answer = post_form(server, "/validate/email/requestToken", body)
        assert answer.json == {"sid": sid}
    assert len(server.sender.mails) == 1
    second = REQUEST_TOKEN.replace(b"attempt=1", b"attempt=2")
    assert post_form(server, "/validate/email/requestToken", second).json == {"sid": sid}
    assert [recipient for recipient, _ in server.sender.mails] == ["alice@example.com"] * 2
    (row,) = server.rows("validation_sessions")
    assert row["owner"] is None


@sqlite_only
@pytest.mark.requirement("LEG-10")
def test_token_request_is_read_from_json_form_or_query(server):
    path = f"{V1}/validate/email/requestToken"
    values = {"client_secret": "s", "email": "alice@example.com", "send_attempt": "1"}
    query = "client_secret=s&email=alice%40example.com&send_attempt=1"
    sids = {
        server.client.post(**arguments).json["sid"]
        for arguments in (
            {"path": path, "json": values},
            {"path": path, "json": values | {"send_attempt": 1}},
            {"path": path, "data": json.dumps(values), "content_type": "application/json;x=y"},
            {"path": path, "data": query, "content_type": FORM},
            {"path": f"{path}?{query}"},
            {"path": f"{path}?{query}", "data": b"null", "content_type": "application/json"},
            {"path": f"{path}?{query}", "headers": {"Authorization": "Bearer bogus"}},
        )
    }
    assert len(sids) == len(server.sender.mails) == 1
    bad = server.client.post(path, data=b"{", content_type="application/json")
    assert refused(bad, 400, "M_NOT_JSON")
    bad = server.client.post(path, data=b"[]", content_type="application/json")
    assert refused(bad, 400, "M_BAD_JSON")
    assert refused(server.client.post(path), 400, "M_MISSING_PARAMS")
    for name, value, errcode in (
        ("email", "a@b@c", "M_INVALID_EMAIL"),
        ("client_secret", "a b", "M_INVALID_PARAM"),
        ("send_attempt", "x", "M_INVALID_PARAM"),
        ("send_attempt", 1.5, "M_INVALID_PARAM"),
    ):
        assert refused(server.client.post(path, json=values | {name: value}), 400, errcode)


@pytest.mark.requirement("LEG-11", "ONB-01")
def test_address_is_bound_by_a_form_once_it_is_validated(make_server, homeserver, resolver):
    server = make_server({**UNLIMITED, **OPEN, **REACHABLE}, resolver=resolver)
    token = post_form(server, "/store-invite", STORE_INVITE.replace(b"bob", b"alice")).json["token"]
    mailed = session_by_form(server)
    body = bind_form(mailed)
    assert refused(post_form(server, "/3pid/bind", body), 400, "M_SESSION_NOT_VALIDATED")
    assert server.rows("associations") == []
    assert submit(server, mailed).json == {"success": True}
    answer = post_form(server, "/3pid/bind", body)
    assert answer.status_code == 200
    assert set(answer.json) == ASSOCIATION
    assert answer.json["mxid"] == "@alice:hs.test"
    assert verify_as_dendrite(server, answer.json)
    assert server.found("alice@example.com") == "@alice:hs.test"
    homeserver.onbind = Reply()
    deliver(server)
    (body,) = told(homeserver)
    assert [told_invite["token"] for told_invite in body["invites"]] == [token]


@pytest.mark.requirement("LEG-11")
def test_bind_by_a_form_with_wrong_values_is_refused(server):
    mailed = validated_by_form(server)
    for changed, status, errcode in (
        ({"sid": "nope"}, 404, "M_NO_VALID_SESSION"),
        ({"client_secret": "other"}, 404, "M_NO_VALID_SESSION"),
    ):
        body = bind_form(mailed | changed)
        assert refused(post_form(server, "/3pid/bind", body), status, errcode)
    assert refused(
        post_form(server, "/3pid/bind", bind_form(mailed, "alice")), 400, "M_INVALID_PARAM"
    )
    assert refused(post_form(server, "/3pid/bind", b"sid=x"), 400, "M_MISSING_PARAMS")
    assert server.rows("associations") == []


@pytest.mark.requirement("LEG-11")
def test_session_of_an_account_is_bound_to_that_account_only(server, alice):
    """Decision 9: through any API."""
    session = alice.validate("alice@example.com")
    other = post_form(server, "/3pid/bind", bind_form(session, "%40eve%3Ahs.test"))
    assert refused(other, 403, "M_UNAUTHORIZED")
    assert server.rows("associations") == []
    assert post_form(server, "/3pid/bind", bind_form(session)).status_code == 200
    assert server.found("alice@example.com") == alice.user_id


@pytest.mark.requirement("LEG-03", "LEG-07", "LEG-08", "LEG-09", "LEG-10", "LEG-11")
def test_every_request_of_dendrite_works_byte_for_byte(tmp_path):
    """What Go puts on the wire, to a server of its own processes."""
    running = RunningServer(tmp_path, OPEN)
    try:
        running.start()
        dendrite = Dendrite(running.port)
        status, answer = dendrite.post("/validate/email/requestToken", REQUEST_TOKEN)
        assert (status, set(answer)) == (200, {"sid"})
        (mail,) = wait_until(lambda: list((tmp_path / "data" / "outbox").glob("*.eml")))
        link = re.search(r"http://localhost:8090(/\S+)", mail.read_text())[1]
        creds = f"sid={answer['sid']}&client_secret=s3cret"
        status, answer = dendrite.get(f"/3pid/getValidated3pid?{creds}")
        assert (status, answer["errcode"]) == (400, "M_SESSION_NOT_VALIDATED")
        token = urlsplit(link).query.encode()
        assert dendrite.post("/validate/email/submitToken", token) == (200, {"success": True})
        status, answer = dendrite.get(f"/3pid/getValidated3pid?{creds}")
        assert (status, answer["medium"], answer["address"]) == (200, "email", "alice@example.com")

        status, answer = dendrite.get("/lookup?medium=email&address=alice%40example.com")
        assert (status, answer) == (200, {})
        session = dict(part.split("=") for part in creds.split("&"))
        status, bound = dendrite.post("/3pid/bind", bind_form(session))
        assert status == 200
        status, found = dendrite.get("/lookup?medium=email&address=alice%40example.com")
        assert (status, found) == (200, bound)
        (key_id,) = found["signatures"]["localhost"]
        status, key = dendrite.get(f"/pubkey/{key_id}")
        assert (status, set(key)) == (200, {"public_key"})
        assert is_signed(found, key["public_key"], key_id)

        status, answer = dendrite.post("/store-invite", STORE_INVITE)
        assert (status, answer["public_key"]) == (200, key["public_key"])
        status, answer = dendrite.post("/store-invite", STORE_INVITE.replace(b"bob", b"alice"))
        assert (status, answer["errcode"]) == (400, "M_THREEPID_IN_USE")
        assert answer["mxid"] == "@alice:hs.test"
    finally:
        running.close()


class Dendrite:
    """Requests as Go's net/http writes them."""

    def __init__(self, port):
        self._port = port

    def get(self, path):
        return self._send(f"GET {V1}{path} HTTP/1.1", b"")

    def post(self, path, body):
        length = f"Content-Length: {len(body)}\r\nContent-Type: {FORM}"
        return self._send(f"POST {V1}{path} HTTP/1.1", body, length)

    def _send(self, start, body, *headers):
        lines = [start, "Host: id.test", "User-Agent: Go-http-client/1.1", *headers]
        head = "\r\n".join([*lines, "Accept-Encoding: gzip", "", ""])
        with socket.create_connection(("127.0.0.1", self._port), 10) as connection:
            connection.sendall(head.encode() + body)
            with http.client.HTTPResponse(connection) as response:
                response.begin()
                return response.status, json.load(io.BytesIO(response.read()))


# --- the rest: LEG-13, LEG-15 -------------------------------------------------------------------


@pytest.mark.requirement("LEG-13")
def test_bulk_lookup_answers_with_those_that_are_bound(server, clock):
    server.bind_directly("a@example.com", "@a:hs.test")
    server.bind_directly("b@example.com", "@b:hs.test")
    asked = [["email", "a@example.com"], ["email", "c@example.com"], ["email", "B@Example.com"]]
    asked += [["fax", "1"], ["email", "a@b@c"], ["msisdn", "x"]]
    answer = server.client.post(f"{V1}/bulk_lookup", json={"threepids": asked})
    assert answer.status_code == 200
    assert answer.json == {
        "threepids": [
            ["email", "a@example.com", "@a:hs.test"],
            ["email", "B@Example.com", "@b:hs.test"],
        ]
    }
    empty = server.client.post(f"{V1}/bulk_lookup", json={"threepids": []})
    assert (empty.status_code, empty.json) == (200, {"threepids": []})
    for wrong in (None, "x", {}, 1, [1], ["email"], [["email"]], [["email", 1]], [["a", "b", "c"]]):
        answer = server.client.post(f"{V1}/bulk_lookup", json={"threepids": wrong})
        assert refused(answer, 400, "M_INVALID_PARAM"), wrong


@sqlite_only
@pytest.mark.requirement("LEG-13")
def test_bulk_lookup_of_too_many_is_refused(make_server):
    server = make_server({**OPEN, "LOOKUP__MAX_ADDRESSES": "3"})
    asked = [["email", f"{n}@example.com"] for n in range(4)]
    answer = server.client.post(f"{V1}/bulk_lookup", json={"threepids": asked})
    assert refused(answer, 400, "M_TOO_LARGE")
    answer = server.client.post(f"{V1}/bulk_lookup", json={"threepids": asked[:3]})
    assert answer.status_code == 200


def test_lookups_of_a_network_share_one_budget(make_server, clock):
    """One permit is one address, asked for alone or with others."""
    server = make_server({**OPEN, **limits(legacy_lookup_ip="10/d")})
    server.bind_directly(BOB, "@bob:hs.test")

    def bulk(count, ip="192.0.2.1"):
        body = {"threepids": [["email", f"{n}@example.com"] for n in range(count)]}
        origin = {"REMOTE_ADDR": ip}
        return server.client.post(f"{V1}/bulk_lookup", json=body, environ_overrides=origin)

    def lookup(ip="192.0.2.1"):
        query = {"medium": "email", "address": BOB}
        origin = {"REMOTE_ADDR": ip}
        return server.client.get(f"{V1}/lookup", query_string=query, environ_overrides=origin)

    assert bulk(8).status_code == 200
    assert refused(bulk(3), 429, "M_LIMIT_EXCEEDED")
    assert [lookup().status_code for _ in range(3)] == [200, 200, 429]
    assert bulk(10, "192.0.2.2").status_code == 200
    assert refused(lookup("192.0.2.2"), 429, "M_LIMIT_EXCEEDED")
    clock.advance(hours=3)
    assert lookup().status_code == 200


@pytest.mark.requirement("LEG-15")
def test_token_is_submitted_without_an_account(server, alice):
    mailed = session_by_form(server)
    wrong = submit(server, mailed, token="wrong")
    assert refused(wrong, 400, "M_TOKEN_INCORRECT")
    assert wrong.json["success"] is False
    for changed in ({"sid": "nope"}, {"client_secret": "other"}):
        answer = submit(server, mailed, **changed)
        assert refused(answer, 400, "M_INVALID_PARAM")
        assert answer.json["success"] is False
    for name in ("sid", "client_secret", "token"):
        values = {n: mailed[n] for n in ("sid", "client_secret", "token") if n != name}
        answer = server.client.post(f"{V1}/validate/email/submitToken", json=values)
        assert refused(answer, 400, "M_MISSING_PARAMS")
    (row,) = server.rows("validation_sessions")
    assert row["validated_at_ms"] is None
    query = {name: mailed[name] for name in ("sid", "client_secret", "token")}
    for arguments in ({"json": query}, {"data": query}, {"query_string": query}):
        answer = server.client.post(f"{V1}/validate/email/submitToken", **arguments)
        assert (answer.status_code, answer.json) == (200, {"success": True})
    (row,) = server.rows("validation_sessions")
    assert row["validated_at_ms"] is not None
    # That of an account as well: whoever has the mail has proved the address.
    alice.request_token("alice@example.com", "another")
    assert submit(server, server.mailed()).json == {"success": True}


@pytest.mark.requirement("LEG-15")
def test_session_is_locked_after_wrong_tokens_through_any_api(server):
    mailed = session_by_form(server)
    for _ in range(5):
        assert refused(submit(server, mailed, token="wrong"), 400, "M_TOKEN_INCORRECT")
    assert refused(submit(server, mailed), 400, "M_TOKEN_INCORRECT")
    (row,) = server.rows("validation_sessions")
    assert row["validated_at_ms"] is None
    page = server.client.get(
        f"{V2}/validate/email/submitToken",
        query_string={name: mailed[name] for name in ("sid", "client_secret", "token")},
    )
    assert page.status_code == 400
