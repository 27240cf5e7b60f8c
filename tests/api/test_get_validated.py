"""getValidated3pid over v2: conformance.md section 10."""

import pytest
from parts.validation import get_validated, refused, sqlite_only, submit

EMAIL = "alice@example.com"

pytestmark = sqlite_only


@pytest.mark.requirement("VAL-01", "AMB-08")
def test_get_validated_says_what_was_validated_and_when(server, clock, alice):
    alice.request_token("Alice@Example.com")
    mailed = server.mailed()
    clock.advance(hours=3)
    submit(alice, mailed)
    validated_at_ms = clock.now_ms()
    clock.advance(hours=1)
    # Neither another submit nor another request changes when that was.
    submit(alice, mailed)
    alice.request_token(EMAIL, send_attempt=1)
    response = get_validated(alice, mailed)
    assert response.status_code == 200
    assert response.json == {"medium": "email", "address": EMAIL, "validated_at": validated_at_ms}
    assert type(response.json["validated_at"]) is int


@pytest.mark.requirement("VAL-02", "VAL-04")
def test_get_validated_before_validation_is_refused(server, alice):
    alice.request_token(EMAIL)
    mailed = server.mailed()
    assert refused(get_validated(alice, mailed), 400, "M_SESSION_NOT_VALIDATED")
    submit(alice, mailed, token="wrong")
    assert refused(get_validated(alice, mailed), 400, "M_SESSION_NOT_VALIDATED")
    assert EMAIL not in get_validated(alice, mailed).text


@pytest.mark.requirement("VAL-02", "VAL-04")
@pytest.mark.parametrize("validated", [False, True])
def test_get_validated_after_24_hours_is_refused(server, clock, alice, validated):
    alice.request_token(EMAIL)
    if validated:
        submit(alice, server.mailed())
    clock.advance(hours=24, ms=1)
    assert refused(get_validated(alice, server.mailed()), 400, "M_SESSION_EXPIRED")


@pytest.mark.requirement("VAL-03", "VAL-04")
def test_get_validated_of_unknown_sid_or_wrong_secret_is_refused_alike(server, alice):
    session = alice.validate(EMAIL)
    bodies = set()
    for changed in (
        {"sid": "abc"},
        {"sid": "999"},
        {"sid": ""},
        {"sid": "a b/ä"},
        {"sid": "x" * 5_000},
        {"client_secret": "other"},
        {"client_secret": "x" * 255},
    ):
        response = get_validated(alice, session | changed)
        assert refused(response, 404, "M_NO_VALID_SESSION"), changed
        bodies.add(response.data)
    assert len(bodies) == 1
    for secret in ("a b", "", "x" * 256):
        response = get_validated(alice, session | {"client_secret": secret})
        assert refused(response, 400, "M_INVALID_PARAM")
    assert get_validated(alice, session).status_code == 200


@pytest.mark.requirement("VAL-03", "VAL-04")
def test_get_validated_without_its_parameters_is_refused(server, alice):
    session = alice.validate(EMAIL)
    for name in session:
        rest = {key: value for key, value in session.items() if key != name}
        response = alice.get("/3pid/getValidated3pid", query_string=rest)
        assert refused(response, 400, "M_MISSING_PARAMS")
    response = server.client.get("/_matrix/identity/v2/3pid/getValidated3pid", query_string=session)
    assert refused(response, 401, "M_UNAUTHORIZED")
