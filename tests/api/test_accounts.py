"""Conformance, section 3: accounts and authentication, against a homeserver over TLS."""

import json
import threading
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from parts.homeserver import USERINFO, FakeHomeserver, Reply
from parts.routes import paths_of
from parts.server import V1, V2
from parts.validation import refused, sqlite_only
from werkzeug.datastructures import Headers

REGISTER = f"{V2}/account/register"

# AUTH-11; those that a server does not offer are passed over.
AUTHENTICATED = [
    ("GET", "/account"),
    ("POST", "/account/logout"),
    ("POST", "/terms"),
    ("GET", "/hash_details"),
    ("POST", "/lookup"),
    ("POST", "/validate/email/requestToken"),
    ("POST", "/validate/msisdn/requestToken"),
    ("POST", "/validate/email/submitToken"),
    ("POST", "/validate/msisdn/submitToken"),
    ("GET", "/3pid/getValidated3pid"),
    ("POST", "/3pid/bind"),
    ("POST", "/store-invite"),
    ("POST", "/sign-ed25519"),
]
# AUTH-12
OPEN = [
    "/_matrix/identity/versions",
    V2,
    f"{V2}/terms",
    f"{V2}/pubkey/ed25519:0",
    f"{V2}/pubkey/isvalid?public_key=x",
    f"{V2}/pubkey/ephemeral/isvalid?public_key=x",
    f"{V1}/pubkey/ed25519:0",
    f"{V1}/pubkey/isvalid?public_key=x",
    f"{V1}/pubkey/ephemeral/isvalid?public_key=x",
]


@pytest.fixture
def homeserver():
    with FakeHomeserver() as running:
        running.name = f"localhost:{running.port}"
        running.openid_users["openid"] = f"@alice:{running.name}"
        yield running


@pytest.fixture
def settings(homeserver):
    return {
        "FEDERATION__CA_FILE": str(homeserver.ca_file),
        "FEDERATION__ALLOW_PRIVATE_ADDRESSES": "true",
        "FEDERATION__TIMEOUT": "5s",
    }


@pytest.fixture
def server(make_server, settings):
    return make_server(settings)


@pytest.fixture
def register(server, homeserver):
    """Calls the endpoint; by default with a token that the homeserver knows, and nothing else."""

    def post(name=None, token="openid", **more):
        body = {"access_token": token, "matrix_server_name": name or homeserver.name, **more}
        return server.client.post(REGISTER, json=body)

    return post


def authenticated(server):
    offered = paths_of(server.app)
    return [
        (method, path) for method, path in AUTHENTICATED if method in offered.get(V2 + path, ())
    ]


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def is_unauthorized(response):
    return refused(response, 401, "M_UNAUTHORIZED")


@pytest.mark.requirement("AUTH-01", "AUTH-02", "AUTH-09")
def test_register_gives_an_opaque_token_for_the_verified_user(server, homeserver, register):
    answer = register(token_type="Bearer", expires_in=3600)
    assert answer.status_code == 200
    token = answer.json["token"]
    assert isinstance(token, str)
    assert len(token) >= 43  # 256 bits in base64
    assert answer.json["access_token"] == token
    assert register().json["token"] != token

    account = server.client.get(f"{V2}/account", headers=bearer(token))
    assert account.status_code == 200
    assert account.json == {"user_id": f"@alice:{homeserver.name}"}
    assert [row["user_id"] for row in server.rows("accounts")] == [f"@alice:{homeserver.name}"]


@pytest.mark.requirement("AUTH-03", "GEN-19")
@sqlite_only
def test_register_needs_two_keys_and_ignores_unknown_ones(server, homeserver, register):
    assert register().status_code == 200
    assert register(x={"y": 1}, expires_in="soon", token_type=7).status_code == 200
    for missing in ("access_token", "matrix_server_name"):
        body = {"access_token": "openid", "matrix_server_name": homeserver.name}
        del body[missing]
        assert refused(server.client.post(REGISTER, json=body), 400, "M_MISSING_PARAMS")
    assert len(homeserver.requests) == 2


