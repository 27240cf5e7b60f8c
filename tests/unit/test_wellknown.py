from email.message import Message

import pytest

from identity.clock import DAY_MS, HOUR_MS, MINUTE_MS
from identity.errors import InvalidRequest
from identity.federation import wellknown

NOW_MS = 1_800_000_000_000  # Fri, 15 Jan 2027 08:00:00 GMT


def headers(*fields: tuple[str, str]) -> Message:
    message = Message()
    for name, value in fields:
        message[name] = value
    return message


@pytest.mark.requirement("FED-04")
@pytest.mark.parametrize(
    ("name", "host", "port"),
    [
        ("other.test", "other.test", None),
        ("other.test:8449", "other.test", 8449),
        ("1.2.3.4", "1.2.3.4", None),
        ("[2a00::1]:443", "2a00::1", 443),
    ],
)
def test_body_with_server_name_is_parsed(name, host, port):
    parsed = wellknown.parse(b'{"m.server": "%s", "more": [1]}' % name.encode())
    assert (parsed.host, parsed.port) == (host, port)


@pytest.mark.requirement("FED-05")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b"null",
        b'{"m.server": 1}',
        b'{"m.server": null}',
        b'{"m.server": ["a.test"]}',
        b'{"m.server": ""}',
        b'{"m.server": "https://a.test"}',
        b'{"m.server": "u@a.test"}',
        b'{"m.server": "a.test/x"}',
        b'{"m.server": "a.test:0"}',
        b'{"m.server": "a.test:99999"}',
        b'{"m.server": "a.test", "m.server": "b.test"}',
        b'{"m.server": "a.te\xff"}',
    ],
)
def test_body_that_is_odd_is_refused(body):
    with pytest.raises(InvalidRequest):
        wellknown.parse(body)


@pytest.mark.requirement("FED-08")
@pytest.mark.parametrize(
    ("fields", "lifetime_ms"),
    [
        ([], DAY_MS),
        ([("Cache-Control", "max-age=7200")], 2 * HOUR_MS),
        ([("Cache-Control", 'public, MAX-AGE="7200"')], 2 * HOUR_MS),
        ([("Cache-Control", "public"), ("Cache-Control", "max-age=7200")], 2 * HOUR_MS),
        ([("Cache-Control", "max-age=999999")], 2 * DAY_MS),
        ([("Cache-Control", "max-age=" + "9" * 5000)], 2 * DAY_MS),
        ([("Cache-Control", "max-age=1")], 5 * MINUTE_MS),
        ([("Cache-Control", "max-age=-1")], DAY_MS),
        ([("Cache-Control", "no-store")], 5 * MINUTE_MS),
        ([("Cache-Control", "max-age=7200, no-store")], 5 * MINUTE_MS),
        ([("Cache-Control", "no-cache")], 5 * MINUTE_MS),
        ([("Cache-Control", "public")], DAY_MS),
        ([("Expires", "Fri, 15 Jan 2027 10:00:00 GMT")], 2 * HOUR_MS),
        ([("Expires", "Fri, 15 Jan 2128 10:00:00 GMT")], 2 * DAY_MS),
        ([("Expires", "Fri, 15 Jan 2017 10:00:00 GMT")], 5 * MINUTE_MS),
        ([("Expires", "0")], 5 * MINUTE_MS),
        ([("Expires", "0"), ("Cache-Control", "max-age=7200")], 2 * HOUR_MS),
    ],
)
def test_lifetime_with_cache_headers_is_within_bounds(fields, lifetime_ms):
    assert wellknown.lifetime_ms(headers(*fields), NOW_MS, 0) == lifetime_ms


@pytest.mark.requirement("FED-08")
def test_lifetime_with_jitter_is_shorter_but_not_below_the_floor():
    assert wellknown.lifetime_ms(headers(), NOW_MS, 0.1) == DAY_MS * 9 // 10
    no_store = headers(("Cache-Control", "no-store"))
    assert wellknown.lifetime_ms(no_store, NOW_MS, 0.1) == 5 * MINUTE_MS


@pytest.mark.requirement("FED-08")
def test_failure_lifetime_doubles_up_to_an_hour():
    minutes = [wellknown.failure_lifetime_ms(n, 0) // MINUTE_MS for n in range(1, 9)]
    assert minutes == [2, 4, 8, 16, 32, 60, 60, 60]
    assert wellknown.failure_lifetime_ms(10**9, 0) == HOUR_MS
    assert wellknown.failure_lifetime_ms(1, 0.1) == 2 * MINUTE_MS * 9 // 10
