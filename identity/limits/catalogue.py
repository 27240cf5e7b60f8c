"""Every rate limit by name: its default, who is counted, what it protects.

This is the one place. `[rate_limits.limits]` may change the rates of these names and cannot
add any; a test holds `docs/limits.md` against this module.
Source of the defaults: docs/limits.md, "Where the defaults come from".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

from identity.limits.gcra import Rate

# By name, the rates that hold together.
Limits: TypeAlias = Mapping[str, tuple[Rate, ...]]


@dataclass(frozen=True, slots=True)
class Limit:
    """`fails_open`: counted per process, instead of refused, while the storage is away."""

    default: str
    per: str
    protects: str
    fails_open: bool = False


CATALOGUE: Final[Mapping[str, Limit]] = MappingProxyType(
    {
        "lookup_account": Limit(
            "15000/3d",
            per="account",
            protects="who is on Matrix; one permit is one address looked up",
            fails_open=True,
        ),
        "hash_details_account": Limit(
            "60/h",
            per="account",
            protects="the server from clients that ask in a loop",
            fails_open=True,
        ),
        "legacy_lookup_ip": Limit(
            "20000/d",
            per="IPv4 address or IPv6 /64",
            protects="who is on Matrix, where lookups need no account",
        ),
        "legacy_lookup_ip_wide": Limit(
            "60000/d", per="IPv6 /48", protects="the same from one who owns many /64 networks"
        ),
        "email_recipient": Limit(
            "5/h, 10/d", per="e-mail address", protects="a mailbox from being flooded, whoever asks"
        ),
        "email_account": Limit("10/h", per="account", protects="strangers from one account"),
        "email_ip": Limit(
            "20/h", per="IPv4 address or IPv6 /64", protects="strangers from one network"
        ),
        "email_ip_wide": Limit(
            "60/h", per="IPv6 /48", protects="strangers from one who owns many /64 networks"
        ),
        "email_domain": Limit(
            "200/h",
            per="domain of the e-mail address",
            protects="one mail provider, and our name there",
        ),
        "email_global": Limit("3000/h", per="whole server", protects="the mail relay"),
        "invite_sender": Limit(
            "10/h, 50/d", per="MXID that invites", protects="strangers from one who invites them"
        ),
        "invite_recipient": Limit(
            "3/d",
            per="e-mail address or phone number",
            protects="whoever has it from invitations, whoever sends them",
        ),
        "invite_homeserver": Limit(
            "100/h", per="homeserver of the sender", protects="the same from one with many accounts"
        ),
        "invite_ip": Limit(
            "60/h",
            per="IPv4 address or IPv6 /64",
            protects="who is on Matrix, where invitations need no account",
        ),
        "invite_ip_wide": Limit(
            "180/h", per="IPv6 /48", protects="the same from one who owns many /64 networks"
        ),
        "sms_number": Limit(
            "1/30s, 3/10m, 5/d",
            per="phone number",
            protects="whoever has it from being flooded, whoever asks",
        ),
        "sms_block": Limit(
            "10/h, 50/d",
            per="10,000 numbers, which differ in the last four digits",
            protects="money from fraudsters, who rent numbers by the block",
        ),
        "sms_country_known": Limit(
            "50/h",
            per="country, for accounts of known homeservers",
            protects="money, and a share of the country for them",
        ),
        "sms_country_others": Limit(
            "10/h", per="country, for everybody else", protects="money, and the share of the known"
        ),
        "sms_account": Limit("5/h, 10/d", per="account", protects="money from one account"),
        "sms_ip": Limit("10/h", per="IPv4 address or IPv6 /64", protects="money from one network"),
        "sms_ip_wide": Limit(
            "30/h", per="IPv6 /48", protects="the same from one who owns many /64 networks"
        ),
        "sms_homeserver": Limit(
            "50/h", per="homeserver of the account", protects="money from one with many accounts"
        ),
        "sms_global": Limit("300/h", per="whole server", protects="money"),
        "sms_alarm": Limit(
            "60/h",
            per="whole server, while the alarm is on",
            protects="codes from being guessed over many numbers",
        ),
        "wrong_codes_global": Limit(
            "200/h",
            per="whole server",
            protects="nothing by itself: used up, it sets off the alarm for an hour",
        ),
        "wrong_tokens_account": Limit(
            "20/d", per="account", protects="tokens and codes from being guessed"
        ),
        "wrong_tokens_homeserver": Limit(
            "100/h",
            per="homeserver of the account",
            protects="tokens and codes from one who owns many accounts",
        ),
        "wrong_tokens_ip": Limit(
            "300/h",
            per="IPv4 address or IPv6 /64",
            protects="tokens and codes, where submitting them needs no account",
        ),
        "wrong_tokens_ip_wide": Limit(
            "900/h", per="IPv6 /48", protects="the same from one who owns many /64 networks"
        ),
        "signed_request_ip": Limit(
            "3000/h",
            per="IPv4 address or IPv6 /64",
            protects="homeservers from being asked for their keys through us",
        ),
        "signed_request_ip_wide": Limit(
            "9000/h", per="IPv6 /48", protects="the same from one who owns many /64 networks"
        ),
        "register_ip": Limit(
            "30/h", per="IPv4 address or IPv6 /64", protects="the table of accounts"
        ),
        "register_ip_wide": Limit(
            "90/h", per="IPv6 /48", protects="the same from one who owns many /64 networks"
        ),
        "register_homeserver": Limit(
            "5000/d",
            per="homeserver",
            protects="every limit per account from one who mints accounts",
        ),
        "userinfo_host": Limit(
            "60/m", per="host called", protects="homeservers from being called through us"
        ),
    }
)


def with_overrides(overrides: Limits) -> Limits:
    """All limits: the defaults, but for those that the configuration gives.

    Raises: ValueError for a name that is not in the catalogue.
    """
    if unknown := sorted(overrides.keys() - CATALOGUE.keys()):
        raise ValueError(f"no such limit: {', '.join(unknown)}; there are {', '.join(CATALOGUE)}")
    return {
        name: overrides.get(name) or Rate.parse_list(limit.default)
        for name, limit in CATALOGUE.items()
    }