@pytest.mark.requirement("GEN-03")
@sqlite_only
def test_register_reads_json_whatever_its_content_type(server, homeserver):
    body = json.dumps({"access_token": "openid", "matrix_server_name": homeserver.name})
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json"}):
        answer = server.client.post(REGISTER, data=body, headers=headers)
        assert answer.status_code == 200
        token = answer.json["token"]
        assert server.client.get(f"{V2}/account", headers=bearer(token)).status_code == 200


@pytest.mark.requirement("AUTH-04")
@pytest.mark.parametrize("token", ["a+b/c&d=", "ü 漢字%00#?x=y", "t" * 500])
@sqlite_only
def test_openid_token_arrives_intact_in_an_unsigned_request(homeserver, register, token):
    homeserver.openid_users = {token: f"@alice:{homeserver.name}"}
    assert register(token=token).status_code == 200
    (request,) = homeserver.requests
    assert (request.method, request.path) == ("GET", USERINFO)
    assert parse_qs(urlsplit(request.target).query) == {"access_token": [token]}
    assert "Authorization" not in request.headers
    assert request.headers["Host"] == homeserver.name


@pytest.mark.requirement("AUTH-05", "AUTH-07", "AMB-28")
@sqlite_only
def test_user_of_another_server_gets_no_token(server, homeserver, register):
    name = homeserver.name
    foreign = [
        "@a:y",
        "@a:localhost",
        f"@a:{name}0",
        f"@a:{name}.evil.test",
        f"@a:evil.test:{name}",
        f"@a:b:{name}",
        f"@a:{name.upper()}",
        f"@a:{name}/",
        f"@a:{name}\n",
        f"@a:{name} ",
        f" @a:{name}",
        f"a:{name}",
        f"@:{name}",
        "@a:",
        "@a",
        "",
        name,
        f"@{'a' * 255}:{name}",
    ]
    for user_id in foreign:
        homeserver.openid_users["openid"] = user_id
        assert is_unauthorized(register()), user_id
    # A `sub` that is no string is no MXID either.
    for value in (1, None, True, [f"@alice:{name}"], {"user_id": f"@alice:{name}"}):
        homeserver.answers[USERINFO] = Reply.json({"sub": value})
        assert is_unauthorized(register()), value
    assert server.rows("accounts") == []
    assert server.rows("access_tokens") == []


@pytest.mark.requirement("AUTH-05")
@sqlite_only
def test_homeserver_speaks_for_its_own_name_and_no_other(make_server, settings, homeserver):
    server = make_server(settings)
    homeserver.openid_users["openid"] = "@alice:127.0.0.1"
    body = {"access_token": "openid", "matrix_server_name": f"127.0.0.1:{homeserver.port}"}
    assert is_unauthorized(server.client.post(REGISTER, json=body))
    homeserver.openid_users["openid"] = f"@alice:127.0.0.1:{homeserver.port}"
    assert server.client.post(REGISTER, json=body).status_code == 200


@pytest.mark.requirement("AUTH-06")
@sqlite_only
def test_name_outside_the_grammar_is_refused_before_anything_is_called(
    server, homeserver, register
):
    for name in (
        "example.com#",
        "a/b",
        "u@h",
        "h:99999",
        "h:0",
        "h:",
        "h:x",
        "h: 1",
        ":8448",
        f"{homeserver.name}/",
        f"{homeserver.name}?",
        f"{homeserver.name}#",
        f"{homeserver.name}\n",
        f" {homeserver.name}",
        f"u@{homeserver.name}",
        "[::1",
        "::1",
        "[127.0.0.1]",
        "[fe80::1%25lo]",
        "a..b",
        "éxample.com",
        "1.2.3",
        "256.1.1.1",
        "a" * 256,
    ):
        assert refused(register(name), 400, "M_INVALID_PARAM"), name
    body = {"access_token": "openid", "matrix_server_name": ""}
    assert refused(server.client.post(REGISTER, json=body), 400, "M_INVALID_PARAM")
    assert homeserver.requests == []
    assert homeserver.sni_names == []
    assert server.rows("accounts") == []


