from parts.clock import FakeClock

from identity.breaker import Breaker
from identity.clock import SECOND_MS


def opened() -> tuple[Breaker, FakeClock]:
    clock = FakeClock(0)
    breaker = Breaker(clock)
    for _ in range(3):
        assert not breaker.is_open("a.test")
        breaker.record("a.test", timed_out=True)
    return breaker, clock


def test_breaker_after_three_timeouts_is_open_for_ten_seconds():
    breaker, clock = opened()
    assert breaker.is_open("a.test")
    assert not breaker.is_open("b.test")
    clock.at_ms = 10 * SECOND_MS - 1
    assert breaker.is_open("a.test")
    clock.at_ms = 10 * SECOND_MS
    assert not breaker.is_open("a.test")


def test_breaker_after_another_timeout_opens_again():
    breaker, clock = opened()
    clock.at_ms = 10 * SECOND_MS
    breaker.record("a.test", timed_out=True)
    assert breaker.is_open("a.test")


def test_breaker_after_an_answer_counts_from_the_start():
    breaker, clock = opened()
    clock.at_ms = 10 * SECOND_MS
    breaker.record("a.test", timed_out=False)
    for _ in range(2):
        breaker.record("a.test", timed_out=True)
    assert not breaker.is_open("a.test")


def test_breaker_with_clock_set_back_is_closed():
    breaker, clock = opened()
    clock.at_ms = -SECOND_MS
    assert not breaker.is_open("a.test")
