"""Bind over v2: conformance.md section 11."""

from itertools import pairwise

import pytest
from parts.parallel import in_parallel, second_server
from parts.server import V2
from parts.validation import (
    UNLIMITED,
    bind,
    refused,
    session_without_owner,
    sqlite_only,
    submit,
    token_values,
)
from signedjson.key import decode_verify_key_bytes
from signedjson.sign import verify_signed_json
from unpaddedbase64 import decode_base64

EMAIL = "alice@example.com"
KEYS = {"address", "medium", "mxid", "not_before", "not_after", "ts", "signatures"}


@pytest.mark.requirement("BIND-01", "AMB-20")
def test_bind_returns_the_association_with_exactly_its_seven_keys(server, clock, alice):
    session = alice.validate("Alice@Example.com")
    clock.advance(hours=1)
    response = bind(alice, session)
    assert (response.status_code, response.mimetype) == (200, "application/json")
    bound = response.json
    assert bound.keys() == KEYS
    assert (bound["address"], bound["medium"], bound["mxid"]) == (EMAIL, "email", alice.user_id)
    assert {type(bound[name]) for name in ("not_before", "ts", "not_after")} == {int}
    assert bound["not_before"] <= bound["ts"] <= bound["not_after"]
    assert bound["ts"] == clock.now_ms()
    (row,) = server.rows("associations")
    assert (row["mxid"], row["ts_ms"]) == (alice.user_id, bound["ts"])


@sqlite_only
@pytest.mark.requirement("BIND-02")
def test_bind_is_signed_by_the_server_with_its_published_key(make_server):
    server = make_server({"SERVER__NAME": "id.example.org:8448"})
    alice = server.account("@alice:hs.test")
    bound = alice.bind(EMAIL).json
    assert list(bound["signatures"]) == ["id.example.org:8448"]
    ((key_id, _),) = bound["signatures"]["id.example.org:8448"].items()
    published = server.client.get(f"{V2}/pubkey/{key_id}").json["public_key"]
    key = decode_verify_key_bytes(key_id, decode_base64(published))
    verify_signed_json(bound, "id.example.org:8448", key)
    for name in sorted(KEYS - {"signatures"}):
        changed = {**bound, name: 0 if type(bound[name]) is int else "x"}
        with pytest.raises(Exception, match="Unable to verify signature"):
            verify_signed_json(changed, "id.example.org:8448", key)


@sqlite_only
@pytest.mark.requirement("BIND-03", "BIND-07")
def test_bind_of_a_session_that_proves_nothing_is_refused(server, clock, alice):
    alice.request_token(EMAIL)
    mailed = server.mailed()
    assert refused(bind(alice, mailed), 400, "M_SESSION_NOT_VALIDATED")
    unknown = [bind(alice, mailed | {"sid": sid}) for sid in ("abc", "999", "", "é" * 300)]
    unknown.append(bind(alice, mailed | {"client_secret": "other"}))
    for response in unknown:
        assert refused(response, 404, "M_NO_VALID_SESSION")
        assert response.data == unknown[0].data
    submit(alice, mailed)
    clock.advance(hours=24, ms=1)
    assert refused(bind(alice, mailed), 400, "M_SESSION_EXPIRED")
    assert (server.rows("associations"), server.rows("statements")) == ([], [])


@sqlite_only
@pytest.mark.requirement("BIND-07")
def test_bind_error_of_any_kind_is_json_with_an_errcode(server, alice):
    session = alice.validate(EMAIL)
    body = {**session, "mxid": alice.user_id}
    for name in body:
        rest = {key: value for key, value in body.items() if key != name}
        assert refused(alice.post("/3pid/bind", json=rest), 400, "M_MISSING_PARAMS")
        for wrong in (1, None, [], {}, True):
            response = alice.post("/3pid/bind", json=body | {name: wrong})
            assert refused(response, 400, "M_INVALID_PARAM")
    assert refused(alice.post("/3pid/bind", data="{"), 400, "M_NOT_JSON")
    assert refused(alice.post("/3pid/bind", data="[]"), 400, "M_BAD_JSON")
    assert refused(server.client.post(V2 + "/3pid/bind", json=body), 401, "M_UNAUTHORIZED")
    assert server.rows("associations") == []
    response = alice.post("/3pid/bind", data=body)  # a form, as older clients send it
    assert response.status_code == 200
    assert {"medium", "address"} <= response.json.keys()


@pytest.mark.requirement("BIND-04", "AMB-15")
def test_bind_to_somebody_else_is_refused(server, alice, bob):
    bobs = bob.validate(EMAIL)
    assert refused(bind(bob, bobs, alice.user_id), 403, "M_UNAUTHORIZED")
    for almost in ("@BOB:hs.test", "@bob:HS.test", "@bob:hs.test:8448", "@bob:hs.test."):
        assert refused(bind(bob, bobs, almost), 403, "M_UNAUTHORIZED")
    # Nor by a session that belongs to no account.
    unowned = session_without_owner(server, EMAIL)
    submit(bob, unowned)
    assert refused(bind(bob, unowned, alice.user_id), 403, "M_UNAUTHORIZED")
    assert server.found(EMAIL) is None
    assert server.rows("statements") == []