@pytest.mark.requirement("AUTH-07", "AMB-28")
@sqlite_only
def test_token_that_the_homeserver_refuses_is_unauthorized(server, homeserver, register):
    assert is_unauthorized(register(token="unknown"))
    for status in (400, 401, 403, 404, 429):
        homeserver.answers[USERINFO] = Reply.json({"errcode": "M_UNKNOWN_TOKEN"}, status)
        assert is_unauthorized(register())
    assert server.rows("access_tokens") == []


@pytest.mark.requirement("AUTH-07", "AMB-28")
@pytest.mark.parametrize(
    "reply",
    [
        Reply(500),
        Reply(200, b""),
        Reply(200, b"<html>"),
        Reply(200, b"[]"),
        Reply(200, b"null"),
        Reply(200, b"{}"),
        Reply(200, b'{"sub": "@alice:x", "sub": "@bob:x"}'),
        Reply(200, b'{"sub": "\xff"}'),
        Reply(204, b""),
        Reply(302, b"", {"Location": "https://localhost/"}),
        Reply(raw=[b"no http\r\n\r\n"]),
        Reply(raw=[]),
    ],
    ids=lambda reply: f"{reply.status}-{str(reply.body or reply.raw)[:20]}",
)
@sqlite_only
def test_unusable_answer_of_the_homeserver_is_a_bad_gateway(server, homeserver, register, reply):
    homeserver.answers[USERINFO] = reply
    answer = register()
    assert refused(answer, 502, "M_UNKNOWN")
    assert "homeserver" in answer.json["error"]
    assert server.rows("access_tokens") == []


@pytest.mark.requirement("AUTH-07", "AMB-28")
@sqlite_only
def test_homeserver_that_cannot_be_reached_is_a_bad_gateway(server, register):
    with FakeHomeserver() as gone:
        pass
    for name in (f"localhost:{gone.port}", f"127.0.0.1:{gone.port}"):
        answer = register(name)
        assert refused(answer, 502, "M_UNKNOWN")
        assert "could not be reached" in answer.json["error"]
    assert server.rows("accounts") == []


@pytest.mark.requirement("AUTH-05", "AUTH-07")
@sqlite_only
def test_homeserver_with_a_certificate_for_another_name_is_not_asked(make_server, settings):
    with FakeHomeserver("other.test") as impostor:
        impostor.openid_users["openid"] = f"@alice:localhost:{impostor.port}"
        body = {"access_token": "openid", "matrix_server_name": f"localhost:{impostor.port}"}
        server = make_server(settings)
        assert refused(server.client.post(REGISTER, json=body), 502, "M_UNKNOWN")
        assert impostor.requests == []
        assert server.rows("accounts") == []


@pytest.mark.requirement("AUTH-08")
@sqlite_only
def test_huge_userinfo_is_cut_off(server, homeserver, register):
    padding = json.dumps("x" * 1_000_000).encode()
    sub = json.dumps(f"@alice:{homeserver.name}").encode()
    body = b'{"sub": ' + sub + b', "padding": ' + padding + b"}"
    for reply in (
        Reply(200, body),
        Reply(200, (body[at : at + 999] for at in range(0, 10**6, 999))),
    ):
        homeserver.answers[USERINFO] = reply
        assert refused(register(), 502, "M_UNKNOWN")
    assert server.rows("access_tokens") == []
    homeserver.answers[USERINFO] = Reply(200, b'{"sub": ' + sub + b"}" + b" " * 4_000)
    assert register().status_code == 200


@pytest.mark.requirement("AUTH-08")
@sqlite_only
def test_hanging_and_dripping_homeserver_is_given_up(make_server, settings, homeserver):
    server = make_server(settings | {"FEDERATION__TIMEOUT": "300ms"})
    began = time.monotonic()
    body = {"access_token": "openid", "matrix_server_name": homeserver.name}
    homeserver.answers[USERINFO] = Reply(200, homeserver.drip(b" " * 10_000))
    assert refused(server.client.post(REGISTER, json=body), 502, "M_UNKNOWN")
    homeserver.hold = threading.Event()
    try:
        assert refused(server.client.post(REGISTER, json=body), 502, "M_UNKNOWN")
    finally:
        homeserver.hold.set()
    assert time.monotonic() - began < 5
    assert server.rows("access_tokens") == []


