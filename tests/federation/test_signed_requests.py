"""Requests that a real homeserver signed, checked with the keys that it publishes over TLS."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts import vectors
from parts.clock import FakeClock
from parts.homeserver import KEYS, FakeHomeserver, Reply
from parts.xmatrix import as_specified, as_synapse, signatures
from signedjson.key import decode_signing_key_base64, generate_signing_key
from structlog.testing import capture_logs

from identity.clock import DAY_MS, MINUTE_MS
from identity.errors import (
    Forbidden,
    HomeserversBusy,
    HomeserverUnreachable,
    Unauthorized,
)
from identity.federation.keys import HomeserverKeys
from identity.federation.requests import SignedRequests
from identity.federation.xmatrix import MAX_SIGNATURES

UNBIND = "/_matrix/identity/v2/3pid/unbind"
BODY = {
    "mxid": "@alice:hs.test",
    "threepid": {"medium": "email", "address": "alice@example.com"},
}
OUR_NAMES = ("id.test", "ip.test:8443", "ip.test:8443/a/b", "old.test")


@pytest.fixture
def requests(make_client, clock) -> SignedRequests:
    return SignedRequests(HomeserverKeys(make_client(), clock))


def verify(
    requests: SignedRequests,
    headers: list[str],
    *,
    method: str = "POST",
    uris: tuple[str, ...] = (UNBIND,),
    content: dict = BODY,
    our_names: tuple[str, ...] = OUR_NAMES,
) -> str:
    return str(requests.verify(method, uris, headers, content, our_names))


def refused(requests: SignedRequests, headers: list[str], **changes) -> None:
    with pytest.raises(Forbidden):
        verify(requests, headers, **changes)


def unauthorized(requests: SignedRequests, headers: list[str], **changes) -> None:
    with pytest.raises(Unauthorized):
        verify(requests, headers, **changes)


def flipped(headers: list[str]) -> list[str]:
    """With another first character of the signature."""
    start = headers[0].index('sig="') + len('sig="')
    other = "A" if headers[0][start] != "A" else "B"
    return [headers[0][:start] + other + headers[0][start + 1 :], *headers[1:]]


@pytest.fixture
def of_vectors(homeserver) -> dict:
    vector = vectors.load("signed_requests")
    key = decode_signing_key_base64("ed25519", vector["key_version"], vector["seed"])
    homeserver.signing_keys = [key]
    return vector


@pytest.mark.requirement("FED-19")
@pytest.mark.parametrize("key", ["destination_is", "destination"])
class TestDialects:
    def test_vector_is_verified(self, requests, of_vectors, key):
        header = (
            f'X-Matrix origin="hs.test",key="ed25519:1",sig="{of_vectors["signatures"][key]}",'
            'destination="id.test"'
        )
        assert verify(requests, [header]) == "hs.test"
        refused(requests, flipped([header]))

    def test_request_is_verified(self, requests, homeserver, key):
        sign = as_synapse if key == "destination_is" else as_specified
        headers = sign(homeserver, UNBIND, BODY, "id.test")
        assert verify(requests, headers) == "hs.test"
        refused(requests, flipped(headers))


@pytest.mark.requirement("FED-19")
def test_destination_under_another_name_or_not_signed_at_all_is_refused(requests, homeserver):
    for signed in (
        signatures(homeserver, UNBIND, BODY),
        signatures(homeserver, UNBIND, BODY, destination="id.test", destination_is="id.test"),
        signatures(homeserver, UNBIND, BODY, destination_to="id.test"),
    ):
        for destination in ("", ',destination="id.test"'):
            header = f'X-Matrix origin=hs.test,key=ed25519:a_1,sig="{signed["ed25519:a_1"]}"'
            refused(requests, [header + destination])


@pytest.mark.requirement("FED-16")
@pytest.mark.parametrize(
    "form",
    [
        'X-Matrix origin="{o}",key="{k}",sig="{s}",destination="{d}"',
        "x-MATRIX   Origin={o},KEY={k},sIg={s},DESTINATION={d}",
        'X-Matrix destination="{d}" , sig="{s}",x="y, \\"z\\"",\tkey={k},origin="h\\s.test"',
        'Bearer abc==, X-Matrix origin="{o}",key="{k}",sig="{s}",destination="{d}"',
    ],
)
def test_header_in_any_form_is_verified(requests, homeserver, form):
    signed = signatures(homeserver, UNBIND, BODY, destination_is="id.test")
    header = form.format(o="hs.test", k="ed25519:a_1", s=signed["ed25519:a_1"], d="id.test")
    assert verify(requests, [header]) == "hs.test"


@pytest.mark.requirement("FED-16")
@pytest.mark.parametrize("joined", [False, True])
def test_signature_in_any_of_several_headers_is_verified(requests, homeserver, joined):
    headers = as_synapse(homeserver, UNBIND, BODY, "id.test")
    stale = [headers[0].replace("a_1", "a_0")]
    for several in (stale + headers, headers + stale, ["Bearer abc", *stale, *headers]):
        assert verify(requests, [",".join(several)] if joined else several) == "hs.test"


@pytest.mark.requirement("FED-17")
@pytest.mark.parametrize("name", ["sig", "signature"])
def test_signature_under_either_name_is_verified(requests, homeserver, name):
    (header,) = as_synapse(homeserver, UNBIND, BODY, "id.test")
    assert verify(requests, [header.replace("sig=", f"{name}=")]) == "hs.test"


@pytest.mark.requirement("FED-17")
def test_sig_is_preferred_to_signature(requests, homeserver):
    (header,) = as_synapse(homeserver, UNBIND, BODY, "id.test")
    assert verify(requests, [header + ',signature="AAAA"']) == "hs.test"
    refused(requests, [header.replace("sig=", "signature=") + ',sig="AAAA"'])


class TestDestination:
    @pytest.mark.requirement("FED-18")
    @pytest.mark.parametrize("key", ["destination_is", "destination"])
    @pytest.mark.parametrize("name", OUR_NAMES)
    def test_absent_destination_is_each_of_our_names(self, requests, homeserver, key, name):
        signed = signatures(homeserver, UNBIND, BODY, **{key: name})
        header = f'X-Matrix origin=hs.test,key=ed25519:a_1,sig="{signed["ed25519:a_1"]}"'
        assert verify(requests, [header]) == "hs.test"

    @pytest.mark.requirement("FED-18")
    @pytest.mark.parametrize(
        "name",
        [
            "other",
            "",
            "id.test.",
            "id.test:443",
            "ip.test",
            "ip.test:8443/a",
            "x.id.test",
            "hs.test",
        ],
    )
    def test_foreign_destination_is_unauthorized_before_anyone_is_asked(
        self, requests, homeserver, network, name
    ):
        for sign in (as_synapse, as_specified):
            unauthorized(requests, sign(homeserver, UNBIND, BODY, name))
        assert network.connects == []

    @pytest.mark.requirement("FED-18")
    def test_absent_destination_that_was_signed_for_another_is_refused(self, requests, homeserver):
        signed = signatures(homeserver, UNBIND, BODY, destination_is="other.test")
        header = f'X-Matrix origin=hs.test,key=ed25519:a_1,sig="{signed["ed25519:a_1"]}"'
        refused(requests, [header])

    def test_named_destination_must_be_the_signed_one(self, requests, homeserver):
        (header,) = as_synapse(homeserver, UNBIND, BODY, "old.test")
        refused(requests, [header.replace("old.test", "id.test")])

    @pytest.mark.requirement("FED-20")
    @pytest.mark.parametrize("name", OUR_NAMES)
    def test_each_of_our_names_is_a_destination(self, requests, homeserver, name):
        for sign in (as_synapse, as_specified):
            assert verify(requests, sign(homeserver, UNBIND, BODY, name)) == "hs.test"

    @pytest.mark.requirement("FED-20")
    def test_destination_is_signed_as_the_client_wrote_it(self, requests, homeserver):
        for name in ("ID.Test", "id.test/", "ip.test:8443/a/b/"):
            assert verify(requests, as_synapse(homeserver, UNBIND, BODY, name)) == "hs.test"

    def test_foreign_destination_is_logged_for_the_operator(self, requests, homeserver):
        with capture_logs() as logs:
            unauthorized(requests, as_synapse(homeserver, UNBIND, BODY, "alias.test"))
        assert logs == [
            {
                "event": "signed_request_for_another",
                "log_level": "info",
                "origin": "hs.test",
                "destination": "alias.test",
            }
        ]


class TestWhatIsSigned:
    @pytest.mark.requirement("FED-21")
    @pytest.mark.parametrize(
        "uri", [UNBIND, UNBIND + "/", UNBIND + "?a=%2F&b=c", "/below" + UNBIND]
    )
    def test_uri_is_the_target_as_it_was_sent(self, requests, homeserver, uri):
        headers = as_synapse(homeserver, uri, BODY, "id.test")
        assert verify(requests, headers, uris=(uri,)) == "hs.test"
        assert verify(requests, headers, uris=(uri, UNBIND)) == "hs.test"

    @pytest.mark.requirement("FED-21")
    def test_uri_may_be_the_path_of_the_endpoint(self, requests, homeserver):
        headers = as_synapse(homeserver, UNBIND, BODY, "id.test")
        assert verify(requests, headers, uris=("/3pid/unbind", UNBIND)) == "hs.test"
        refused(requests, headers, uris=("/3pid/unbind",))

    @pytest.mark.requirement("FED-21")
    def test_content_is_signed_in_canonical_form(self, requests, homeserver):
        content = {"b": 1.0, "a": ["é", -0.0, {"z": None, "y": True}]}
        signed = {"a": ["é", 0, {"y": True, "z": None}], "b": 1}
        headers = as_synapse(homeserver, UNBIND, signed, "id.test")
        assert verify(requests, headers, content=content) == "hs.test"

    def test_body_that_canonical_json_cannot_hold_is_refused(self, requests, homeserver):
        headers = as_synapse(homeserver, UNBIND, {}, "id.test")
        refused(requests, headers, content={"a": 0.5})

    @pytest.mark.requirement("FED-21")
    @pytest.mark.parametrize(
        "changes",
        [
            {"method": "PUT"},
            {"uris": ("/_matrix/identity/v2/3pid/bind", UNBIND + "?")},
            {"content": {**BODY, "mxid": "@bob:hs.test"}},
            {"content": {**BODY, "more": 1}},
            {"content": {}},
        ],
        ids=str,
    )
    def test_header_replayed_on_another_request_is_refused(self, requests, homeserver, changes):
        for sign in (as_synapse, as_specified):
            refused(requests, sign(homeserver, UNBIND, BODY, "id.test"), **changes)

    def test_names_inside_the_content_change_nothing(self, requests, homeserver):
        """Nothing in the body can pass for another part of what is signed."""
        content = {"signatures": {"hs.test": {}}, "unsigned": {}, "origin": "x", "uri": "y"}
        headers = as_synapse(homeserver, UNBIND, content, "id.test")
        assert verify(requests, headers, content=content) == "hs.test"
        refused(requests, headers, content={**content, "unsigned": {"a": 1}})

    def test_request_signed_twice_alike_is_verified_each_time(self, requests, homeserver):
        """There is no nonce: what a request asks for must do no harm the second time."""
        headers = as_synapse(homeserver, UNBIND, BODY, "id.test")
        assert verify(requests, headers) == verify(requests, headers) == "hs.test"


class TestSigner:
    @pytest.mark.requirement("FED-22")
    @pytest.mark.parametrize("origin", ["a/b", "", "u@hs.test", "hs.test:0", "[::1", "hs.test#"])
    def test_origin_that_is_no_server_name_leads_to_no_question(
        self, requests, homeserver, resolver, network, origin
    ):
        (header,) = as_synapse(homeserver, UNBIND, BODY, "id.test")
        unauthorized(requests, [header.replace("hs.test", origin)])
        assert resolver.asked == network.connects == []

    @pytest.mark.parametrize("headers", [[], ["Bearer abc"], ["X-Matrix"], ["X-Matrix a=b"]])
    def test_missing_or_malformed_authorization_leads_to_no_question(
        self, requests, resolver, network, headers
    ):
        unauthorized(requests, headers)
        assert resolver.asked == network.connects == []

    @pytest.mark.requirement("FED-22")
    @pytest.mark.parametrize("key_id", ["rsa:1", "a_1", "ED25519:a_1"])
    def test_key_of_another_algorithm_leads_to_no_question(
        self, requests, homeserver, resolver, network, key_id
    ):
        (header,) = as_synapse(homeserver, UNBIND, BODY, "id.test")
        foreign = header.replace("ed25519:a_1", key_id)
        unauthorized(requests, [foreign])
        assert resolver.asked == network.connects == []
        assert verify(requests, [foreign, header]) == "hs.test"

    @pytest.mark.requirement("FED-22")
    def test_one_good_signature_of_several_suffices(self, requests, homeserver):
        homeserver.signing_keys.append(generate_signing_key("a_2"))
        headers = as_synapse(homeserver, UNBIND, BODY, "id.test")
        assert len(headers) == 2
        for several in (headers, flipped(headers), flipped(headers)[::-1]):
            assert verify(requests, several) == "hs.test"
        refused(requests, [flipped(headers)[0], *flipped(headers[1:])])

    @pytest.mark.parametrize("signature", ["", "AAAA", "A" * 86, "?", "é", "A" * 87, "=" * 86])
    def test_signature_that_is_none_is_refused(self, requests, homeserver, signature):
        header = f'X-Matrix origin="hs.test",key="ed25519:a_1",sig="{signature}"'
        refused(requests, [header])

    def test_request_of_another_server_is_refused(self, requests, homeserver, resolver, network):
        """Its keys are another's, though it names the right key id."""
        resolver.host("b.hs.test", "1.2.3.5")
        with FakeHomeserver() as other:
            other.server_name = "b.hs.test"
            network.routes["1.2.3.5", 8448] = ("127.0.0.1", other.port)
            (header,) = as_synapse(other, UNBIND, BODY, "id.test")
            assert verify(requests, [header]) == "b.hs.test"
            refused(requests, [header.replace("b.hs.test", "hs.test")])

    @pytest.mark.requirement("FED-14")
    def test_old_key_is_refused(self, requests, homeserver):
        headers = as_synapse(homeserver, UNBIND, BODY, "id.test")
        homeserver.old_keys = homeserver.signing_keys
        homeserver.signing_keys = [generate_signing_key("a_2")]
        refused(requests, headers)

    @pytest.mark.requirement("FED-14")
    def test_key_of_an_expired_answer_is_refused(self, requests, homeserver, clock):
        homeserver.keys_valid_until_ms = clock.at_ms - 1
        refused(requests, as_synapse(homeserver, UNBIND, BODY, "id.test"))

    @pytest.mark.requirement("FED-14")
    def test_key_published_for_years_is_refused_after_seven_days(self, requests, homeserver, clock):
        headers = as_synapse(homeserver, UNBIND, BODY, "id.test")
        assert verify(requests, headers) == "hs.test"
        homeserver.signing_keys = [generate_signing_key("a_2")]
        clock.at_ms += 7 * DAY_MS - 1
        assert verify(requests, headers) == "hs.test"
        clock.at_ms += 1
        refused(requests, headers)

    def test_refusal_is_logged(self, requests, homeserver):
        headers = flipped(as_synapse(homeserver, UNBIND, BODY, "id.test"))
        with capture_logs() as logs:
            refused(requests, headers)
        assert logs == [
            {"event": "signed_request_refused", "log_level": "info", "origin": "hs.test"}
        ]


