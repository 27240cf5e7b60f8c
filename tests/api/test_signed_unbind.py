"""Unbind by the signature of a homeserver: conformance.md sections 12 and 16, against a homeserver
that publishes its keys over TLS."""

import json

import pytest
from parts.homeserver import KEYS, FakeHomeserver, Reply
from parts.invitations import REACHABLE, lead, limits
from parts.parallel import second_server
from parts.server import V1, V2
from parts.validation import UNLIMITED, refused, sqlite_only
from parts.vectors import load
from parts.xmatrix import as_specified, as_synapse, signatures
from signedjson.key import decode_signing_key_base64, generate_signing_key

ALICE, EMAIL = "@alice:hs.test", "alice@example.com"
PATH = f"{V2}/3pid/unbind"
SETTINGS = {
    **UNLIMITED,
    **REACHABLE,
    "SERVER__NAME": "id.test",
    "SERVER__PUBLIC_URL": "https://id.test",
}
# What Synapse reads as "unbinding is not supported", and then forgets the binding.
NOT_SUPPORTED = {400, 404, 501}


@pytest.fixture
def server(make_server, homeserver, resolver):
    """Alice's address is bound."""
    server = make_server(SETTINGS, resolver=resolver)
    server.bind_directly(EMAIL, ALICE)
    return server


def unbinding(mxid=ALICE, address=EMAIL):
    return {"mxid": mxid, "threepid": {"medium": "email", "address": address}}


def send(server, authorization, body=None, path=PATH, **arguments):
    """`authorization`: the values of all headers of that name."""
    headers = [("Authorization", value) for value in authorization]
    body = unbinding() if body is None else body
    return server.client.post(path, json=body, headers=headers, **arguments)


def signed(homeserver, body=None, uri=PATH, destination="id.test"):
    return as_synapse(homeserver, uri, unbinding() if body is None else body, destination)


def unbound(server, response):
    assert (response.status_code, response.json) == (200, {})
    assert server.found(EMAIL) is None
    (row,) = server.rows("associations")
    assert row["mxid"] is None
    assert [json.loads(row["signed"])["mxid"] for row in server.rows("statements")][-1] is None
    return True


def kept(server, response, status, errcode):
    """Refused, and nothing has changed."""
    assert refused(response, status, errcode)
    assert response.status_code not in NOT_SUPPORTED
    assert server.found(EMAIL) == ALICE
    assert len(server.rows("statements")) == 1
    return True


def with_other_signature(header):
    start = header.index('sig="') + len('sig="')
    other = "A" if header[start] != "A" else "B"
    return header[:start] + other + header[start + 1 :]


@pytest.mark.requirement("UNB-03", "UNB-04", "FED-12")
def test_homeserver_unbinds_what_is_bound_to_its_own_user(server, homeserver):
    assert unbound(server, send(server, signed(homeserver)))
    assert homeserver.paths() == [KEYS]


@pytest.mark.requirement("UNB-03", "UNB-07")
def test_homeserver_of_another_user_is_refused(server, homeserver, resolver):
    """The part after the first colon counts, to the letter."""
    with FakeHomeserver("other.test") as other:
        other.server_name = "other.test"
        lead(resolver, "other.test", other)
        assert kept(server, send(server, signed(other)), 403, "M_FORBIDDEN")
        for mxid in (
            "@alice:hs.test:other.test",
            "@alice:hs.test.other.test",
            "@alice:xother.test",
            "@alice:OTHER.test",
            "@alice:other.test:8448",
            "@alice:other.test.",
            "@alice@other.test:hs.test",
            "@alice:",
            "alice",
        ):
            body = unbinding(mxid)
            response = send(server, signed(other, body), body)
            assert kept(server, response, 403, "M_FORBIDDEN"), mxid


@pytest.mark.requirement("UNB-04", "AMB-12")
def test_signature_suffices_without_a_token_and_with_terms(
    make_server, server, resolver, homeserver, tmp_path
):
    terms = tmp_path / "terms.yaml"
    terms.write_text(
        "docs: {privacy: {version: '1', langs: {en: {name: P, url: 'https://id.example.org/'}}}}"
    )
    settings = {**SETTINGS, "TERMS__FILE": str(terms)}
    gated = second_server(make_server, server, resolver=resolver, **settings)
    response = send(gated, signed(homeserver))
    assert (response.status_code, response.json) == (200, {})
    assert server.found(EMAIL) is None


@sqlite_only
@pytest.mark.requirement("UNB-04", "FED-16")
def test_signature_counts_beside_an_access_token(server, homeserver):
    """In headers of their own, which servers in front join by commas, or joined already."""
    bob = server.account("@bob:elsewhere.test")
    for bearer in (f"Bearer {bob.token}", "Bearer bogus"):
        for authorization in (
            [bearer, *signed(homeserver)],
            [*signed(homeserver), bearer],
            [f"{bearer}, {signed(homeserver)[0]}"],
        ):
            server.bind_directly(EMAIL, ALICE)
            response = send(server, authorization)
            assert (response.status_code, response.json) == (200, {}), authorization[0][:10]
            assert server.found(EMAIL) is None


