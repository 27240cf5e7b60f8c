"""What each provider is sent, and what its answers mean."""

import json
import traceback
from urllib.parse import parse_qs

import pytest
from parts.clock import FakeClock
from parts.homeserver import Reply, ca_file
from parts.sms_gateway import FakeGateway
from parts.twilio import ACCOUNT_SID, FROM, SERVICE_SID, FakeTwilio
from structlog.testing import capture_logs

from identity.config import Config, load
from identity.errors import DestinationRejected, InvalidPhoneNumber, LimitExceeded, SmsNotSent
from identity.sms.sender import sender_from_config
from identity.threepid import ThreePid

ALICE = ThreePid.msisdn("447700900001")
BOB = ThreePid.msisdn("12125550100")
TEXT = "id.example.org: code é€\n\n@id.example.org #123456"


def make_sender(settings, **changes):
    settings = {**settings, **changes}
    config = load(None, {f"IDENTITY_{name}": value for name, value in settings.items()})
    return sender_from_config(config, FakeClock())


# --- Twilio ---------------------------------------------------------------------------


def test_twilio_gets_what_its_description_demands(twilio):
    make_sender(twilio.settings()).send(ALICE, TEXT)
    (request,) = twilio.requests
    assert request.target == f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json"
    assert parse_qs(request.body.decode()) == {
        "To": ["+447700900001"],
        "From": [FROM],
        "Body": [TEXT],
    }
    (text,) = twilio.texts
    assert (text.to, text.sender, text.body) == ("+447700900001", FROM, TEXT)


def test_twilio_sender_is_that_of_the_calling_code_else_the_default_else_from(twilio):
    by_code = '{ "1" = "+12125550199", "default" = "Matrix" }'
    sender = make_sender(twilio.settings(), SMS__ORIGINATORS=by_code)
    sender.send(ALICE, TEXT)
    sender.send(BOB, TEXT)
    make_sender(twilio.settings(), SMS__ORIGINATORS='{ "1" = "+12125550199" }').send(ALICE, TEXT)
    assert [text.sender for text in twilio.texts] == ["Matrix", "+12125550199", FROM]


def test_twilio_messaging_service_chooses_unless_a_calling_code_has_its_own(twilio):
    sender = make_sender(
        twilio.settings(),
        SMS__TWILIO__MESSAGING_SERVICE_SID=SERVICE_SID,
        SMS__ORIGINATORS='{ "1" = "+12125550199", "default" = "Matrix" }',
    )
    sender.send(ALICE, TEXT)
    sender.send(BOB, TEXT)
    assert [text.sender for text in twilio.texts] == [SERVICE_SID, "+12125550199"]


def test_twilio_without_a_sender_for_a_number_is_not_asked(twilio):
    sender = make_sender(
        twilio.settings(), SMS__FROM="", SMS__ORIGINATORS='{ "1" = "+12125550199" }'
    )
    with pytest.raises(SmsNotSent):
        sender.send(ALICE, TEXT)
    assert twilio.requests == []