@pytest.mark.requirement("AUTH-08")
@sqlite_only
def test_redirect_of_userinfo_is_not_followed(homeserver, register):
    sub = {"sub": f"@alice:{homeserver.name}"}
    homeserver.answers["/elsewhere"] = Reply.json(sub)
    for status in (301, 302, 303, 307, 308):
        homeserver.answers[USERINFO] = Reply.json(sub, status, Location="/elsewhere")
        assert refused(register(), 502, "M_UNKNOWN")
    assert set(homeserver.paths()) == {USERINFO}


@pytest.mark.requirement("AUTH-11", "AMB-02")
@sqlite_only
def test_missing_malformed_and_unknown_tokens_are_refused_everywhere(server, alice):
    credentials = [
        None,
        "Bearer x",
        "Basic x",
        "Bearer",
        "Bearer ",
        f"Basic {alice.token}",
        alice.token,
        f"Bearer{alice.token}",
        f"Token {alice.token}",
        f"Bearer {alice.token}x",
        f"Bearer {alice.token[:-1]}",
        f"Bearer {alice.token} {alice.token}",
        f"Bearer {alice.token},",
        f"Bearer {alice.token.swapcase()}",
        "Bearer " + "x" * 8_000,
        "Bearer é",
    ]
    for method, path in authenticated(server):
        for value in credentials:
            headers = {} if value is None else {"Authorization": value}
            answer = server.client.open(V2 + path, method=method, headers=headers)
            assert answer.status_code == 401, (path, value)
            expected = {"M_UNAUTHORIZED"}
            if path == "/account/logout":
                expected = {"M_UNAUTHORIZED", "M_UNKNOWN_TOKEN"}  # AUTH-14
            assert answer.json["errcode"] in expected, (path, value)
    assert alice.get("/account").status_code == 200


@pytest.mark.requirement("AUTH-12")
@sqlite_only
def test_open_endpoints_do_not_look_at_a_token(server):
    for path in OPEN:
        plain = server.client.get(path)
        garbage = server.client.get(path, headers=bearer("garbage"))
        assert plain.status_code == garbage.status_code == 200, path
        assert plain.get_data() == garbage.get_data()
    plain, garbage = (
        server.client.post(REGISTER, json={}, headers=headers) for headers in ({}, bearer("x"))
    )
    assert plain.json == garbage.json
    assert refused(plain, 400, "M_MISSING_PARAMS")


@pytest.mark.requirement("AUTH-12")
@sqlite_only
def test_register_with_a_garbage_token_in_the_header_succeeds(server, homeserver):
    body = {"access_token": "openid", "matrix_server_name": homeserver.name}
    assert server.client.post(REGISTER, json=body, headers=bearer("garbage")).status_code == 200


@pytest.mark.requirement("AUTH-13")
def test_logout_ends_one_token_and_no_other(server, register):
    first, second = (register().json["token"] for _ in range(2))
    answer = server.client.post(f"{V2}/account/logout", headers=bearer(first))
    assert (answer.status_code, answer.json) == (200, {})
    assert is_unauthorized(server.client.get(f"{V2}/account", headers=bearer(first)))
    assert server.client.get(f"{V2}/account", headers=bearer(second)).status_code == 200
    assert len(server.rows("access_tokens")) == 1
    # A body is not asked for, and does no harm.
    answer = server.client.post(f"{V2}/account/logout", headers=bearer(second), data=b"{")
    assert (answer.status_code, answer.json) == (200, {})
    assert server.rows("access_tokens") == []