@pytest.mark.requirement("UNB-05", "UNB-07")
def test_signature_that_is_not_good_is_refused(server, homeserver):
    (good,) = signed(homeserver)
    homeserver.old_keys = [generate_signing_key("old")]
    homeserver.signing_keys.append(generate_signing_key("unpublished"))
    _, unpublished = signed(homeserver)
    homeserver.signing_keys.pop()
    other_body = signed(homeserver, unbinding(address="other@example.com"))
    for header in (
        with_other_signature(good),
        good.replace("a_1", "a_2"),
        unpublished,
        good.replace('sig="', 'sig="!'),
        *other_body,
        *signed(homeserver, uri="/_matrix/identity/v2/3pid/bind"),
        *as_synapse(homeserver, PATH, unbinding(), "id.test", "PUT"),
    ):
        assert kept(server, send(server, [header]), 403, "M_FORBIDDEN"), header


@sqlite_only
@pytest.mark.requirement("UNB-07", "FED-16", "FED-18", "FED-22")
def test_authorization_that_cannot_be_checked_is_unauthorized(server, homeserver):
    (good,) = signed(homeserver)
    for authorization in (
        [],
        ["X-Matrix"],
        ["X-Matrix origin=hs.test"],
        [good.replace("hs.test", "a/b")],
        [good.replace("hs.test", "")],
        [good.replace("ed25519:a_1", "rsa:a_1")],
        [good + ' origin="x"'],
        signed(homeserver, destination="other.test"),
        ["Bearer x"],
        ["Basic eDp5"],
    ):
        assert kept(server, send(server, authorization), 401, "M_UNAUTHORIZED"), authorization
    assert homeserver.requests == []  # nobody is asked


@pytest.mark.requirement("UNB-08")
def test_unbinding_what_is_not_bound_to_that_user_changes_nothing(server, homeserver):
    """It is also what makes a request that is sent again harmless."""
    for body in (unbinding("@bob:hs.test"), unbinding(address="never@example.com")):
        response = send(server, signed(homeserver, body), body)
        assert (response.status_code, response.json) == (200, {})
    assert server.found(EMAIL) == ALICE
    authorization = signed(homeserver)
    for _ in range(2):
        assert unbound(server, send(server, authorization))
    assert len(server.rows("statements")) == 2
    server.bind_directly(EMAIL, "@bob:elsewhere.test")
    assert send(server, authorization).status_code == 200
    assert server.found(EMAIL) == "@bob:elsewhere.test"


@pytest.mark.requirement("UNB-10")
def test_address_is_canonicalised_before_it_is_unbound(server, homeserver):
    body = unbinding(address="ALICE@Example.com")
    assert unbound(server, send(server, signed(homeserver, body), body))


@pytest.mark.requirement("UNB-11", "UNB-07")
def test_homeserver_whose_keys_cannot_be_fetched_is_a_fault_that_passes(server, clock, homeserver):
    authorization = signed(homeserver)
    for answer in (Reply(500), Reply(404), Reply(200, b"{"), Reply.json({}), Reply(raw=[])):
        homeserver.answers[KEYS] = answer
        assert kept(server, send(server, authorization), 502, "M_UNKNOWN"), answer
        clock.advance(minutes=1, seconds=1)


@sqlite_only
@pytest.mark.requirement("UNB-11", "UNB-07")
def test_homeserver_that_does_not_exist_is_a_fault_that_passes(server, homeserver):
    homeserver.server_name = "nowhere.test"
    body = unbinding("@alice:nowhere.test")
    response = send(server, signed(homeserver, body), body)
    assert kept(server, response, 502, "M_UNKNOWN")


@pytest.mark.requirement("FED-14", "UNB-05")
def test_keys_that_have_expired_are_no_good(server, clock, homeserver):
    homeserver.keys_valid_until_ms = clock.now_ms()
    assert kept(server, send(server, signed(homeserver)), 403, "M_FORBIDDEN")


@pytest.mark.requirement("FED-15")
def test_many_bad_requests_cost_few_fetches(server, homeserver):
    (good,) = signed(homeserver)
    for number in range(100):
        response = send(server, [good.replace("a_1", f"b_{number}")])
        assert response.status_code == 403
    assert homeserver.paths().count(KEYS) <= 2
    assert unbound(server, send(server, [good]))


@sqlite_only
@pytest.mark.requirement("FED-15")
def test_signed_requests_of_one_network_are_limited(make_server, homeserver, resolver):
    settings = {**SETTINGS, "RATE_LIMITS__ENABLED": "true", **limits(signed_request_ip="3/h")}
    server = make_server(settings, resolver=resolver)
    server.bind_directly(EMAIL, ALICE)
    (good,) = signed(homeserver)
    for _ in range(3):
        assert send(server, [with_other_signature(good)]).status_code == 403
    assert refused(send(server, [good]), 429, "M_LIMIT_EXCEEDED")
    assert server.found(EMAIL) == ALICE


