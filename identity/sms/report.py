"""What an operator is told about text messages: pure; the command line shows it.

A line for the server; one for each share of a country; one for the paused blocks of each country;
one for each calling code that was paused by hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from identity.sms.traffic import Traffic, country_name_of, share_of


@dataclass(frozen=True, slots=True)
class Status:
    """`day_cap`: messages a day, None for any number. `alarm_until_ms`: None when it is off.

    `server` and `countries`: with the counts of today. `paused_blocks`: how many of a country's
    blocks are paused, by its name. `paused_codes`: what an operator has paused.
    """

    server: Traffic
    day_cap: int | None
    alarm_until_ms: int | None
    countries: Sequence[Traffic]
    paused_blocks: Mapping[str, int]
    paused_codes: Sequence[str]


def server_line(
    status: Status, *, providers: Sequence[str], price: float, spend_per_day: float
) -> dict[str, Any]:
    """`spend_per_day`: 0 for no cap. Money is rounded to a hundredth of its hundredth."""
    return {
        "kind": "server",
        "providers": list(providers),
        "messages_today": status.server.day_admitted,
        "messages_per_day": status.day_cap,
        "spent_today": round(status.server.day_admitted * price, 4),
        "spend_per_day": spend_per_day or None,
        "alarm_until_ms": status.alarm_until_ms,
    }


def country_lines(status: Status, now_ms: int) -> list[dict[str, Any]]:
    """In the order of their names. Of a window that has just begun no rate is known: None."""
    return [
        {
            "kind": "country",
            "country": country_name_of(country.scope),
            "share": share_of(country.scope),
            "messages_today": country.day_admitted,
            "codes_today": country.day_sent,
            "proved_today": country.day_converted,
            "rate_today": _rate(country.day_converted, country.day_sent),
            "codes_in_window": country.sent,
            "proved_in_window": country.converted,
            "rate_in_window": _rate(country.converted, country.sent),
            "paused_until_ms": country.paused_until_ms if country.is_paused(now_ms) else None,
        }
        for country in status.countries
    ]


def pause_lines(status: Status) -> list[dict[str, Any]]:
    return [
        *(
            {"kind": "blocks", "country": country, "paused": count}
            for country, count in status.paused_blocks.items()
        ),
        *({"kind": "pause", "calling_code": code} for code in status.paused_codes),
    ]


def _rate(converted: int, sent: int) -> float | None:
    return round(converted / sent, 3) if sent else None