def test_twilio_is_where_the_configuration_says_whatever_the_environment(twilio, monkeypatch):
    monkeypatch.setenv("TWILIO_EDGE", "dublin")
    monkeypatch.setenv("TWILIO_REGION", "ie1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    make_sender(twilio.settings()).send(ALICE, TEXT)
    assert len(twilio.texts) == 1


@pytest.mark.parametrize(
    ("codes", "error"),
    [
        ((14101, 21211, 21214, 21217, 21265, 21266, 21614, 21635), InvalidPhoneNumber),
        ((21202, 21215, 21408, 21608, 21610, 21612, 572005), DestinationRejected),
        ((14107, 20429, 21611, 63038), LimitExceeded),
        ((20003, 20404, 20500, 20503, 21212, 21602, 21603, 21606, 21617, 21659, 99999), SmsNotSent),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_twilio_error_becomes_the_one_that_the_specification_has(twilio, codes, error):
    sender = make_sender(twilio.settings())
    for code in codes:
        twilio.fail(code)
        with capture_logs() as logs, pytest.raises(error) as caught:
            sender.send(ALICE, TEXT)
        told = repr(logs) + "".join(traceback.format_exception(caught.value))
        assert "447700900001" not in told
        assert "123456" not in told
    assert twilio.texts == []
    assert len(twilio.requests) == len(codes)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (30003, DestinationRejected),
        (30004, DestinationRejected),
        (30005, InvalidPhoneNumber),
        (30006, InvalidPhoneNumber),
        (30007, DestinationRejected),
        (30450, DestinationRejected),
        (30001, LimitExceeded),
        (30008, SmsNotSent),
    ],
)
def test_twilio_message_that_is_said_to_have_failed_is_refused(twilio, code, error):
    twilio.fail_later(code)
    with pytest.raises(error):
        make_sender(twilio.settings()).send(ALICE, TEXT)


def test_twilio_password_that_is_wrong_is_not_sent(twilio):
    with pytest.raises(SmsNotSent):
        make_sender(twilio.settings(), SMS__TWILIO__AUTH_TOKEN="other").send(ALICE, TEXT)
    assert twilio.texts == []


@pytest.mark.parametrize(
    ("header", "wait_ms"),
    [("7", 7_000), ("0", 1_000), (None, 60_000), ("Wed, 21 Oct", 60_000), ("9" * 9, 3_600_000)],
)
def test_twilio_says_after_how_long_to_try_again(twilio, header, wait_ms):
    twilio.fail(20429, **({"Retry_After": header} if header else {}))
    with pytest.raises(LimitExceeded) as caught:
        make_sender(twilio.settings()).send(ALICE, TEXT)
    assert caught.value.retry_after_ms == wait_ms


@pytest.mark.parametrize(
    "answer",
    [
        Reply(201, b"garbage"),
        Reply(201, b""),
        Reply(201, b"[]"),
        Reply(201, b"{}"),
        Reply(201, b"null"),
        Reply(201, b'"text"'),
        Reply(201, b"\xff\xfe"),
        Reply(201, b'{"sid": ' + b"[" * 60_000),
        Reply(200, b"<html>"),
        Reply(400, b"garbage"),
        Reply(400, b"[]"),
        Reply(400, b'{"code": {"a": []}}'),
        Reply(400, b'{"code": "21211"}'),
        Reply(404),
        Reply(500, b"\x00" * 100),
        Reply(502, b"<html>"),
        Reply(302, b"", {"Location": "http://127.0.0.1:9/"}),
        Reply(400, b'{"type": "t", "title": "t", "status": 400, "code": 1}'),
        Reply(201, b"x" * 70_000),
        Reply(raw=[b"HTTP/1.1 201 OK\r\nContent-Length: 900\r\n\r\n{}"]),
        Reply(raw=[b"what?\r\n\r\n"]),
        Reply(raw=[b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nxxx"]),
        Reply(raw=[b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000]),
        Reply(raw=[b""]),
    ],
    ids=range(24),
)
def test_twilio_answer_that_makes_no_sense_is_not_sent(twilio, answer):
    twilio.answer = answer
    with pytest.raises(SmsNotSent):
        make_sender(twilio.settings()).send(ALICE, TEXT)
    assert len(twilio.requests) == 1


def test_twilio_error_in_the_newer_form_is_understood(twilio):
    body = b'{"type": "t", "title": "t", "status": 400, "code": 21211}'
    twilio.answer = Reply(400, body)
    with pytest.raises(InvalidPhoneNumber):
        make_sender(twilio.settings()).send(ALICE, TEXT)


# --- a gateway ------------------------------------------------------------------------


def test_gateway_gets_to_from_and_body_as_json_with_the_configured_headers(sms_gateway):
    make_sender(sms_gateway.settings(), SMS__ORIGINATORS='{ "1" = "+12125550199" }').send(
        ALICE, TEXT
    )
    (request,) = sms_gateway.requests
    assert json.loads(request.body) == {"to": "+447700900001", "from": "Matrix", "body": TEXT}
    assert len(sms_gateway.texts) == 1


def test_gateway_url_keeps_its_query_and_its_last_slash(sms_gateway):
    sms_gateway.answer = Reply(200)
    url = f"{sms_gateway.url}/a/?key=b&c"
    make_sender(sms_gateway.settings(), SMS__HTTP__URL=url).send(ALICE, TEXT)
    assert [request.target for request in sms_gateway.requests] == ["/a/?key=b&c"]


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_gateway_answer_of_any_2xx_is_accepted_whatever_it_says(sms_gateway, status):
    sms_gateway.answer = Reply(status, b"garbage" if status != 204 else b"")
    make_sender(sms_gateway.settings()).send(ALICE, TEXT)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 422, 500, 502, 503, 504])
def test_gateway_answer_of_any_other_status_is_not_sent_and_not_followed(sms_gateway, status):
    elsewhere = {"Location": f"{sms_gateway.url}/elsewhere"}
    sms_gateway.answer = Reply(status, b"About +447700900001", elsewhere)
    with capture_logs() as logs, pytest.raises(SmsNotSent):
        make_sender(sms_gateway.settings()).send(ALICE, TEXT)
    assert [(entry["provider"], entry["reason"]) for entry in logs] == [("http", str(status))]
    assert len(sms_gateway.requests) == 1


def test_gateway_that_has_had_too_many_says_when_to_try_again(sms_gateway):
    sms_gateway.answer = Reply(429, b"", {"Retry-After": "30"})
    with pytest.raises(LimitExceeded) as caught:
        make_sender(sms_gateway.settings()).send(ALICE, TEXT)
    assert caught.value.retry_after_ms == 30_000


@pytest.mark.parametrize("fake", [FakeGateway, FakeTwilio], ids=["gateway", "twilio"])
@pytest.mark.parametrize("certificate", [{"trusted": False}, {"expired": True}])
def test_provider_that_cannot_prove_its_name_gets_nothing(fake, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file()))
    with fake(tls=True) as sound:
        make_sender(sound.settings()).send(ALICE, TEXT)
        assert len(sound.texts) == 1
    with fake(tls=True, **certificate) as stranger:
        with capture_logs() as logs, pytest.raises(SmsNotSent):
            make_sender(stranger.settings()).send(ALICE, TEXT)
        assert [entry["reason"] for entry in logs] == ["certificate not valid"]
        assert stranger.requests == []


# --- files, and none ------------------------------------------------------------------


def test_text_for_development_becomes_a_file_beside_the_mails(tmp_path):
    settings = {"SERVER__DATA_DIR": str(tmp_path), "SMS__FROM": "Matrix"}
    with capture_logs() as logs:
        make_sender(settings).send(ALICE, TEXT)
    (path,) = (tmp_path / "outbox").iterdir()
    assert path.suffix == ".txt"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == f"To: +447700900001\nFrom: Matrix\n\n{TEXT}\n"
    assert logs == [{"event": "sms_written", "path": str(path), "log_level": "info"}]


def test_text_for_development_that_cannot_be_written_is_not_sent(tmp_path):
    (tmp_path / "outbox").write_text("not a folder")
    with pytest.raises(SmsNotSent):
        make_sender({"SERVER__DATA_DIR": str(tmp_path)}).send(ALICE, TEXT)


def test_server_that_sends_mail_and_names_no_provider_sends_no_text():
    config = Config.model_validate({"email": {"smtp_host": "localhost"}})
    assert sender_from_config(config, FakeClock()) is None
