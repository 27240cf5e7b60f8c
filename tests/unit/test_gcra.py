"""The arithmetic of rate limits, and what an IP address counts as."""

from ipaddress import IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from identity.clock import DAY_MS, HOUR_MS, MINUTE_MS
from identity.limits.catalogue import CATALOGUE, with_overrides
from identity.limits.gcra import Rate, decide
from identity.limits.subjects import ip_subjects

NOW_MS = 1_800_000_000_000
KEY = b"k" * 32
PREFIX = int(IPv6Address("2001:db8::"))

rates = st.builds(
    Rate,
    count=st.integers(1, 60),
    period_ms=st.sampled_from([1_000, 7_000, MINUTE_MS, 10 * MINUTE_MS, HOUR_MS, DAY_MS]),
)


class Bucket:
    """One bucket that is spent from, and what was allowed when."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.tat_us: int | None = None
        self.allowed: list[tuple[int, int]] = []

    def spend(self, now_ms: int, permits: int = 1) -> int:
        """0 when allowed, else how long to wait, in milliseconds, or -1 if that is not said."""
        decision = decide([self.rate.charge(KEY, permits)], [self.tat_us], now_ms)
        if decision.allowed:
            (self.tat_us,) = decision.tats_us
            self.allowed.append((now_ms, permits))
            return 0
        return decision.retry_after_ms or -1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5/h", (Rate(5, HOUR_MS),)),
        ("5/h, 10/d", (Rate(5, HOUR_MS), Rate(10, DAY_MS))),
        ("30/10m,1/s", (Rate(30, 10 * MINUTE_MS), Rate(1, 1_000))),
        ("15000/3d", (Rate(15_000, 3 * DAY_MS),)),
        ("1000/s", (Rate(1_000, 1_000),)),
    ],
)
def test_rate_list_with_valid_text_is_parsed(text, expected):
    assert Rate.parse_list(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a rate"),
        ("5", "is not a rate"),
        ("5/", "is not a rate"),
        ("5/w", "is not a rate"),
        ("5 / h", "is not a rate"),
        ("-5/h", "is not a rate"),
        ("5.5/h", "is not a rate"),
        ("5/h,", "is not a rate"),
        ("\N{ARABIC-INDIC DIGIT FIVE}/h", "is not a rate"),
        ("0/h", "must be 1 or more"),
        ("5/0h", "between 1s and 366d"),
        ("5/367d", "between 1s and 366d"),
        ("1001/s", "at most 1000 a second"),
        ("5/h, 6/60m", "two rates for the same period"),
    ],
)
def test_rate_list_with_invalid_text_is_refused_with_a_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        Rate.parse_list(text)


@given(rates)
def test_rate_as_text_is_parsed_back_as_the_same_rate(rate):
    assert Rate.parse(str(rate)) == rate


@given(rates)
def test_bucket_that_is_full_allows_its_count_at_once_and_not_one_more(rate):
    bucket = Bucket(rate)
    for _ in range(rate.count):
        assert bucket.spend(NOW_MS) == 0
    assert bucket.spend(NOW_MS) > 0


@given(rates)
def test_bucket_that_is_empty_is_full_again_after_its_period(rate):
    bucket = Bucket(rate)
    bucket.spend(NOW_MS, rate.count)
    # One millisecond and not none, for T is rounded up to a whole microsecond.
    assert bucket.spend(NOW_MS + rate.period_ms + 1, rate.count) == 0


@pytest.mark.requirement("GEN-15")
@given(rates, st.data())
def test_bucket_over_any_span_allows_no_more_than_its_count_and_what_came_back(rate, data):
    bucket = Bucket(rate)
    now_ms = NOW_MS
    steps = st.tuples(st.integers(0, rate.period_ms), st.integers(1, rate.count))
    for step_ms, permits in data.draw(st.lists(steps, max_size=40)):
        now_ms += step_ms
        bucket.spend(now_ms, permits)
    for start, (from_ms, _) in enumerate(bucket.allowed):
        total = 0
        for to_ms, permits in bucket.allowed[start:]:
            total += permits
            assert total <= rate.count + (to_ms - from_ms) * rate.count / rate.period_ms


@given(rates, st.lists(st.integers(0, 10 * DAY_MS), max_size=5))
def test_bucket_whose_clock_goes_back_stays_as_empty_as_it_was(rate, steps_back_ms):
    bucket = Bucket(rate)
    bucket.spend(NOW_MS, rate.count)
    wait_ms = bucket.spend(NOW_MS)
    for step_ms in steps_back_ms:
        assert bucket.spend(NOW_MS - step_ms) == wait_ms + step_ms
    assert bucket.spend(NOW_MS + wait_ms - 1) == 1
    assert bucket.spend(NOW_MS + wait_ms) == 0


@given(rates, st.data())
@example(Rate(7, HOUR_MS), None)  # an interval that is no whole number of microseconds
def test_retry_after_is_the_first_millisecond_that_passes(rate, data):
    bucket = Bucket(rate)
    permits = data.draw(st.integers(1, rate.count)) if data else 3
    for _ in range(rate.count):
        bucket.spend(NOW_MS, permits)
    wait_ms = bucket.spend(NOW_MS, permits)
    assert bucket.spend(NOW_MS + wait_ms - 1, permits) == 1
    assert bucket.spend(NOW_MS + wait_ms, permits) == 0


@given(st.integers(1, 100_000), st.integers(100, 366 * 24 * 3_600))
def test_interval_is_rounded_to_the_strict_side_by_less_than_a_microsecond(count, period_s):
    rate = Rate(count, period_s * 1_000)
    assert period_s * 1_000_000 <= rate.interval_us * count < period_s * 1_000_000 + count


@given(rates)
def test_cost_above_the_burst_can_never_pass_and_is_an_error(rate):
    with pytest.raises(ValueError, match="can never be had"):
        rate.charge(KEY, rate.count + 1)


@pytest.mark.parametrize("permits", [0, -1])
def test_cost_below_one_is_an_error(permits):
    with pytest.raises(ValueError, match="can never be had"):
        Rate(5, HOUR_MS).charge(KEY, permits)


def test_charges_together_wait_for_the_slowest_and_leave_all_buckets_alone():
    hourly, daily = Rate.parse_list("1/h, 1/d")
    charges = [hourly.charge(b"h", 1), daily.charge(b"d", 1)]
    first = decide(charges, [None, None], NOW_MS)
    assert first.allowed
    later_ms = NOW_MS + 2 * HOUR_MS
    second = decide(charges, first.tats_us, later_ms)
    assert (second.allowed, second.tats_us) == (False, ())
    assert second.waits_us == (0, (DAY_MS - 2 * HOUR_MS) * 1_000)
    assert second.retry_after_ms == DAY_MS - 2 * HOUR_MS


def test_catalogue_defaults_are_all_rates():
    limits = with_overrides({})
    assert limits.keys() == CATALOGUE.keys()
    assert limits["email_recipient"] == (Rate(5, HOUR_MS), Rate(10, DAY_MS))
    assert limits["lookup_account"] == (Rate(15_000, 3 * DAY_MS),)


def test_override_of_a_known_name_replaces_its_rates_alone():
    limits = with_overrides({"email_account": (Rate(1, DAY_MS),)})
    assert limits["email_account"] == (Rate(1, DAY_MS),)
    assert limits | {"email_account": ()} == with_overrides({}) | {"email_account": ()}


def test_override_of_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no such limit: email_acount; there are lookup_account, "):
        with_overrides({"email_acount": (Rate(1, DAY_MS),)})


@pytest.mark.parametrize(
    ("ip", "subjects"),
    [
        ("192.0.2.7", ["192.0.2.7"]),
        ("::ffff:192.0.2.7", ["192.0.2.7"]),
        ("2001:db8:1:2:3:4:5:6", ["2001:db8:1:2::/64", "2001:db8:1::/48"]),
        ("fe80::1%eth0", ["fe80::/64", "fe80::/48"]),
        ("", ["unreadable"]),
        ("192.0.2.7, 192.0.2.8", ["unreadable"]),
    ],
)
def test_ip_address_counts_as_its_network(ip, subjects):
    assert ip_subjects("email_ip", ip) == tuple(
        zip(["email_ip", "email_ip_wide"], subjects, strict=False)
    )


def test_ip_addresses_of_one_slash_64_are_one_subject():
    """Threat 29: a new IPv6 address for each request is no new bucket."""
    subjects = {
        ip_subjects("register_ip", str(IPv6Address(PREFIX + host)))
        for host in range(0, 2**64, 2**51)
    }
    assert len(subjects) == 1


def test_limits_by_ip_all_have_a_wide_one():
    by_ip = {name for name in CATALOGUE if name.endswith("_ip")}
    assert {name + "_wide" for name in by_ip} == {
        name for name in CATALOGUE if name.endswith("_wide")
    }