class TestQuestions:
    @pytest.mark.requirement("FED-12")
    @pytest.mark.requirement("FED-15")
    def test_keys_are_asked_for_once(self, requests, homeserver):
        headers = as_synapse(homeserver, UNBIND, BODY, "id.test")
        for _ in range(3):
            verify(requests, headers)
            refused(requests, flipped(headers))
        assert homeserver.paths().count(KEYS) == 1

    @pytest.mark.requirement("FED-15")
    def test_new_key_is_learned_by_one_more_question(self, requests, homeserver, clock):
        verify(requests, as_synapse(homeserver, UNBIND, BODY, "id.test"))
        clock.at_ms += MINUTE_MS
        homeserver.signing_keys = [generate_signing_key("a_2")]
        for _ in range(3):
            assert verify(requests, as_synapse(homeserver, UNBIND, BODY, "id.test")) == "hs.test"
        assert homeserver.paths().count(KEYS) == 2

    @pytest.mark.requirement("FED-15")
    def test_a_hundred_bad_requests_lead_to_few_questions(
        self, requests, homeserver, clock: FakeClock
    ):
        good = as_synapse(homeserver, UNBIND, BODY, "id.test")
        for number in range(100):
            refused(requests, [good[0].replace("a_1", f"b_{number}")])
            clock.at_ms += 1_000
        assert homeserver.paths().count(KEYS) == 2
        assert verify(requests, good) == "hs.test"

    @pytest.mark.requirement("FED-15")
    def test_known_key_is_verified_while_the_server_is_down(
        self, requests, homeserver, network, clock
    ):
        good = as_synapse(homeserver, UNBIND, BODY, "id.test")
        verify(requests, good)
        network.routes.clear()
        clock.at_ms += MINUTE_MS
        for _ in range(2):
            with pytest.raises(HomeserverUnreachable):
                verify(requests, [good[0].replace("a_1", "a_2")])
            assert verify(requests, good) == "hs.test"
            refused(requests, flipped(good))

    @pytest.mark.requirement("FED-13")
    @pytest.mark.parametrize("answer", ["down", "500", "another's", "unsigned"])
    def test_without_usable_keys_nothing_is_known(self, requests, homeserver, network, answer):
        headers = as_synapse(homeserver, UNBIND, BODY, "id.test")
        if answer == "down":
            network.routes.clear()
        elif answer == "500":
            homeserver.answers[KEYS] = Reply(500)
        elif answer == "another's":
            homeserver.answers[KEYS] = Reply.json(homeserver.key_document(server_name="b.test"))
        else:
            homeserver.answers[KEYS] = Reply.json(homeserver.key_document([]))
        for _ in range(2):
            with pytest.raises(HomeserverUnreachable):
                verify(requests, headers)

    def test_too_many_calls_at_once_are_told_at_once(self, make_client, homeserver, clock):
        client = make_client()
        requests = SignedRequests(HomeserverKeys(client, clock))
        while client._free_places.acquire(blocking=False):
            continue
        with pytest.raises(HomeserversBusy):
            verify(requests, as_synapse(homeserver, UNBIND, BODY, "id.test"))


