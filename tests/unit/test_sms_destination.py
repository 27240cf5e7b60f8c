"""Where text messages may go, and from whom they come."""

import pytest

from identity.config import Config
from identity.errors import DestinationRejected
from identity.sms.destination import CallingCodes, Originators
from identity.threepid import ThreePid

TWILIO = {"account_sid": "AC", "auth_token": "t"}
GATEWAY = {"url": "http://localhost/"}


def is_served(number, email=None, **sms):
    config = Config.model_validate({"sms": sms, "email": email or {}})
    try:
        CallingCodes.from_config(config).check(ThreePid.msisdn(number))
    except DestinationRejected:
        return False
    return True


@pytest.mark.parametrize(
    ("sms", "served", "refused"),
    [
        ({}, ["447700900001", "12125550100"], []),
        ({"provider": "file"}, ["447700900001"], []),
        ({"provider": "file", "allowed_calling_codes": ["1"]}, ["12125550100"], ["447700900001"]),
        ({"denied_calling_codes": ["44"]}, ["12125550100"], ["447700900001"]),
        ({"provider": "http", "http": GATEWAY}, [], ["447700900001", "12125550100"]),
        ({"provider": ["file", "http"], "http": GATEWAY}, [], ["447700900001"]),
        (
            {"provider": "http", "http": GATEWAY, "allowed_calling_codes": ["44", "372"]},
            ["447700900001", "37251234567"],
            ["12125550100", "37000000000", "4799999999"],
        ),
        (
            {
                "provider": "twilio",
                "from": "Matrix",
                "twilio": TWILIO,
                "allowed_calling_codes": ["*"],
                "denied_calling_codes": ["882", "44"],
            },
            ["12125550100"],
            ["447700900001", "88216000000"],
        ),
        (
            {
                "provider": "http",
                "http": GATEWAY,
                "allowed_calling_codes": ["44"],
                "denied_calling_codes": ["44"],
            },
            [],
            ["447700900001"],
        ),
    ],
)
def test_number_is_served_as_the_lists_of_calling_codes_say(sms, served, refused):
    assert [number for number in served + refused if is_served(number, **sms)] == served


def test_no_number_is_served_where_there_is_no_sms():
    mail = {"smtp_host": "localhost"}
    assert not is_served("447700900001", email=mail)
    assert not is_served("447700900001", email=mail, allowed_calling_codes=["*"])


@pytest.mark.parametrize(
    ("by_code", "otherwise", "originator"),
    [
        ({}, "", None),
        ({}, "Matrix", "Matrix"),
        ({"default": "Def"}, "Matrix", "Def"),
        ({"44": "UK", "default": "Def"}, "Matrix", "UK"),
        ({"4": "Four", "44": "UK"}, "Matrix", "UK"),
        ({"1": "US"}, "", None),
        ({"44": "", "default": ""}, "Matrix", "Matrix"),
    ],
)
def test_originator_is_that_of_the_longest_prefix_else_the_default(by_code, otherwise, originator):
    assert Originators(by_code, otherwise).find(ThreePid.msisdn("447700900001")) == originator
