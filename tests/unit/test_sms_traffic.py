"""Windows, pauses, days and the cap of text messages, without a database."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.clock import DAY_MS, HOUR_MS
from identity.errors import DestinationRejected, InvalidPhoneNumber, LimitExceeded
from identity.sms.report import Status, country_lines, pause_lines, server_line
from identity.sms.traffic import (
    BLOCK_WINDOW,
    COUNTRY_WINDOW,
    SERVER,
    Traffic,
    block_of,
    block_scope,
    calling_code_of,
    code_scope,
    country_name_of,
    country_scope,
    day_cap,
    find_refusal,
    share_of,
)
from identity.threepid import Country, ThreePid

NOW_MS = 1_800_000_000_000
TODAY = NOW_MS // DAY_MS


class Block:
    """One scope as the defence treats it: judged before each message."""

    def __init__(self, window=BLOCK_WINDOW):
        self.traffic = Traffic("GB/00", day=TODAY)
        self.window = window
        self.now_ms = NOW_MS

    def send(self):
        """Whether a message may go; a provider takes it."""
        self.traffic = self.traffic.judged(self.window, self.now_ms)
        if self.traffic.is_paused(self.now_ms):
            return False
        self.traffic = self.traffic.with_one_more(self.now_ms)
        self.traffic = replace(self.traffic, sent=self.traffic.sent + 1)
        return True

    def prove(self):
        if self.traffic.converted < self.traffic.sent:
            self.traffic = replace(self.traffic, converted=self.traffic.converted + 1)

    def send_until_paused(self, limit=1_000):
        for sends in range(limit):
            if not self.send():
                return sends
        return limit


@pytest.mark.parametrize("window", [BLOCK_WINDOW, COUNTRY_WINDOW])
def test_scope_whose_codes_never_come_back_is_paused_at_the_end_of_its_window(window):
    scope = Block(window)
    assert scope.send_until_paused() == window
    assert scope.traffic.paused_until_ms == NOW_MS + HOUR_MS


def test_scope_comes_back_after_an_hour_with_a_tenth_of_a_window_until_one_was_good():
    block = Block()
    block.send_until_paused()
    block.now_ms += HOUR_MS - 1
    assert not block.send()
    for _ in range(3):
        block.now_ms += HOUR_MS
        assert block.send_until_paused() == BLOCK_WINDOW // 10
    block.now_ms += HOUR_MS
    assert block.send()
    block.prove()
    # Four more end the short window, which was good; then a whole one begins.
    assert block.send_until_paused() == 4 + BLOCK_WINDOW


def test_scope_is_judged_by_whether_a_tenth_came_back():
    for proved, goes_on in [(4, False), (5, True)]:
        block = Block()
        for _ in range(BLOCK_WINDOW):
            assert block.send()
        for _ in range(proved):
            block.prove()
        assert block.send() is goes_on


def test_messages_that_no_provider_took_are_not_held_against_a_scope():
    block = Block()
    for _ in range(10 * BLOCK_WINDOW):
        block.traffic = block.traffic.judged(BLOCK_WINDOW, NOW_MS)
        assert not block.traffic.is_paused(NOW_MS)
        block.traffic = block.traffic.with_one_more(NOW_MS)


@given(st.lists(st.sampled_from(["send", "prove", "wait"]), max_size=400))
def test_in_any_order_no_hour_sees_more_than_two_windows_of_which_nothing_came_back(steps):
    """What fraud can get out of a scope: a window that began before it, and one of its own."""
    block = Block()
    useless_at_ms = []
    for step in steps:
        if step == "send":
            if block.send():
                useless_at_ms.append(block.now_ms)
        elif step == "prove":
            block.prove()
            useless_at_ms.clear()
        else:
            block.now_ms += HOUR_MS // 10
        within_hour = [at_ms for at_ms in useless_at_ms if at_ms > block.now_ms - HOUR_MS]
        assert len(within_hour) < 2 * BLOCK_WINDOW


@given(st.lists(st.sampled_from(["send", "send", "withdraw", "prove"]), max_size=400))
def test_counts_are_never_negative_and_no_more_come_back_than_were_sent(steps):
    block = Block()
    for step in steps:
        if step == "send":
            block.send()
        elif step == "prove":
            block.prove()
        else:
            block.traffic = block.traffic.with_one_less(TODAY)
        assert block.traffic.admitted >= 0
        assert block.traffic.day_admitted >= 0
        assert block.traffic.converted <= block.traffic.sent


@given(st.integers(0, 40), st.integers(0, 40))
def test_message_that_is_withdrawn_leaves_no_trace_whatever_came_between(before, after):
    def admitted(traffic, times):
        for _ in range(times):
            traffic = traffic.with_one_more(NOW_MS)
        return traffic

    start = Traffic("GB/00", day=TODAY)
    withdrawn = admitted(admitted(start, before).with_one_more(NOW_MS), after).with_one_less(TODAY)
    assert withdrawn == admitted(start, before + after)


def test_message_withdrawn_on_the_next_day_is_not_given_back_to_it():
    traffic = Traffic("*", day=TODAY).with_one_more(NOW_MS)
    tomorrow = traffic.with_one_more(NOW_MS + DAY_MS)
    assert tomorrow.day_admitted == 1
    assert tomorrow.with_one_less(TODAY).day_admitted == 1
    assert tomorrow.with_one_less(TODAY + 1).day_admitted == 0


def test_day_goes_on_for_a_host_whose_clock_is_behind_and_not_for_one_that_was_years_ahead():
    traffic = Traffic("*", day=TODAY, day_admitted=7)
    assert traffic.today(NOW_MS - DAY_MS).day_admitted == 7
    assert traffic.today(NOW_MS + DAY_MS).day_admitted == 0
    assert replace(traffic, day=TODAY + 365).today(NOW_MS).day_admitted == 0


@pytest.mark.parametrize(
    ("daily_limit", "price", "spend_per_day", "cap"),
    [
        (0, 0.0, 0.0, None),
        (7, 0.0, 0.0, 7),
        (0, 0.05, 50.0, 1_000),
        (0, 0.1, 0.3, 3),  # in binary fractions it would be 2
        (0, 0.05, 0.04, 0),
        (100, 0.05, 50.0, 100),
        (2_000, 0.05, 50.0, 1_000),
        (0, 0.05, 0.0, None),
    ],
)
def test_cap_is_what_both_limits_leave(daily_limit, price, spend_per_day, cap):
    assert day_cap(daily_limit, price, spend_per_day) == cap


def test_message_beyond_the_cap_waits_for_the_next_day():
    server = Traffic(SERVER, day=TODAY, day_admitted=3)
    assert find_refusal([], server, None, NOW_MS) is None
    assert find_refusal([], server, 4, NOW_MS) is None
    refusal = find_refusal([], server, 3, NOW_MS)
    assert isinstance(refusal, LimitExceeded)
    assert refusal.retry_after_ms == DAY_MS - NOW_MS % DAY_MS
    paused = Traffic("GB known", paused_until_ms=NOW_MS + 1)
    assert isinstance(find_refusal([paused], server, 3, NOW_MS), DestinationRejected)


@pytest.mark.parametrize(
    ("digits", "calling_code", "name"),
    [
        ("447400123456", "44", "GB"),
        ("441624812345", "44", "IM"),
        ("18765550123", "1", "JM"),
        ("12025550123", "1", "US"),
        # Outside the plan: of nobody's share but that of the calling code.
        ("447700900001", "44", "+44"),
        ("88213555", "882", "+882"),
    ],
)
def test_country_of_a_number(digits, calling_code, name):
    country = Country.of(ThreePid.msisdn(digits))
    assert (country.calling_code, country.name) == (calling_code, name)
    assert country in Country.sharing(calling_code)


def test_digits_of_no_country_are_refused():
    for digits in ("1", "99912345678"):
        with pytest.raises(InvalidPhoneNumber):
            Country.of(ThreePid.msisdn(digits))
    for code in ("", "x", "+44", "999", "4444", "٤٤"):
        with pytest.raises(InvalidPhoneNumber):
            Country.sharing(code)


def test_block_is_what_ten_thousand_numbers_have_in_common():
    assert block_of(ThreePid.msisdn("447400123456")) == "44740012"
    assert block_of(ThreePid.msisdn("123")) == ""


def test_names_of_scopes_are_read_back():
    gb, satellites = Country("44", "GB"), Country("882", "+882")
    known, others = (country_scope(gb, is_known=is_known) for is_known in (True, False))
    assert (share_of(known), share_of(others)) == ("known", "others")
    block = block_scope(satellites, bytes(32))
    assert [country_name_of(name) for name in (known, others, block)] == ["GB", "GB", "+882"]
    assert calling_code_of(code_scope("44")) == "44"
    for scope in (SERVER, block, code_scope("44")):
        assert share_of(scope) is None
    for scope in (SERVER, block, known):
        assert calling_code_of(scope) is None
    # The order in which rows are locked.
    assert len(SERVER) < len(known) < len(block) <= 80


def test_report_has_a_line_for_each_thing_and_no_rate_of_nothing():
    status = Status(
        server=Traffic(SERVER, day_admitted=3),
        day_cap=None,
        alarm_until_ms=None,
        countries=[Traffic("GB known", sent=4, converted=3), Traffic("DE others")],
        paused_blocks={"GB": 2},
        paused_codes=["1"],
    )
    server = server_line(status, providers=("twilio",), price=0.1, spend_per_day=0.0)
    assert (server["spent_today"], server["spend_per_day"]) == (0.3, None)
    gb, de = country_lines(status, NOW_MS)
    assert (gb["country"], gb["share"], gb["rate_in_window"]) == ("GB", "known", 0.75)
    assert (de["share"], de["rate_today"], de["rate_in_window"]) == ("others", None, None)
    assert pause_lines(status) == [
        {"kind": "blocks", "country": "GB", "paused": 2},
        {"kind": "pause", "calling_code": "1"},
    ]
