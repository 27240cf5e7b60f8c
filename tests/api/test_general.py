"""Conformance, section 1: HTTP, JSON, errors and CORS. Nothing here depends on the database."""

import json
import re
from io import BytesIO

import pytest
from parts.homeserver import FakeHomeserver
from parts.phones import code_sent
from parts.routes import paths_of, routes_of
from parts.server import V1, V2
from parts.validation import refused, sqlite_only

from identity.lookup.hashing import encode_hash

pytestmark = sqlite_only

CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Origin, X-Requested-With, Content-Type, Accept, Authorization",
}
SESSION = {"sid": "sid", "client_secret": "secret"}
THREEPID = {"medium": "email", "address": "a@example.com"}

# What each endpoint that takes JSON needs, and is not refused for its form.
JSON_BODIES = {
    "/account/register": {"access_token": "openid", "matrix_server_name": "hs.test"},
    "/terms": {"user_accepts": []},
    "/lookup": {"algorithm": "sha256", "pepper": "pepper", "addresses": []},
    "/validate/email/requestToken": {
        "email": "a@example.com",
        "client_secret": "secret",
        "send_attempt": 1,
    },
    "/validate/email/submitToken": {**SESSION, "token": "token"},
    "/validate/msisdn/requestToken": {
        "phone_number": "07700900001",
        "country": "GB",
        "client_secret": "secret",
        "send_attempt": 1,
    },
    "/validate/msisdn/submitToken": {**SESSION, "token": "token"},
    "/3pid/bind": {**SESSION, "mxid": "@alice:hs.test"},
    "/3pid/unbind": {**SESSION, "mxid": "@alice:hs.test", "threepid": THREEPID},
}
QUERIES = {
    f"{V2}/3pid/getValidated3pid": SESSION,
    f"{V2}/pubkey/isvalid": {"public_key": "key"},
    f"{V2}/pubkey/ephemeral/isvalid": {"public_key": "key"},
    f"{V1}/pubkey/isvalid": {"public_key": "key"},
    f"{V1}/pubkey/ephemeral/isvalid": {"public_key": "key"},
}
# The POSTs for which the specification keeps form bodies (GEN-18).
TAKE_FORMS = {
    "/validate/email/requestToken",
    "/validate/email/submitToken",
    "/validate/msisdn/requestToken",
    "/validate/msisdn/submitToken",
    "/3pid/bind",
}
# What is not JSON at all, and what is JSON but no object.
NOT_JSON = [b"", b"{", b"{'a': 1}", b'{"a": 1,}', b"\xff\xfe", b'{"a": "\xff"}']
BAD_JSON = [b"[]", b"null", b"1", b'"text"', b"true"]


@pytest.mark.requirement("GEN-01", "GEN-06", "GEN-12", "GEN-13")
def test_answer_of_every_route_has_type_cors_headers_and_errors_of_the_standard_form(server, alice):
    for route in routes_of(server.app):
        for response in (
            route.send(),
            route.send(data=b"{"),
            route.send(alice.token, json={}),
        ):
            assert {name: response.headers[name] for name in CORS} == CORS, route
            if route.is_page:
                continue
            assert response.mimetype == "application/json", route
            if response.status_code >= 400:
                assert isinstance(response.json["errcode"], str), route
                assert isinstance(response.json["error"], str), route