@pytest.mark.requirement("AUTH-14", "AMB-02")
def test_logout_with_an_unknown_token_says_that_it_is_unknown(server, alice):
    def log_out(headers):
        return server.client.post(f"{V2}/account/logout", headers=headers)

    assert refused(log_out(bearer("bogus")), 401, "M_UNKNOWN_TOKEN")
    assert is_unauthorized(log_out({}))
    assert is_unauthorized(log_out({"Authorization": "Basic x"}))
    assert log_out(bearer(alice.token)).status_code == 200
    assert refused(log_out(bearer(alice.token)), 401, "M_UNKNOWN_TOKEN")


@pytest.mark.requirement("AUTH-16", "AMB-01")
@sqlite_only
def test_token_in_the_query_is_no_credential(server, alice):
    for method, path in authenticated(server):
        if path == "/hash_details":
            continue
        query = {"access_token": alice.token}
        answer = server.client.open(V2 + path, method=method, query_string=query, json={})
        assert is_unauthorized(answer), path
        # Nor does it do harm beside a header.
    assert alice.get("/account", query_string={"access_token": "bogus"}).status_code == 200


@pytest.mark.requirement("AUTH-17", "AMB-01")
def test_hash_details_takes_a_token_in_the_query_and_the_header_wins(server, alice, bob):
    def ask(query=None, headers=None):
        query = {} if query is None else {"access_token": query}
        return server.client.get(f"{V2}/hash_details", query_string=query, headers=headers or {})

    by_header = ask(headers=bearer(alice.token))
    by_query = ask(alice.token)
    assert by_query.status_code == 200
    assert by_query.json == by_header.json
    assert ask("bogus", bearer(alice.token)).status_code == 200
    assert is_unauthorized(ask(alice.token, bearer("bogus")))
    assert is_unauthorized(ask(alice.token, {"Authorization": "Basic x"}))
    for query in ("bogus", "", "é\x00", "x" * 5_000):
        assert is_unauthorized(ask(query))
    assert is_unauthorized(ask())


@pytest.mark.requirement("AUTH-18")
@sqlite_only
def test_scheme_is_matched_in_any_case_with_spaces_around(server, alice):
    for value in (
        f"bearer {alice.token}",
        f"BEARER {alice.token}",
        f"Bearer   {alice.token}",
        f"  Bearer {alice.token}  ",
    ):
        answer = server.client.get(f"{V2}/account", headers={"Authorization": value})
        assert answer.status_code == 200, value
        assert answer.json == {"user_id": alice.user_id}


@pytest.mark.requirement("AUTH-18")
@sqlite_only
def test_token_in_a_body_is_never_a_credential(server, alice):
    for method, path in authenticated(server):
        if method == "POST":
            values = {"access_token": alice.token, "token": alice.token}
            assert is_unauthorized(server.client.post(V2 + path, json=values)), path
            assert is_unauthorized(server.client.post(V2 + path, data=values)), path
    assert alice.get("/account").status_code == 200


@pytest.mark.requirement("AUTH-19")
def test_tokens_are_stored_hashed_and_apart_from_those_of_the_homeserver(
    server, homeserver, register, tmp_path
):
    openid_token = "openid-canary"
    homeserver.openid_users[openid_token] = f"@alice:{homeserver.name}"
    tokens = [register(token=openid_token).json["token"] for _ in range(3)]
    assert len(set(tokens)) == 3
    for token in tokens:
        assert server.client.get(f"{V2}/account", headers=bearer(token)).status_code == 200
    assert is_unauthorized(server.client.get(f"{V2}/account", headers=bearer(openid_token)))

    rows = server.rows("access_tokens")
    assert len(rows) == 3
    assert all(len(row["token_hash"]) == 32 for row in rows)
    stored = repr(rows) + repr(server.rows("accounts"))
    assert not any(secret in stored for secret in [*tokens, openid_token])
    # SQLite's files, the journal too, hold none of them either.
    for path in tmp_path.rglob("*.db*"):
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in [*tokens, openid_token]), path


