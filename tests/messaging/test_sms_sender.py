"""The list of providers: who is tried when, for how long, and by how many at once."""

import threading
import time
from contextlib import suppress

import pytest
from parts.clock import FakeClock
from parts.homeserver import Reply
from parts.sms_gateway import FakeGateway
from parts.twilio import FakeTwilio
from structlog.testing import capture_logs

from identity.config import load
from identity.errors import (
    DestinationRejected,
    InvalidPhoneNumber,
    LimitExceeded,
    SmsNotSent,
    SmsUnclear,
)
from identity.sms.destination import Originators
from identity.sms.gateway import Gateway
from identity.sms.sender import Providers, sender_from_config
from identity.sms.transport import Transport
from identity.sms.twilio import TwilioProvider
from identity.threepid import ThreePid

ALICE = ThreePid.msisdn("447700900001")
TEXT = "id.example.org: code\n\n@id.example.org #123456"
# For providers that never answer in time, and for those that do so on a busy machine.
SHORT_S, FAIR_S = 0.25, 0.75


@pytest.fixture
def both(twilio, sms_gateway):
    """The settings of a server that tries Twilio and then a gateway."""
    return {
        **sms_gateway.settings(),
        **twilio.settings(),
        "SMS__PROVIDER": '["twilio", "http"]',
    }


def config_of(settings):
    return load(None, {f"IDENTITY_{name}": value for name, value in settings.items()})


def make_sender(settings, *, clock=None, threads=32, provider_timeout_s=10.0, timeout_s=15.0):
    """As `sender_from_config`, with other time-outs."""
    config = config_of(settings)
    originators, transport = Originators.from_config(config), Transport()
    makers = {
        "twilio": lambda: TwilioProvider(config.sms.twilio, originators, transport),
        "http": lambda: Gateway(config.sms.http, originators, transport),
    }
    return Providers(
        [makers[name]() for name in config.sms_providers],
        threads,
        clock or FakeClock(),
        provider_timeout_s=provider_timeout_s,
        timeout_s=timeout_s,
    )


def test_first_provider_that_accepts_is_the_only_one_asked(both, twilio, sms_gateway):
    sender_from_config(config_of(both), FakeClock()).send(ALICE, TEXT)
    assert len(twilio.texts) == 1
    assert sms_gateway.requests == []


@pytest.mark.parametrize("code", [20003, 20429, 20500, 20503, 21606, 63038])
def test_provider_that_accepts_nothing_is_followed_by_the_next(both, twilio, sms_gateway, code):
    twilio.fail(code)
    with capture_logs() as logs:
        make_sender(both).send(ALICE, TEXT)
    assert [text.body for text in sms_gateway.texts] == [TEXT]
    assert [(entry["provider"], entry["reason"]) for entry in logs] == [("twilio", str(code))]


def test_provider_that_does_not_listen_is_followed_by_the_next(sms_gateway):
    with FakeTwilio() as gone:
        settings = {**sms_gateway.settings(), **gone.settings()}
    make_sender({**settings, "SMS__PROVIDER": '["twilio", "http"]'}).send(ALICE, TEXT)
    assert len(sms_gateway.texts) == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [(21211, InvalidPhoneNumber), (21610, DestinationRejected), (21408, DestinationRejected)],
)
def test_number_that_one_provider_refuses_is_not_tried_elsewhere(
    both, twilio, sms_gateway, code, error
):
    twilio.fail(code)
    with capture_logs() as logs, pytest.raises(error):
        make_sender(both).send(ALICE, TEXT)
    assert sms_gateway.requests == []
    assert [entry["reason"] for entry in logs] == [error.__name__]


@pytest.mark.parametrize("trouble", ["hangs", "drops", "hangs_after_head"])
def test_message_that_may_be_under_way_is_not_sent_a_second_time(
    both, twilio, sms_gateway, trouble
):
    setattr(twilio, trouble, True)
    with capture_logs() as logs, pytest.raises(SmsUnclear):
        make_sender(both, provider_timeout_s=SHORT_S).send(ALICE, TEXT)
    assert len(twilio.texts) == 1
    assert sms_gateway.requests == []
    assert [entry["event"] for entry in logs] == ["sms_unclear"]


def test_message_that_nobody_accepts_can_be_tried_again_when_the_first_one_says(
    both, twilio, sms_gateway
):
    twilio.fail(20429, Retry_After="90")
    sms_gateway.answer = Reply(429, b"", {"Retry-After": "30"})
    with pytest.raises(LimitExceeded) as caught:
        make_sender(both).send(ALICE, TEXT)
    assert caught.value.retry_after_ms == 30_000
    sms_gateway.answer = Reply(500)
    with pytest.raises(LimitExceeded) as caught:
        make_sender(both).send(ALICE, TEXT)
    assert caught.value.retry_after_ms == 90_000
    twilio.fail(20500)
    with pytest.raises(SmsNotSent):
        make_sender(both).send(ALICE, TEXT)