@pytest.mark.requirement("GEN-12", "GEN-13")
def test_cors_headers_are_on_each_kind_of_answer_and_sent_once(make_server, tmp_path):
    terms = tmp_path / "terms.yaml"
    terms.write_text(
        "docs: {terms: {version: 1, langs: {en: {name: Terms, url: 'https://hs.test/1'}}}}"
    )
    server = make_server(
        {
            "RATE_LIMITS__LIMITS__EMAIL_ACCOUNT": "1/h",
            "FEDERATION__ALLOWED_HOMESERVERS": '["hs.test"]',
        }
    )
    gated = make_server({"TERMS__FILE": str(terms)}).account("@alice:hs.test")
    alice = server.account("@alice:hs.test")
    client = server.client

    def fail():
        raise RuntimeError

    first = alice.request_token("a@example.com")
    link = server.mailed()["link"]
    limited = alice.request_token("b@example.com")
    server.sender.before_send = fail
    broken = server.account("@bob:hs.test").request_token("c@example.com")
    register = {"access_token": "x", "matrix_server_name": "other.test"}
    answers = {
        200: first,
        400: client.post(f"{V2}/account/register", data=b"{"),
        401: client.get(f"{V2}/account"),
        403: client.post(f"{V2}/account/register", json=register),
        404: client.get("/nowhere"),
        405: client.put(f"{V2}/lookup"),
        413: client.post(f"{V2}/account/register", data=bytes(2 << 20)),
        429: limited,
        500: broken,
    }
    pages = [client.get(link), client.get(link + "x"), client.get(f"{link}&sid=%00")]
    assert {status: answer.status_code for status, answer in answers.items()} == {
        status: status for status in answers
    }
    assert refused(gated.get("/account"), 403, "M_TERMS_NOT_SIGNED")
    assert {page.mimetype for page in pages} == {"text/html"}
    for response in [*answers.values(), *pages, gated.get("/account")]:
        for name, value in CORS.items():
            assert response.headers.getlist(name) == [value], (response.status, name)
        names = response.headers["Access-Control-Allow-Headers"].split(", ")
        assert "Authorization" in names  # a bare "*" would not cover it


@pytest.mark.requirement("GEN-02", "GEN-04", "GEN-05", "AMB-23")
def test_body_that_is_no_json_object_is_refused_by_its_kind(server, alice):
    constants = [b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}']
    for path in JSON_BODIES:
        for body in [*NOT_JSON, *constants]:
            assert refused(alice.post(path, data=body), 400, "M_NOT_JSON")
        for body in BAD_JSON:
            assert refused(alice.post(path, data=body), 400, "M_BAD_JSON")
    assert server.rows("validation_sessions") == []
    assert server.rows("accepted_terms") == []


@pytest.mark.requirement("GEN-02")
def test_json_is_utf8_both_ways(make_server, tmp_path):
    name = "Conditions générales 利用規約"
    terms = tmp_path / "terms.yaml"
    terms.write_text(
        f"docs: {{terms: {{version: 1, langs: {{fr: {{name: {name}, url: 'https://hs.test/é'}}}}}}}}",
        encoding="utf-8",
    )
    alice = make_server({"TERMS__FILE": str(terms)}).account("@alice:hs.test")
    answer = json.loads(alice.get("/terms").get_data().decode("utf-8"))
    assert answer["policies"]["terms"]["fr"]["name"] == name
    body = '{"user_accepts": ["https://hs.test/é"]}'
    assert refused(alice.post("/terms", data=body.encode("latin-1")), 400, "M_NOT_JSON")
    assert refused(alice.post("/terms", data=body.encode("utf-16")), 400, "M_NOT_JSON")
    assert refused(alice.get("/account"), 403, "M_TERMS_NOT_SIGNED")
    assert alice.post("/terms", data=body.encode("utf-8")).status_code == 200
    assert alice.get("/account").status_code == 200


@pytest.mark.requirement("GEN-03")
@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/octet-stream", "application/json; x=y", "="]
)
def test_json_body_is_read_whatever_its_content_type(server, alice, content_type):
    headers = {} if content_type is None else {"Content-Type": content_type}
    with FakeHomeserver() as homeserver:
        homeserver.openid_users["openid"] = "@alice:hs.test"
        register = JSON_BODIES["/account/register"] | {"matrix_server_name": "bad name"}
        answer = alice.post("/account/register", data=json.dumps(register), headers=headers)
    assert refused(answer, 400, "M_INVALID_PARAM")
    body = json.dumps(JSON_BODIES["/validate/email/requestToken"])
    answer = alice.post("/validate/email/requestToken", data=body, headers=headers)
    assert answer.status_code == 200
    assert [row["sid"] for row in server.rows("validation_sessions")] == [answer.json["sid"]]