def test_long_body_with_many_candidates_is_checked_quickly(requests, homeserver):
    """The longest body that is accepted, for every name and URI, by as many keys as count."""
    homeserver.signing_keys = [
        generate_signing_key(f"a_{number}") for number in range(MAX_SIGNATURES)
    ]
    content = {"a": "x" * 1_000_000}
    headers = as_synapse(homeserver, UNBIND, {}, "id.test")
    nameless = [header.replace(',destination="id.test"', "") for header in headers]
    verify(requests, as_synapse(homeserver, UNBIND, {}, "id.test"), content={})
    began = time.process_time()
    refused(requests, nameless, content=content, uris=("/a", UNBIND))
    assert time.process_time() - began < 2


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(blacklist_categories=["Cs"]), max_size=5),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**53) + 1, 2**53 - 1)
            | st.text(st.characters(blacklist_categories=["Cs"]), max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text("ab/é", max_size=3), inner, max_size=3)
            ),
            max_leaves=9,
        ),
        max_size=4,
    ),
    st.sampled_from([as_synapse, as_specified]),
)
def test_any_content_that_was_signed_is_verified(requests, homeserver, content, sign):
    headers = sign(homeserver, UNBIND, content, "id.test")
    assert verify(requests, headers, content=content) == "hs.test"
