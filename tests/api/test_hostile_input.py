"""Hostile input on every route, new ones included: never a fault of ours, never an echo of it.

Security, row 38 (experiment E17 in small) and row 19.
"""

import re
from itertools import chain, count
from urllib.parse import quote

import pytest
from parts.routes import routes_of
from parts.server import V1
from parts.validation import UNLIMITED, sqlite_only
from test_general import JSON_BODIES

from identity.app import create_internal_app

CANARY = "<b>canary</b> https://evil.test"

# Texts that are no JSON for us, though most are for some decoder.
UNPARSABLE = {
    "nothing": b"",
    "only a space": b" ",
    "an open object": b"{",
    "a lone word": b"undefined",
    "something behind the object": b"{} {}",
    "a comment": b"{} // x",
    "invalid UTF-8": b'{"a": "\xff\xfe"}',
    "an encoded surrogate": b'{"a": "\xed\xa0\x80"}',
    "an overlong encoding": b'{"a": "\xc0\x80"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "a number beyond floats": b'{"a": 1e999}',
    "an integer of 10,000 digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "a negative one": b'{"a": -' + b"9" * 10_000 + b"}",
    "2^53": b'{"a": 9007199254740992}',
    "a leading zero": b'{"a": 007}',
    "a key that comes twice": b'{"a": 1, "a": 1}',
    "a key that comes twice below": b'{"a": [{"b": 1, "\\u0062": 2}]}',
    "a lone surrogate": b'{"a": "\\ud800"}',
    "a surrogate in a key": b'{"\\udfff": 1}',
    "NUL": b'{"a": "\\u0000"}',
    "NUL in a key": b'{"a\\u0000": 1}',
    "NUL as it is": b'{"a": "\x00"}',
    "a raw control character": b'{"a": "\n"}',
    "33 levels": b'{"a": ' + b"[" * 32 + b"]" * 32 + b"}",
    "100,000 levels": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 levels of objects": b'{"a":' * 100_000,
    "100,000 levels that are never closed": b"[" * 100_000,
}

# Values of every JSON type, and strings that some part of a server may stumble over.
VALUES = [
    None,
    True,
    -1,
    2**53 - 1,
    1.5e300,
    [],
    {},
    [None],
    [[[[{}]]]],
    ["x"] * 2_000,
    {"medium": None, "address": [], "a": {"b": "c"}},
    "",
    " ",
    "x" * 50_000,
    "é" * 300,
    "@",
    "@:",
    "a@b@c",
    "@a:b:c:99999",
    "ed25519:0",
    "\ufffd\ufeff\u202e\u2028",
    "\r\nBcc: a@b",
    "%00%ff",
    "'; --",
    CANARY,
]
# Parameters that routes read without naming them.
MORE_NAMES = {
    "/store-invite": ("room_name", "room_type", "sender_display_name", "room_avatar_url"),
    "/bulk_lookup": ("threepids",),
}
# As they stand in a query or a form, percent-encoded.
ENCODED = ["", "%00", "%ff", "%ed%a0%80", "%", "%zz", "+", "%0d%0a", "x" * 5_000, quote(CANARY)]

HEADERS = [
    ("Host", "evil.test"),
    ("Host", "a/b"),
    ("Host", "é".encode().decode("latin-1")),
    ("Host", "x" * 2_000),
    ("Content-Type", "application/x-www-form-urlencoded; charset=utf-99"),
    ("Content-Type", "multipart/form-data"),
    ("Content-Type", "multipart/form-data; boundary=x"),
    ("Content-Type", "\xff"),
    ("Content-Encoding", "gzip"),
    ("Content-Length", "x"),
    ("Content-Length", "-1"),
    ("X-Forwarded-For", "\xff, [::1, 1.2.3.4.5"),
    ("Authorization", "Bearer \xff"),
    ("Authorization", "Bearer " + "x" * 5_000),
    ("Authorization", "X-Matrix origin=\xff,key=,sig"),
    ("Accept-Language", "x-" * 1_000 + ",*;q=\xff"),
    ("Accept", "application/" + "x" * 1_000),
    ("Cookie", "a=\xff; \x01"),
    ("Range", "bytes=x-"),
    ("If-Modified-Since", "\xff"),
]


@pytest.fixture
def server(make_server):
    # Nobody is called, and nothing is limited: every request is looked at.
    return make_server(
        UNLIMITED
        | {
            "FEDERATION__ALLOWED_HOMESERVERS": '["hs.test"]',
            "VALIDATION__MAX_WRONG_TOKENS": "100",
            "SERVER__TRUSTED_PROXIES": "1",
            "LEGACY_API__OPEN": "true",
        }
    )