@pytest.mark.parametrize("fake", [FakeGateway, FakeTwilio], ids=["gateway", "twilio"])
@pytest.mark.parametrize("trouble", ["hangs", "drips"])
def test_provider_that_does_not_come_to_an_end_is_left_in_time(fake, trouble):
    with fake() as provider:
        if trouble == "hangs":
            provider.hangs = True
        else:
            provider.drip_s = 0.05
        started = time.monotonic()
        with capture_logs() as logs, pytest.raises(SmsNotSent):
            make_sender(provider.settings(), provider_timeout_s=SHORT_S).send(ALICE, TEXT)
        assert time.monotonic() - started < 2
        assert [entry["reason"] for entry in logs] == ["timed out"]


def test_provider_that_drips_its_body_is_left_in_time(twilio):
    """Each byte comes well within a time-out for one read."""
    twilio.answer = Reply(201, b" " * 900)
    twilio.drip_s = 0.01
    started = time.monotonic()
    with pytest.raises(SmsNotSent):
        make_sender(twilio.settings(), provider_timeout_s=1.0).send(ALICE, TEXT)
    assert 0.9 < time.monotonic() - started < 3


def test_provider_with_which_tls_fails_is_followed_by_the_next(sms_gateway):
    sms_gateway.hangs = True
    with FakeGateway() as second:
        settings = {
            **FakeTwilio.settings(sms_gateway),
            **second.settings(),
            "SMS__PROVIDER": '["twilio", "http"]',
            "SMS__TWILIO__API_BASE_URL": sms_gateway.url.replace("http:", "https:"),
        }
        with capture_logs() as logs:
            make_sender(settings, provider_timeout_s=SHORT_S).send(ALICE, TEXT)
        assert len(second.texts) == 1
    assert [entry["event"] for entry in logs] == ["sms_not_accepted"]
    assert sms_gateway.texts == []


def test_all_providers_together_take_no_longer_than_one_message_may(both, twilio, sms_gateway):
    """The first accepts nothing, slowly; the second gets what is left."""
    twilio.fail(20500)
    twilio.drip_s = 0.002
    sms_gateway.hangs = True
    started = time.monotonic()
    with pytest.raises(SmsNotSent):
        make_sender(both, provider_timeout_s=30.0, timeout_s=1.5).send(ALICE, TEXT)
    assert time.monotonic() - started < 4
    assert len(sms_gateway.requests) == 1


def test_provider_after_three_timeouts_in_a_row_is_spared_for_ten_seconds(
    both, twilio, sms_gateway
):
    clock = FakeClock()
    sender = make_sender(both, clock=clock, provider_timeout_s=FAIR_S)
    twilio.hangs = True
    for _ in range(3):
        with pytest.raises(SmsNotSent):
            sender.send(ALICE, TEXT)
    sender.check_ready()
    for _ in range(2):
        sender.send(ALICE, TEXT)
    assert len(sms_gateway.texts) == 2
    assert len(twilio.requests) == 3
    twilio.hangs = False
    clock.advance(seconds=10)
    sender.send(ALICE, TEXT)
    assert len(twilio.requests) == 4
    assert len(sms_gateway.texts) == 2


def test_sender_whose_every_provider_is_spared_is_not_ready(twilio):
    sender = make_sender(twilio.settings(), provider_timeout_s=SHORT_S)
    twilio.hangs = True
    for _ in range(3):
        sender.check_ready()
        with pytest.raises(SmsNotSent):
            sender.send(ALICE, TEXT)
    with pytest.raises(SmsNotSent):
        sender.check_ready()
    with pytest.raises(SmsNotSent):
        sender.send(ALICE, TEXT)
    assert len(twilio.requests) == 3


@pytest.mark.parametrize(("threads", "places"), [(1, 1), (8, 2), (15, 3)])
def test_message_beyond_a_quarter_of_the_threads_is_refused_at_once(twilio, threads, places):
    twilio.hold = threading.Event()
    sender = make_sender(twilio.settings(), threads=threads)

    def send():
        with suppress(SmsNotSent):
            sender.send(ALICE, TEXT)

    waiting = [threading.Thread(target=send) for _ in range(places)]
    for thread in waiting:
        thread.start()
    twilio.wait_for(lambda: len(twilio.requests) == places)
    started = time.monotonic()
    for refused in (sender.check_ready, lambda: sender.send(ALICE, TEXT)):
        with capture_logs() as logs, pytest.raises(SmsNotSent):
            refused()
        assert [entry["reason"] for entry in logs] == ["busy"]
    assert time.monotonic() - started < 1
    assert twilio.connections == places
    twilio.hold.set()
    for thread in waiting:
        thread.join()
    sender.check_ready()
    assert len(twilio.texts) == places