@pytest.mark.requirement("AUTH-19")
def test_newest_fifty_tokens_of_a_user_are_kept(server, clock):
    first = server.account("@alice:hs.test")
    bob = server.account("@bob:hs.test")
    clock.advance(hours=2)
    assert first.get("/account").status_code == 200  # used lately, so not the first to go
    accounts = [server.account("@alice:hs.test") for _ in range(55)]
    # All at one instant; the one just given out works whatever the clock says.
    assert accounts[-1].get("/account").status_code == 200
    clock.advance(hours=-24)
    late = server.account("@alice:hs.test")
    assert late.get("/account").status_code == 200
    mine = [row for row in server.rows("access_tokens") if row["user_id"] == "@alice:hs.test"]
    assert len(mine) == 50
    assert bob.get("/account").status_code == 200


@pytest.mark.requirement("AUTH-20", "AMB-16")
@sqlite_only
def test_server_outside_the_allow_list_is_refused_before_it_is_called(
    make_server, settings, homeserver
):
    body = {"access_token": "openid", "matrix_server_name": homeserver.name}
    closed = make_server(settings | {"FEDERATION__ALLOWED_HOMESERVERS": '["a.test"]'})
    assert refused(closed.client.post(REGISTER, json=body), 403, "M_FORBIDDEN")
    assert homeserver.requests == []
    assert homeserver.sni_names == []
    assert closed.rows("accounts") == []

    listed = json.dumps(["a.test", homeserver.name.upper()])
    allowing = make_server(settings | {"FEDERATION__ALLOWED_HOMESERVERS": listed})
    assert allowing.client.post(REGISTER, json=body).status_code == 200


@pytest.mark.requirement("AMB-16", "AUTH-05")
@sqlite_only
def test_name_is_compared_with_the_domain_of_the_user_as_it_was_sent(server, homeserver, register):
    name = f"LocalHost:{homeserver.port}"
    homeserver.openid_users["openid"] = f"@alice:{name}"
    answer = register(name)
    assert answer.status_code == 200
    account = server.client.get(f"{V2}/account", headers=bearer(answer.json["token"]))
    assert account.json == {"user_id": f"@alice:{name}"}
    assert is_unauthorized(register(name.lower()))
    assert is_unauthorized(register(name.upper()))
    assert [row["user_id"] for row in server.rows("accounts")] == [f"@alice:{name}"]


@pytest.mark.requirement("GEN-15")
@sqlite_only
def test_registration_is_limited_by_the_address_that_the_proxies_saw(
    make_server, settings, homeserver
):
    """A client writes what it likes into X-Forwarded-For; only what trusted proxies added counts."""
    limit = {"RATE_LIMITS__LIMITS__REGISTER_IP": "2/h"}
    body = {"access_token": "openid", "matrix_server_name": homeserver.name}

    def statuses(server, *forwarded):
        answers = []
        for values in forwarded:
            headers = Headers([("X-Forwarded-For", value) for value in values])
            answers.append(server.client.post(REGISTER, json=body, headers=headers).status_code)
        return answers

    direct = make_server(settings | limit)
    assert statuses(direct, [], ["1.1.1.1"], ["2.2.2.2"]) == [200, 200, 429]

    behind_one = make_server(settings | limit | {"SERVER__TRUSTED_PROXIES": "1"})
    forged = (["9.9.9.1, 5.5.5.5"], ["9.9.9.2,5.5.5.5"], ["9.9.9.3", "5.5.5.5"], ["x, 5.5.5.5"])
    assert statuses(behind_one, *forged) == [200, 200, 429, 429]
    assert statuses(behind_one, ["5.5.5.6"], ["5.5.5.5"]) == [200, 429]
    # What cannot be read is not believed: the proxy itself is counted then.
    assert statuses(behind_one, ["a"], ["b"], [""], []) == [200, 200, 429, 429]

    behind_two = make_server(settings | limit | {"SERVER__TRUSTED_PROXIES": "2"})
    chains = (["1.1.1.1, 7.7.7.7, 8.8.8.8"], ["2.2.2.2, 7.7.7.7, 8.8.8.9"], ["7.7.7.7, 8.8.8.8"])
    assert statuses(behind_two, *chains) == [200, 200, 429]
    # Fewer entries than proxies: it did not come through all of them.
    assert statuses(behind_two, ["3.3.3.3"], ["4.4.4.4"], ["5.5.5.5"]) == [200, 200, 429]