@pytest.fixture
def usual(server):
    """What a route gets for all parameters but one: as good as it can be."""
    alice = server.account("@alice:hs.test")
    session = alice.validate("a@example.com")
    pepper = alice.get("/hash_details").json["lookup_pepper"]
    values = {
        **session,
        "token": server.mailed()["token"],
        "mxid": alice.user_id,
        "threepid": {"medium": "email", "address": "a@example.com"},
        "medium": "email",
        "address": "new@example.com",
        "room_id": "!room:hs.test",
        "sender": alice.user_id,
        "email": "a@example.com",
        "send_attempt": 1,
        "algorithm": "sha256",
        "pepper": pepper,
        "addresses": [server.hash_of("a@example.com")],
        "user_accepts": [],
        "access_token": "openid",
        "matrix_server_name": "elsewhere.test",
    }
    numbers = count()

    def of(route):
        given = {name: values.get(name, "x") for name in route.names}
        if route.path.endswith("/requestToken"):
            # Each of them is a new session.
            given["client_secret"] = f"secret{next(numbers)}"
        return given

    return of


def every_route(server):
    return [*routes_of(server.app), *routes_of(create_internal_app(server.services))]


def names_of(route):
    more = (names for end, names in MORE_NAMES.items() if route.rule.endswith(end))
    return (*route.names, *chain.from_iterable(more))


def check(route, answer, stimulus):
    """A refusal, or a harmless success, in the form of the API."""
    shown = answer.get_data(as_text=True)
    context = (str(route), stimulus, answer.status, shown[:200])
    assert answer.status_code < 500, context
    # What was accepted may be shown to whom it concerns; on a page, as text.
    if answer.status_code >= 400:
        assert "canary" not in shown, context
    elif route.is_page:
        assert "<b>canary" not in shown, context
    assert "Traceback" not in shown, context
    if route.is_page and answer.mimetype == "text/html":
        return
    assert answer.mimetype == "application/json", context
    assert answer.status_code not in range(300, 400), context
    if answer.status_code >= 400:
        assert re.fullmatch("M_[A-Z_]+", answer.json["errcode"]), context
        assert isinstance(answer.json["error"], str), context


@pytest.mark.requirement("GEN-04", "GEN-05")
@sqlite_only
def test_text_that_is_no_json_is_refused_by_every_endpoint_that_takes_json(server):
    alice = server.account("@alice:hs.test")
    for kind, body in UNPARSABLE.items():
        for path in JSON_BODIES:
            answer = alice.post(path, data=body)
            assert (answer.status_code, answer.json["errcode"]) == (400, "M_NOT_JSON"), (path, kind)
    for route in every_route(server):
        token = server.account("@bob:hs.test").token
        for kind, body in UNPARSABLE.items():
            check(route, route.send(token, data=body), kind)


@pytest.mark.requirement("GEN-06", "GEN-08")
def test_hostile_value_of_any_parameter_in_json_is_no_fault_on_any_route(server, usual):
    for route in every_route(server):
        token = server.account("@alice:hs.test").token
        for name in names_of(route) or ("x",):
            for value in VALUES:
                answer = route.send(token, json={**usual(route), name: value})
                check(route, answer, (name, str(value)[:50]))
    assert server.account("@alice:hs.test").bind("b@example.com").status_code == 200


def test_hostile_value_of_any_parameter_in_query_and_form_is_no_fault_on_any_route(server, usual):
    for route in every_route(server):
        token = server.account("@alice:hs.test").token
        for name in (*names_of(route), "a[b]", "%00", quote(CANARY)):
            for value in ENCODED:
                given = {key: quote(str(text)) for key, text in usual(route).items()}
                encoded = "&".join(f"{key}={text}" for key, text in {**given, name: value}.items())
                if route.method == "POST":
                    form = {"Content-Type": "application/x-www-form-urlencoded"}
                    answer = route.send(token, data=encoded, headers=form)
                    check(route, answer, ("form", name, value[:50]))
                if route.method != "POST" or route.path.startswith(V1):
                    answer = route.send(token, query_string=encoded)
                    check(route, answer, ("query", name, value[:50]))


def test_hostile_query_beside_a_good_body_is_no_fault_on_any_route(server, usual):
    for route in every_route(server):
        token = server.account("@alice:hs.test").token
        for name in ("brand", "%ff"):
            for value in ENCODED:
                query = f"{name}={value}&{name}={value}"
                answer = route.send(token, query_string=query, json=usual(route))
                check(route, answer, (name, value[:50]))


def test_hostile_part_of_a_path_is_no_fault(server):
    parts = [*ENCODED, "..", ".", "%2e%2e", "%2f", "a" * 9_000, "%e2%80%ae", "ed25519:0%00"]
    for route in every_route(server):
        for part in parts:
            for path in (
                re.sub("<[^>]*>", part, route.rule),
                f"{route.path}/{part}",
                f"{route.path}{part}",
            ):
                check(route, route.send(path=path), path[:80])


@sqlite_only
def test_hostile_header_is_no_fault_on_any_route(server):
    for route in every_route(server):
        token = server.account("@alice:hs.test").token
        for name, value in HEADERS:
            headers = {"Authorization": f"Bearer {token}", name: value}
            check(route, route.send(data=b"{}", headers=headers), (name, value[:50]))