@pytest.mark.requirement("FED-19")
@pytest.mark.parametrize("key", ["destination_is", "destination"])
def test_published_vectors_are_taken(server, homeserver, key):
    vector = load("signed_requests")
    homeserver.signing_keys = [
        decode_signing_key_base64("ed25519", vector["key_version"], vector["seed"])
    ]
    signature = vector["signatures"][key]
    header = f'X-Matrix origin="hs.test",key="ed25519:1",sig="{signature}",destination="id.test"'
    body = vector["content"]
    assert kept(server, send(server, [with_other_signature(header)], body), 403, "M_FORBIDDEN")
    assert unbound(server, send(server, [header], body))


@pytest.mark.requirement("FED-17", "FED-18", "FED-19")
def test_both_ways_to_sign_are_taken(server, homeserver):
    (as_in_reality,) = signed(homeserver)
    (as_in_the_book,) = as_specified(homeserver, PATH, unbinding(), "id.test")
    for header in (
        as_in_reality,
        as_in_the_book,
        as_in_reality.replace("sig=", "signature="),
        as_in_reality.replace(',destination="id.test"', ""),
        as_in_the_book.replace(',destination="id.test"', ""),
    ):
        server.bind_directly(EMAIL, ALICE)
        assert unbound(server, send(server, [header]))


@sqlite_only
@pytest.mark.requirement("FED-20")
def test_request_for_any_of_our_names_is_for_us(make_server, homeserver, resolver):
    server = make_server(
        {
            **SETTINGS,
            "SERVER__PUBLIC_URL": "https://matrix.id.test:8443/id/server",
            "SERVER__ALIASES": '["old.id.test", "old.id.test:4433"]',
        },
        resolver=resolver,
    )
    for name in (
        "id.test",
        "matrix.id.test:8443",
        "matrix.id.test:8443/id/server",
        "old.id.test",
        "old.id.test:4433",
        "ID.test",
    ):
        server.bind_directly(EMAIL, ALICE)
        assert unbound(server, send(server, signed(homeserver, destination=name))), name
    server.bind_directly(EMAIL, ALICE)
    for name in ("matrix.id.test", "evil.test", "id.test:8448", "xid.test", "old.id.test:1", ""):
        response = send(server, signed(homeserver, destination=name))
        assert refused(response, 401, "M_UNAUTHORIZED"), name
    # What is not said is not taken for granted either: signed for another, without saying so.
    made = signatures(homeserver, PATH, unbinding(), destination_is="evil.test")["ed25519:a_1"]
    header = f'X-Matrix origin="hs.test",key="ed25519:a_1",sig="{made}"'
    assert refused(send(server, [header]), 403, "M_FORBIDDEN")
    assert server.found(EMAIL) == ALICE


@sqlite_only
@pytest.mark.requirement("FED-21")
def test_uri_and_body_are_verified_as_they_were_signed(server, homeserver):
    """The target with its query, a trailing slash, the specification's path behind a proxy; and
    the body in whatever form of JSON."""
    spaced = json.dumps(unbinding(), indent=3).encode()
    for uri, sent_to in (
        (PATH, PATH),
        (f"{PATH}?a=b%20c", f"{PATH}?a=b%20c"),
        (f"{PATH}/", f"{PATH}/"),
        (PATH, f"{PATH}/"),
    ):
        server.bind_directly(EMAIL, ALICE)
        headers = {"Authorization": signed(homeserver, uri=uri)[0]}
        assert unbound(server, server.client.post(sent_to, data=spaced, headers=headers)), uri
    server.bind_directly(EMAIL, ALICE)
    other = signed(homeserver, uri=f"{PATH}?a=b")
    assert refused(send(server, other, path=f"{PATH}?a=c"), 403, "M_FORBIDDEN")


@sqlite_only
@pytest.mark.requirement("FED-22")
def test_one_good_signature_of_several_suffices(server, homeserver):
    (good,) = signed(homeserver)
    bad = good.replace("a_1", "a_2")
    for authorization in ([bad, good], [good, bad], [f"{bad}, {good}"]):
        server.bind_directly(EMAIL, ALICE)
        assert unbound(server, send(server, authorization))


@pytest.mark.requirement("LEG-14")
def test_legacy_path_is_signed_as_it_is(make_server, homeserver, resolver):
    server = make_server({**SETTINGS, "LEGACY_API__OPEN": "true"}, resolver=resolver)
    server.bind_directly(EMAIL, ALICE)
    path = f"{V1}/3pid/unbind"
    assert kept(server, send(server, signed(homeserver), path=path), 403, "M_FORBIDDEN")
    assert kept(server, send(server, [], path=path), 401, "M_UNAUTHORIZED")
    assert unbound(server, send(server, signed(homeserver, uri=path), path=path))


@pytest.mark.requirement("LEG-14", "LEG-16")
def test_legacy_path_is_off_by_default(server, homeserver):
    path = f"{V1}/3pid/unbind"
    response = send(server, signed(homeserver, uri=path), path=path)
    assert refused(response, 404, "M_UNRECOGNIZED")
    assert server.found(EMAIL) == ALICE