@sqlite_only
@pytest.mark.requirement("BIND-05")
def test_bind_to_what_is_no_mxid_is_refused(server, alice):
    session = alice.validate(EMAIL)
    bad = ["notanmxid", "", "@", "@:hs.test", "@a", "@a:", "a:hs.test", "#a:hs.test", "@a:hs_x"]
    bad += ["@a:hs.test/x", "@a:u@hs", "@a:hs:99999", "@a\n:hs.test", f"@{'a' * 250}:hs.test"]
    for mxid in bad:
        body = {**session, "mxid": mxid}
        assert refused(alice.post("/3pid/bind", json=body), 400, "M_INVALID_PARAM"), mxid
    assert server.rows("statements") == []


@sqlite_only
@pytest.mark.requirement("BIND-05")
def test_bind_to_an_mxid_with_a_historical_localpart_succeeds(make_server):
    server = make_server(UNLIMITED)
    for mxid in ("@Alice Ü/!:hs.test", "@=:[::1]:8448", "@a:127.0.0.1"):
        account = server.account(mxid)
        assert account.bind(EMAIL).json["mxid"] == mxid
        assert server.found(EMAIL) == mxid


@pytest.mark.requirement("BIND-06")
def test_bind_by_another_validated_user_replaces_the_mapping(make_server, clock):
    server = make_server(UNLIMITED)
    alice, bob = server.account("@alice:hs.test"), server.account("@bob:hs.test")
    first = alice.bind(EMAIL).json
    assert server.found(EMAIL) == alice.user_id
    clock.advance(hours=-3)  # The clock was wrong; the newer one counts nevertheless.
    second = bob.bind(EMAIL).json
    assert server.found(EMAIL) == bob.user_id
    assert second["ts"] == first["ts"] + 1
    assert second["not_before"] == clock.now_ms()
    assert len(server.rows("associations")) == 1
    assert len(server.rows("statements")) == 2
    alice.bind(EMAIL, "again")
    assert server.found(EMAIL) == alice.user_id


@pytest.mark.requirement("BIND-06")
def test_binds_of_one_address_in_parallel_leave_the_newest(make_server):
    server = make_server(UNLIMITED)
    servers = [server, second_server(make_server, server, **UNLIMITED)]
    accounts = [server.account(f"@u{number}:hs.test") for number in range(12)]
    sessions = [account.validate(EMAIL) for account in accounts]

    def ask(client, number):
        account = accounts[number % 12]
        body = {**sessions[number % 12], "mxid": account.user_id}
        headers = {"Authorization": f"Bearer {account.token}"}
        return client.post(V2 + "/3pid/bind", json=body, headers=headers)

    answers = in_parallel(servers, 48, ask)
    assert {answer.status_code for answer in answers} == {200}
    statements = sorted(server.rows("statements"), key=lambda row: row["origin_id"])
    assert [row["origin_id"] for row in statements] == list(range(1, 49))
    assert all(before["ts_ms"] < after["ts_ms"] for before, after in pairwise(statements))
    winner = max((answer.json for answer in answers), key=lambda bound: bound["ts"])
    assert winner["ts"] == statements[-1]["ts_ms"]
    assert server.found(EMAIL) == winner["mxid"]
    assert len(server.rows("associations")) == 1


@pytest.mark.requirement("BIND-09")
def test_bind_can_be_repeated_until_the_session_ends(server, clock, alice):
    session = alice.validate(EMAIL)
    clock.advance(hours=1)
    answers = [bind(alice, session), bind(alice, session)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.json["mxid"] for answer in answers] == [alice.user_id] * 2
    clock.advance(hours=23)
    assert bind(alice, session).status_code == 200
    assert server.found(EMAIL) == alice.user_id
    clock.advance(ms=1)
    assert refused(bind(alice, session), 400, "M_SESSION_EXPIRED")


@sqlite_only
@pytest.mark.requirement("BIND-04")
def test_used_link_is_of_no_use_to_another_client(server, alice, bob):
    """security.md, threats 10 and 14."""
    session = alice.validate(EMAIL)
    mailed = server.mailed()
    bind(alice, session)
    assert bob.submit_token(**token_values(mailed)).status_code == 400
    assert refused(bind(bob, session), 404, "M_NO_VALID_SESSION")
    assert refused(bind(bob, session, alice.user_id), 403, "M_UNAUTHORIZED")
    # The same request of his own begins a session that is not validated.
    bob.request_token(EMAIL, mailed["client_secret"])
    theirs = server.mailed()
    assert theirs["sid"] != session["sid"]
    assert bob.submit_token(**token_values(theirs, token=mailed["token"])).status_code == 400
    assert refused(bind(bob, theirs), 400, "M_SESSION_NOT_VALIDATED")
    assert server.found(EMAIL) == alice.user_id