@pytest.mark.requirement("GEN-07", "KEY-06")
def test_each_missing_parameter_is_named_in_its_own_error(server, alice):
    def check(send, values):
        for name in values:
            answer = send({key: value for key, value in values.items() if key != name})
            assert refused(answer, 400, "M_MISSING_PARAMS")
            assert name in answer.json["error"]

    for path, body in JSON_BODIES.items():
        if path == "/3pid/unbind":
            # Session and secret may be absent there: a homeserver proves itself otherwise.
            body = {key: body[key] for key in ("mxid", "threepid")}  # noqa: PLW2901
        check(lambda values, path=path: alice.post(path, json=values), body)
    for path, values in QUERIES.items():
        check(lambda given, path=path: alice.get(path, query_string=given), values)
    unbind = JSON_BODIES["/3pid/unbind"]
    check(lambda given: alice.post("/3pid/unbind", json={**unbind, "threepid": given}), THREEPID)
    assert server.rows("validation_sessions") == []
    assert server.rows("statements") == []


@pytest.mark.requirement("GEN-08")
def test_parameter_of_another_json_type_refused(server, alice):
    next_link = {"next_link": "https://hs.test/"}
    optional = {f"/validate/{medium}/requestToken": next_link for medium in ("email", "msisdn")}
    for path, body in JSON_BODIES.items():
        for name, value in (body | optional.get(path, {})).items():
            for wrong in ({}, [], 1, 1.5, True, None, "x", [1]):
                if type(wrong) is type(value) and wrong != [1]:
                    continue
                if name == "send_attempt" and wrong == "x":
                    continue  # SESS-12: a string may be one, if it is decimal
                answer = alice.post(path, json={**body, name: wrong})
                assert refused(answer, 400, "M_INVALID_PARAM"), (path, name, wrong)
    unbind = JSON_BODIES["/3pid/unbind"]
    for name in THREEPID:
        for wrong in ({}, [], 1, None):
            body = {**unbind, "threepid": {**THREEPID, name: wrong}}
            assert refused(alice.post("/3pid/unbind", json=body), 400, "M_INVALID_PARAM")
    assert server.sender.mails == server.text_sender.texts == []
    assert server.rows("validation_sessions") == []


@pytest.mark.requirement("GEN-09")
@pytest.mark.parametrize(
    "path",
    [
        f"{V2}/nope",
        "/_matrix/foo",
        "/_matrix",
        "/_matrix/identity",
        "/_matrix/identity/api/v2",
        f"{V2}/pubkey",
        f"{V2}/pubkey/a/b",
        f"{V2}/pubkey/%00",
        "/",
        "/favicon.ico",
        f"{V2}/../v2",
        f"{V2}/%2e%2e/versions",
    ],
)
def test_unknown_path_is_not_recognized(server, path):
    for method in ("GET", "POST", "DELETE"):
        assert refused(server.client.open(path, method=method), 404, "M_UNRECOGNIZED")


@pytest.mark.requirement("GEN-10")
def test_wrong_method_on_every_path_is_not_recognized_and_names_the_right_ones(server):
    for path, methods in paths_of(server.app).items():
        for method in {"GET", "PUT", "POST", "DELETE", "PATCH", "TRACE", "BREW"} - methods:
            answer = server.client.open(path, method=method)
            assert refused(answer, 405, "M_UNRECOGNIZED"), path
            assert set(re.split(", *", answer.headers["Allow"])) == methods, path


