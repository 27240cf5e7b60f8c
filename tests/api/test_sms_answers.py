"""What a client is told when a provider does not take the message, and what is left behind."""

import pytest
from parts.clock import FakeClock
from parts.homeserver import Reply
from parts.validation import refused, sqlite_only

from identity.config import load
from identity.sms.sender import sender_from_config

REQUEST = {
    "client_secret": "secret",
    "country": "GB",
    "phone_number": "07700900001",
    "send_attempt": 1,
}


@pytest.fixture
def server_with(make_server):
    """A server that sends through this provider, really."""

    def make(provider, **changes):
        settings = {**provider.settings(), **changes}
        config = load(None, {f"IDENTITY_{name}": value for name, value in settings.items()})
        return make_server(settings, text_sender=sender_from_config(config, FakeClock()))

    return make


def request_token(server, **changes):
    account = server.account("@alice:hs.test")
    return account.post("/validate/msisdn/requestToken", json={**REQUEST, **changes})


def test_text_with_the_code_comes_through_twilio_and_through_a_gateway(
    server_with, twilio, sms_gateway
):
    for provider in (twilio, sms_gateway):
        server = server_with(provider)
        response = request_token(server)
        assert response.status_code == 200, response.json
        (text,) = provider.texts
        assert text.to == "+447700900001"
        assert text.body.endswith(f"\n@localhost #{text.code}")
        proof = {"sid": response.json["sid"], "client_secret": "secret", "token": text.code}
        alice = server.account("@alice:hs.test")
        response = alice.post("/validate/msisdn/submitToken", json=proof)
        assert response.json == {"success": True}


@pytest.mark.requirement("TEL-05")
@pytest.mark.parametrize("status", [400, 401, 404, 500, 503])
def test_text_that_a_gateway_fails_to_take_is_a_send_error(server_with, sms_gateway, status):
    server = server_with(sms_gateway)
    sms_gateway.answer = Reply(status)
    assert refused(request_token(server), 400, "M_SEND_ERROR")
    assert len(sms_gateway.requests) == 1
    assert server.rows("validation_tokens") == []


@pytest.mark.requirement("TEL-05")
@pytest.mark.parametrize(
    "codes",
    [
        {"SMS__ALLOWED_CALLING_CODES": "[]"},
        {"SMS__ALLOWED_CALLING_CODES": '["1", "33"]'},
        {"SMS__DENIED_CALLING_CODES": '["44"]'},
    ],
)
def test_number_whose_calling_code_is_not_served_is_rejected_and_nobody_is_asked(
    server_with, sms_gateway, codes
):
    server = server_with(sms_gateway, **codes)
    assert refused(request_token(server), 400, "M_DESTINATION_REJECTED")
    assert sms_gateway.requests == []
    assert server.rows("validation_sessions") == []


@pytest.mark.requirement("TEL-05")
@pytest.mark.parametrize(
    ("code", "status", "errcode"),
    [
        (21211, 400, "M_INVALID_ADDRESS"),
        (21614, 400, "M_INVALID_ADDRESS"),
        (21635, 400, "M_INVALID_ADDRESS"),
        (21408, 400, "M_DESTINATION_REJECTED"),
        (21610, 400, "M_DESTINATION_REJECTED"),
        (20429, 429, "M_LIMIT_EXCEEDED"),
        (20003, 400, "M_SEND_ERROR"),
        (20500, 400, "M_SEND_ERROR"),
    ],
)
@sqlite_only
def test_error_of_twilio_is_told_in_the_words_of_the_specification(
    server_with, twilio, code, status, errcode
):
    server = server_with(twilio)
    twilio.fail(code, Retry_After="30")
    response = request_token(server)
    assert refused(response, status, errcode)
    assert "7700900001" not in response.text
    if status == 429:
        assert response.headers["Retry-After"] == "30"
    assert server.rows("validation_tokens") == []
