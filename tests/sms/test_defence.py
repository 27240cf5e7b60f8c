"""The defence against fraud with text messages: limits, breakers, caps, pauses, the alarm."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from parts.processes import environment
from parts.validation import UNLIMITED, sqlite_only

from identity.clock import DAY_MS, HOUR_MS
from identity.errors import (
    DestinationRejected,
    InvalidPhoneNumber,
    LimitExceeded,
    StorageUnavailable,
)
from identity.sms.defence import Defence

NUMBER = "447400120001"


def block(start, count):
    """So many numbers of one block."""
    return [f"{start}{index:04}" for index in range(count)]


def blocks(start, count):
    """A number in each of so many blocks; `start` leaves six digits."""
    return [f"{start}{index:02}1234" for index in range(count)]


def mxids(count, host="hs.test"):
    return [f"@u{index}:{host}" for index in range(count)]


# --- limits -------------------------------------------------------------------------


@sqlite_only
def test_number_is_sent_to_at_growing_distances_and_five_times_a_day(make_texter):
    texter = make_texter()
    clock, sent_at_s = texter.server.clock, []
    for second in range(0, 3_600, 10):
        # From other accounts and addresses each time.
        if texter.send(NUMBER, f"@u{second}:hs{second}.test", f"192.0.2.{second // 10 % 250}"):
            sent_at_s.append(second)
        clock.advance(seconds=10)
    assert sent_at_s == [0, 30, 60, 200, 400]
    clock.advance(hours=4)
    assert texter.send(NUMBER)


@pytest.mark.requirement("TEL-09")
def test_block_is_sent_to_ten_times_an_hour_and_the_next_block_all_the_same(make_texter):
    texter = make_texter({"RATE_LIMITS__LIMITS__SMS_COUNTRY_OTHERS": "99/h"})
    sends = zip(block("44740012", 30), mxids(30, "a.test"), strict=True)
    assert sum(texter.send(number, mxid, f"192.0.2.{mxid[2:4]}") for number, mxid in sends) == 10
    assert texter.send("447400130001", "@x:b.test", "198.51.100.1")


@sqlite_only
def test_account_address_homeserver_and_server_have_limits_of_their_own(make_texter):
    many = {"RATE_LIMITS__LIMITS__SMS_COUNTRY_OTHERS": "1000/h"}
    texter = make_texter(many)
    numbers = iter(blocks("447500", 99))
    assert sum(texter.send(next(numbers)) for _ in range(9)) == 5
    per_address = [texter.send(next(numbers), mxid, "198.51.100.1") for mxid in mxids(20, "x.test")]
    assert sum(per_address) == 10
    texter = make_texter(many)
    numbers = iter(blocks("447500", 99))
    per_homeserver = [
        texter.send(next(numbers), mxid, f"198.51.100.{index}")
        for index, mxid in enumerate(mxids(60))
    ]
    assert sum(per_homeserver) == 50
    texter = make_texter({**many, "RATE_LIMITS__LIMITS__SMS_GLOBAL": "7/h"})
    everywhere = [
        texter.send(number, f"@u:h{index}.test", f"198.51.100.{index}")
        for index, number in enumerate(blocks("447500", 20))
    ]
    assert sum(everywhere) == 7


@pytest.mark.requirement("TEL-09")
def test_known_homeservers_have_a_share_of_a_country_that_others_cannot_use_up(make_texter):
    """Threat 25."""
    texter = make_texter({"FEDERATION__ALLOWED_HOMESERVERS": '["listed.test"]'})
    server = texter.server
    server.account("@first:old.test")
    server.clock.advance(hours=24 * 30)
    server.account("@first:young.test")
    server.clock.advance(hours=1)
    numbers = iter(blocks("447500", 99))

    def sends(host, first_ip, count=12):
        return sum(
            texter.send(next(numbers), mxid, f"192.0.2.{first_ip + index}")
            for index, mxid in enumerate(mxids(count, host))
        )

    assert sends("young.test", 0) == 10
    assert sends("never.test", 20) == 0
    assert not texter.send(next(numbers), None, "192.0.2.99")
    assert sends("old.test", 40) == 12
    assert sends("listed.test", 60) == 12
    # Another country has shares of its own.
    assert texter.send("4915112345678", "@x:never.test", "192.0.2.120")


def test_homeserver_is_known_thirty_days_after_its_first_account(server):
    server.account("@a:one.test:8448")
    first_ms = server.clock.now_ms()
    server.clock.advance(hours=5)
    server.account("@a:One.test")
    server.account("@b:two.test")
    assert {row["name"]: row["first_seen_at_ms"] for row in server.rows("homeservers")} == {
        "one.test": first_ms,
        "two.test": first_ms + 5 * HOUR_MS,
    }


def test_message_that_is_withdrawn_costs_nothing(make_texter):
    texter = make_texter({"SMS__DAILY_LIMIT": "1"})
    for _ in range(20):
        texter.defence.withdraw(texter.admit(NUMBER))
    assert texter.send(NUMBER)
    assert not texter.send("4915112345678")
    server = texter.traffic("*")
    assert (server.admitted, server.day_admitted) == (1, 1)


def test_digits_of_no_country_cost_nothing(make_texter):
    texter = make_texter()
    with pytest.raises(InvalidPhoneNumber):
        texter.admit("1")
    assert texter.server.rows("sms_traffic") == []


# --- breakers -----------------------------------------------------------------------


def test_block_whose_codes_never_come_back_is_paused_for_an_hour(make_texter, capsys):
    texter = make_texter(UNLIMITED)
    assert texter.send_each(block("44740012", 80)) == 50
    with pytest.raises(DestinationRejected):
        texter.admit("447400129999")
    # The rest of the country is not.
    assert texter.send("447400130001")
    texter.server.clock.advance(minutes=59)
    assert texter.send_each(block("44740012", 3)) == 0
    texter.server.clock.advance(minutes=1)
    assert texter.send_each(block("44740012", 80)) == 5
    logged = capsys.readouterr().out
    assert logged.count("sms_paused") == 2
    assert "44740012" not in logged


def test_country_whose_codes_never_come_back_is_paused_for_those_who_asked(make_texter):
    texter = make_texter({**UNLIMITED, "FEDERATION__ALLOWED_HOMESERVERS": '["known.test"]'})
    numbers = [number for start in range(10) for number in blocks(f"4474{start:02}", 30)]
    assert texter.send_each(numbers) == 200
    assert not texter.send("447500001234")
    assert texter.send("447500001234", "@a:known.test")
    assert texter.send("4915112345678")
    texter.server.clock.advance(hours=1)
    assert texter.send("447500001234")


def test_block_whose_codes_come_back_is_never_paused(make_texter):
    texter = make_texter(UNLIMITED)
    for index, number in enumerate(block("44740012", 120)):
        assert texter.send(number)
        if index % 8 == 0:
            texter.prove(number)


def test_proved_code_counts_for_the_share_of_the_account_that_asked(make_texter):
    texter = make_texter({**UNLIMITED, "FEDERATION__ALLOWED_HOMESERVERS": '["known.test"]'})
    for mxid in ("@a:known.test", "@a:other.test", None):
        assert texter.send(NUMBER, mxid)
        texter.prove(NUMBER, mxid)
    known, others = texter.traffic("GB known"), texter.traffic("GB others")
    assert (known.sent, known.converted, known.day_converted) == (1, 1, 1)
    assert (others.sent, others.converted, others.day_converted) == (2, 2, 2)
    # Nothing more can have come back than was sent.
    texter.prove(NUMBER, "@a:known.test")
    assert texter.traffic("GB known").converted == 1


def test_invitations_neither_trip_a_breaker_nor_hide_what_does(make_texter):
    texter = make_texter(UNLIMITED)
    for number in block("44740012", 40):
        texter.admit(number)
    assert texter.send_each(block("44740012", 80)) == 10


# --- the cap ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cap",
    [
        {"SMS__DAILY_LIMIT": "6"},
        {"SMS__PRICE": "0.05", "SMS__SPEND_PER_DAY": "0.3"},
    ],
)
@sqlite_only
def test_cap_holds_for_each_utc_day_also_without_rate_limits(make_texter, cap, capsys):
    texter = make_texter({**UNLIMITED, **cap})
    clock = texter.server.clock
    assert texter.send_each(blocks("447500", 9)) == 6
    with pytest.raises(LimitExceeded) as refused:
        texter.admit(NUMBER)
    clock.advance(ms=refused.value.retry_after_ms - 1)
    assert not texter.send(NUMBER)
    clock.advance(ms=1)
    assert clock.now_ms() % DAY_MS == 0
    assert texter.send_each(blocks("447500", 9)) == 6
    assert capsys.readouterr().out.count("sms_daily_cap_reached") == 2


def test_message_that_the_cap_refuses_is_charged_to_nobody(make_texter):
    texter = make_texter({"SMS__DAILY_LIMIT": "3", "RATE_LIMITS__LIMITS__SMS_ACCOUNT": "4/d"})
    assert texter.send_each(blocks("447500", 30)) == 3
    texter.server.clock.advance(hours=24)
    assert texter.send(NUMBER)


# --- many processes -----------------------------------------------------------------


def in_eight_processes(server, settings, *arguments):
    config = server.config
    shared = {
        "DATABASE__URL": config.database_url,
        "KEYS__SIGNING_KEYS": str(config.signing_keys_path),
        "KEYS__STORAGE_KEYS": str(config.storage_keys_path),
        "SERVER__DATA_DIR": str(config.server.data_dir),
    }
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("pumper.py"), *map(str, arguments)],
        env=environment({**shared, **settings}),
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    return sum(json.loads(done.stdout))


def test_breaker_shared_by_eight_processes_lets_one_window_through(server):
    assert in_eight_processes(server, UNLIMITED, 20) == 50


def test_cap_shared_by_eight_processes_is_reached_and_not_passed(server):
    cap = {**UNLIMITED, "SMS__DAILY_LIMIT": "33"}
    assert in_eight_processes(server, cap, 10) == 33
    # What is withdrawn is there for others.
    assert in_eight_processes(server, {**cap, "SMS__DAILY_LIMIT": "43"}, 20, "withdraw") == 10


def test_block_limit_shared_by_eight_processes_is_spent_exactly(server):
    assert in_eight_processes(server, {}, 10) == 10


# --- the operator -------------------------------------------------------------------


def test_calling_code_that_is_paused_is_not_served_until_it_is_resumed(make_texter):
    texter = make_texter(UNLIMITED)
    texter.defence.pause("44")
    texter.defence.pause("44")
    for number in (NUMBER, "441624812345", "447700900001"):
        with pytest.raises(DestinationRejected):
            texter.admit(number)
    assert texter.send("4915112345678")
    texter.server.clock.advance(hours=24 * 400)
    texter.defence.purge()
    assert not texter.send(NUMBER)
    texter.defence.resume("44")
    assert texter.send(NUMBER)
    for code in ("999", "x", ""):
        for act in (texter.defence.pause, texter.defence.resume):
            with pytest.raises(InvalidPhoneNumber):
                act(code)


def test_resuming_lifts_what_breakers_paused_and_nothing_of_other_codes(make_texter):
    texter = make_texter(UNLIMITED)
    for start in ("44740012", "33612345"):
        numbers = [
            f"{start}{index:0{12 - len(start) - start.startswith('33')}}" for index in range(51)
        ]
        assert texter.send_each(numbers) == 50
    texter.defence.resume("44")
    assert texter.send("447400129999")
    assert not texter.send("33612345999")
    # Not on probation either: a whole window.
    assert texter.send_each(block("44740012", 80)) == 49


def test_status_tells_what_was_sent_and_what_is_paused(make_texter):
    texter = make_texter({**UNLIMITED, "SMS__DAILY_LIMIT": "500"})
    for number in block("44740012", 51):
        texter.send(number)
    texter.send("4915112345678")
    texter.prove("4915112345678")
    texter.defence.pause("1")
    status = texter.defence.status()
    assert (status.server.day_admitted, status.day_cap, status.alarm_until_ms) == (51, 500, None)
    germany, britain = status.countries
    assert (germany.scope, germany.day_sent, germany.day_converted) == ("DE others", 1, 1)
    assert (britain.scope, britain.day_sent, britain.day_converted) == ("GB others", 50, 0)
    assert status.paused_blocks == {"GB": 1}
    assert status.paused_codes == ["1"]
    texter.server.clock.advance(hours=24)
    status = texter.defence.status()
    assert (status.server.day_admitted, status.countries[0].day_sent) == (0, 0)
    assert status.paused_blocks == {}


def test_old_counts_are_purged_and_pauses_kept(make_texter):
    texter = make_texter(UNLIMITED)
    texter.send(NUMBER)
    texter.defence.pause("1")
    texter.server.clock.advance(hours=24 * 30)
    assert texter.defence.purge() == 0
    texter.server.clock.advance(hours=24)
    assert texter.defence.purge() == 3
    assert [row["scope"] for row in texter.server.rows("sms_traffic")] == ["code 1"]


def test_stored_traffic_names_no_number(make_texter):
    texter = make_texter()
    texter.send(NUMBER)
    assert all("4740012" not in row["scope"] for row in texter.server.rows("sms_traffic"))


# --- the alarm ----------------------------------------------------------------------


def test_wrong_codes_without_end_slow_down_sending_for_an_hour(make_texter, capsys):
    """Threat 8: the alarm is on when 200 codes were wrong."""
    slow = {"RATE_LIMITS__LIMITS__SMS_ALARM": "3/h"}
    texter = make_texter({**slow, "RATE_LIMITS__LIMITS__SMS_COUNTRY_OTHERS": "99/h"})

    def sends(count, host):
        return sum(
            texter.send(number, mxid, f"192.0.2.{index}")
            for index, (number, mxid) in enumerate(
                zip(blocks(f"4475{len(host):02}", count), mxids(count, host), strict=True)
            )
        )

    for _ in range(199):
        texter.defence.failed_code()
    assert texter.defence.status().alarm_until_ms is None
    assert sends(5, "a.test") == 5
    for _ in range(30):
        texter.defence.failed_code()
    assert texter.defence.status().alarm_until_ms == texter.server.clock.now_ms() + HOUR_MS
    assert capsys.readouterr().out.count("sms_alarm") == 1
    assert sends(5, "bb.test") == 3
    texter.server.clock.advance(hours=1)
    assert texter.defence.status().alarm_until_ms is None
    assert sends(5, "ccc.test") == 5


@sqlite_only
def test_wrong_codes_count_for_nothing_where_rate_limits_are_off(make_texter):
    texter = make_texter(UNLIMITED)
    for _ in range(300):
        texter.defence.failed_code()
    assert texter.defence.status().alarm_until_ms is None


# --- storage that is away -----------------------------------------------------------


class FakeDatabase:
    """The database of a server, that can stop to take writes."""

    def __init__(self, database):
        self._database = database
        self.is_away = False
        self.keys = database.keys
        self.read = database.read

    def write(self, work):
        if self.is_away:
            raise StorageUnavailable
        return self._database.write(work)


@sqlite_only
def test_database_that_is_away_lets_no_message_through_and_takes_no_permits(make_texter):
    texter = make_texter({"RATE_LIMITS__LIMITS__SMS_ACCOUNT": "1/d"})
    services = texter.server.services
    database = FakeDatabase(services.database)
    texter.defence = Defence(database, services.limiter, services.config, services.clock)
    database.is_away = True
    for _ in range(3):
        with pytest.raises(StorageUnavailable):
            texter.admit(NUMBER)
    database.is_away = False
    admission = texter.admit(NUMBER)
    # What follows a message never fails, and what was counted stays so.
    database.is_away = True
    texter.defence.sent(admission)
    texter.prove(NUMBER)
    texter.defence.withdraw(admission)
    assert texter.traffic("*").day_admitted == 1
    assert texter.traffic("GB others").sent == 0