@pytest.mark.requirement("GEN-11")
def test_preflight_of_every_path_is_answered_without_a_token(server):
    preflight = {
        "Origin": "https://app.test",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    for path in paths_of(server.app):
        for slash in ("", "/"):
            answer = server.client.options(path + slash, headers=preflight)
            assert answer.status_code in (200, 204), path
            assert {name: answer.headers[name] for name in CORS} == CORS
            assert int(answer.headers["Access-Control-Max-Age"]) > 0


@pytest.mark.requirement("GEN-11")
def test_preflight_of_a_path_that_is_not_served_is_2xx_so_that_a_page_sees_the_404(server):
    for path in ("/", "/nowhere", f"{V2}/nowhere", f"{V2}/lookup/nowhere", f"{V1}/lookup"):
        answer = server.client.options(path, headers={"Origin": "https://app.test"})
        assert answer.status_code in (200, 204), path
        assert {name: answer.headers[name] for name in CORS} == CORS
        assert refused(server.client.post(path, json={}), 404, "M_UNRECOGNIZED")


@pytest.mark.requirement("GEN-14")
def test_unhandled_fault_is_answered_by_a_fixed_error_without_its_cause(server, alice):
    def fail():
        raise RuntimeError("the cause: /srv/secret.py line 1")

    server.sender.before_send = fail
    answer = alice.request_token("a@example.com")
    assert answer.status_code == 500
    assert answer.mimetype == "application/json"
    request_id = answer.headers["X-Request-Id"]
    assert answer.json == {
        "errcode": "M_UNKNOWN",
        "error": "Internal server error",
        "request_id": request_id,
    }
    assert re.fullmatch("[0-9a-f]{16}", request_id)
    server.sender.before_send = lambda: None
    # The fault left nothing behind that would be in the way of the next request.
    assert alice.request_token("b@example.com").status_code == 200


@pytest.mark.requirement("GEN-14")
def test_fault_behind_a_page_is_answered_alike(server, alice):
    alice.request_token("a@example.com")
    link = server.mailed()["link"]

    def fail(*_arguments, **_more):
        raise ZeroDivisionError("the cause")

    server.services.terms.documents = fail
    server.services.validation.get_session = fail
    server.services.signing_keys.get_public_key = fail
    for path in (f"{V2}/terms", link, f"{V2}/pubkey/ed25519:0"):
        answer = server.client.get(path)
        assert refused(answer, 500, "M_UNKNOWN")
        assert "cause" not in answer.get_data(as_text=True)
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.requirement("GEN-15")
def test_exceeded_limit_says_after_how_long_to_try_again(make_server, clock):
    server = make_server({"RATE_LIMITS__LIMITS__HASH_DETAILS_ACCOUNT": "2/h"})
    alice = server.account("@alice:hs.test")
    assert [alice.get("/hash_details").status_code for _ in range(2)] == [200, 200]
    answer = alice.get("/hash_details")
    assert refused(answer, 429, "M_LIMIT_EXCEEDED")
    wait_ms = answer.json["retry_after_ms"]
    assert 0 < wait_ms <= 3_600_000
    assert answer.headers["Retry-After"] == str(-(-wait_ms // 1_000))
    assert server.account("@bob:hs.test").get("/hash_details").status_code == 200

    clock.advance(ms=wait_ms - 1)
    assert alice.get("/hash_details").status_code == 429
    clock.advance(ms=1)
    assert alice.get("/hash_details").status_code == 200


class CountingStream(BytesIO):
    """A body that counts what is read of it."""

    def __init__(self, body):
        super().__init__(body)
        self.read_bytes = 0

    def read(self, size=-1):
        piece = super().read(size)
        self.read_bytes += len(piece)
        return piece

    def readinto(self, buffer):
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.requirement("GEN-16")
def test_oversized_body_is_refused_before_it_is_read(server, alice):
    for path in ("/lookup", "/account/register", "/validate/email/requestToken", "/3pid/bind"):
        body = CountingStream(bytes(2 << 20))
        answer = alice.post(path, input_stream=body, content_length=2 << 20)
        assert refused(answer, 413, "M_TOO_LARGE")
        assert body.read_bytes == 0
    form = CountingStream(b"sid=" + b"a" * (2 << 20))
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = alice.post("/3pid/bind", input_stream=form, content_length=2 << 20, headers=headers)
    assert refused(answer, 413, "M_TOO_LARGE")
    assert form.read_bytes == 0


@pytest.mark.requirement("GEN-16")
def test_body_of_unknown_length_is_read_up_to_the_limit(server, alice):
    body = CountingStream(bytes(8 << 20))
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    answer = alice.post("/lookup", input_stream=body, environ_overrides=chunked)
    assert refused(answer, 413, "M_TOO_LARGE")
    assert body.read_bytes <= server.config.server.request_body_limit + 2 * 65_536


@pytest.mark.requirement("GEN-16")
def test_lookup_of_ten_thousand_hashes_fits_in_a_body(server, alice):
    server.bind_directly("a@example.com", "@a:hs.test")
    wanted = server.hash_of("a@example.com")
    addresses = [encode_hash(number.to_bytes(32)) for number in range(9_999)]
    pepper = alice.get("/hash_details").json["lookup_pepper"]
    body = {"algorithm": "sha256", "pepper": pepper, "addresses": [*addresses, wanted]}
    assert len(json.dumps(body)) > 460_000
    answer = alice.post("/lookup", json=body)
    assert answer.json == {"mappings": {wanted: "@a:hs.test"}}


@pytest.mark.requirement("GEN-16")
def test_limit_of_bodies_is_a_setting(make_server):
    alice = make_server({"SERVER__REQUEST_BODY_LIMIT": "64KiB"}).account("@alice:hs.test")

    def post(size):
        return alice.post("/terms", data=b'{"user_accepts": []}'.ljust(size))

    assert post(65_536).status_code == 200
    assert refused(post(65_537), 413, "M_TOO_LARGE")


@pytest.mark.requirement("GEN-17")
def test_every_path_is_answered_alike_with_a_trailing_slash(server):
    assert server.client.get(f"{V2}/").json == {}
    for route in routes_of(server.app):
        for account in ("@alice:hs.test", None):
            plain, slashed = (
                route.send(account and server.account(account).token, path=path, data=b"{")
                for path in (route.path, f"{route.path}/")
            )
            assert plain.status_code == slashed.status_code, route
            assert plain.status_code not in range(300, 400)
            assert plain.get_data() == slashed.get_data(), route
    again = server.account("@alice:hs.test")
    assert again.post("/account/logout/").json == {}
    assert refused(again.get("/account/"), 401, "M_UNAUTHORIZED")


@pytest.mark.requirement("GEN-17", "GEN-22")
def test_no_path_is_answered_by_a_redirect_of_the_router(server):
    for path in ("/_matrix/identity//v2", "//_matrix/identity/v2", "/_matrix//identity/versions"):
        answer = server.client.get(path, headers={"Host": "evil.test"})
        assert refused(answer, 404, "M_UNRECOGNIZED")
        assert "Location" not in answer.headers


@pytest.mark.requirement("GEN-18", "AMB-22")
def test_form_bodies_are_taken_by_the_posts_that_keep_them(server, alice):
    request = {"email": "a@example.com", "client_secret": "secret", "send_attempt": "1"}
    answer = alice.post("/validate/email/requestToken", data=request)
    assert answer.status_code == 200
    mailed = server.mailed()
    submit = {name: mailed[name] for name in ("sid", "client_secret", "token")}
    assert alice.post("/validate/email/submitToken", data=submit).json == {"success": True}
    bind = {"sid": mailed["sid"], "client_secret": "secret", "mxid": alice.user_id}
    assert alice.post("/3pid/bind", data=bind).json["address"] == "a@example.com"
    assert server.found("a@example.com") == alice.user_id
    asked = {"country": "GB", "phone_number": "07700900001", "client_secret": "s"}
    answer = alice.post("/validate/msisdn/requestToken", data={**asked, "send_attempt": "1"})
    code = {"sid": answer.json["sid"], "client_secret": "s", "token": code_sent(server)}
    assert alice.post("/validate/msisdn/submitToken", data=code).json == {"success": True}


@pytest.mark.requirement("GEN-18", "AMB-22")
def test_form_bodies_are_refused_everywhere_else(server, alice):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    for path, body in JSON_BODIES.items():
        if path in TAKE_FORMS:
            continue
        form = dict.fromkeys(body, "x")
        assert refused(alice.post(path, data=form), 400, "M_NOT_JSON")
    # Elsewhere the type of a body counts for nothing.
    answer = alice.post("/terms", data=b'{"user_accepts": []}', headers=headers)
    assert answer.json == {}


@pytest.mark.requirement("GEN-18", "GEN-07", "GEN-02")
def test_faulty_form_bodies_are_refused(alice):
    path, form = "/validate/email/submitToken", "application/x-www-form-urlencoded"

    def post(body):
        return alice.post(path, data=body, headers={"Content-Type": form})

    assert refused(post(b""), 400, "M_MISSING_PARAMS")
    assert refused(post(b"sid=a&client_secret=b"), 400, "M_MISSING_PARAMS")
    assert refused(post(b"sid=\xff&client_secret=b&token=c"), 400, "M_NOT_JSON")
    assert refused(post(b"sid=%ff&client_secret=b&token=c"), 400, "M_INVALID_PARAM")
    assert refused(post(b"sid=%00&client_secret=b&token=c"), 400, "M_INVALID_PARAM")
    assert refused(post(b"&".join(b"a=b" for _ in range(200))), 400, "M_INVALID_PARAM")


@pytest.mark.requirement("GEN-19")
def test_unknown_keys_are_ignored(server, alice):
    extra = {"x": {"y": [1, 2.5, None, True]}, "address": "b@example.com", "": ""}
    body = JSON_BODIES["/validate/email/requestToken"] | extra
    answer = alice.post("/validate/email/requestToken", json=body)
    assert answer.status_code == 200
    assert [recipient for recipient, _ in server.sender.mails] == ["a@example.com"]
    assert alice.post("/terms", json={"user_accepts": [], **extra}).json == {}
    key = alice.get("/pubkey/ed25519:0").json["public_key"]
    query = {"public_key": key, "x": "y"}
    assert alice.get("/pubkey/isvalid", query_string=query).json == {"valid": True}


@pytest.mark.requirement("GEN-20")
def test_no_route_tells_the_addresses_of_a_user_or_of_an_address(make_server):
    server = make_server({"LOOKUP__ALGORITHMS": '["sha256", "none"]'})
    alice = server.account("@alice:hs.test")
    mine = ["canary1@example.com", "canary2@example.com"]
    for number, address in enumerate(mine):
        assert alice.bind(address, f"secret{number}").status_code == 200
    pepper = alice.get("/hash_details").json["lookup_pepper"]

    def mentions(answer, address):
        return address in answer.get_data(as_text=True)

    for route in routes_of(server.app):
        for value, hidden in ((alice.user_id, mine), (mine[0], mine[1:]), ("canary", mine)):
            names = {"mxid", "user_id", "address", "q", "search", "sender", *route.names}
            given = dict.fromkeys(names, value)
            token = server.account("@stranger:elsewhere.test").token
            answers = [
                route.send(token, query_string=given),
                route.send(token, json=given),
                route.send(token, path=re.sub("<[^>]*>", value, route.rule)),
            ]
            for answer in answers:
                assert not any(mentions(answer, address) for address in hidden), route

    def find(*addresses):
        body = {"algorithm": "none", "pepper": pepper, "addresses": addresses}
        answer = server.account("@stranger:elsewhere.test").post("/lookup", json=body)
        assert answer.status_code == 200, answer.json
        return answer.json["mappings"]

    assert find("canary1@example.com email") == {"canary1@example.com email": alice.user_id}
    partial = ["canary email", "canary%@example.com email", "canary_@example.com email"]
    wild = ["* email", "% email", "*@example.com email", "@example.com email", "example.com email"]
    by_user = [f"{alice.user_id} mxid", f"{alice.user_id} email", alice.user_id]
    assert find(*partial, *wild, *by_user) == {}


@pytest.mark.requirement("GEN-22")
def test_links_use_the_configured_url_whatever_the_request_claims(make_server):
    server = make_server({"SERVER__PUBLIC_URL": "https://id.example.org/prefix"})
    alice = server.account("@alice:hs.test")
    forged = {
        "Host": "evil.test",
        "X-Forwarded-Host": "evil.test",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Prefix": "/evil",
        "Forwarded": "host=evil.test;proto=http",
    }
    body = JSON_BODIES["/validate/email/requestToken"]
    path = "https://evil.test" + V2 + "/validate/email/requestToken"
    assert alice.post("/validate/email/requestToken", json=body, headers=forged).status_code == 200
    again = {**body, "send_attempt": 2}
    assert alice.post(V2 + "/validate/email/requestToken", json=again, base_url=path[:17]).json
    assert len(server.sender.mails) == 2
    for _, message in server.sender.mails:
        assert "evil" not in message.as_string()
        for kind in ("plain", "html"):
            text = message.get_body((kind,)).get_content()
            links = re.findall(r"https?://[^\s\"'<>]+", text)
            assert any(link.startswith("https://id.example.org/prefix/_matrix/") for link in links)
    link = server.mailed()["link"].removeprefix("https://id.example.org/prefix")
    page = server.client.get(link, headers=forged)
    assert page.status_code == 200
    assert "evil" not in page.get_data(as_text=True)
