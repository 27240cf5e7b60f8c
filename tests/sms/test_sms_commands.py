"""`identity sms`, as an operator types it."""

import json

import pytest
from parts.processes import identity
from parts.server import Server
from parts.validation import UNLIMITED, sqlite_only

from identity.accounts.caller import Caller
from identity.clock import SystemClock
from identity.config import load
from identity.errors import DestinationRejected
from identity.threepid import ThreePid

pytestmark = sqlite_only


@pytest.fixture
def settings(make_server, tmp_path):
    server = make_server()
    config = server.config
    return {
        "DATABASE__URL": config.database_url,
        "SERVER__DATA_DIR": str(config.server.data_dir),
        "SMS__PRICE": "0.05",
        "SMS__SPEND_PER_DAY": "50.0",
        **UNLIMITED,
    }


@pytest.fixture
def run(tmp_path, settings):
    def run(*arguments):
        done = identity("sms", *arguments, folder=tmp_path, settings=settings)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def send(settings):
    """Sends one message by the clock of the machine; whether it may."""
    config = load(None, {f"IDENTITY_{name}": text for name, text in settings.items()})
    server = Server(config, SystemClock())

    def send(number):
        defence = server.services.sms_defence
        try:
            defence.sent(defence.admit(Caller(None, "192.0.2.1"), ThreePid.msisdn(number)))
        except DestinationRejected:
            return False
        return True

    yield send
    server.close()


def test_status_prints_lines_of_json(run, send):
    for index in range(51):
        send(f"44740012{index:04}")
    send("4915112345678")
    assert run("pause", "1") == (0, "", "")
    status, output, errors = run("status", "--json")
    assert (status, errors) == (0, "")
    server, germany, britain, blocks, pause = map(json.loads, output.splitlines())
    assert server == {
        "kind": "server",
        "providers": ["file"],
        "messages_today": 51,
        "messages_per_day": 1000,
        "spent_today": 2.55,
        "spend_per_day": 50.0,
        "alarm_until_ms": None,
    }
    assert (germany["country"], germany["share"], germany["codes_today"]) == ("DE", "others", 1)
    assert (britain["country"], britain["messages_today"], britain["rate_today"]) == ("GB", 50, 0.0)
    assert blocks == {"kind": "blocks", "country": "GB", "paused": 1}
    assert pause == {"kind": "pause", "calling_code": "1"}


def test_status_is_a_page_for_people(run, send):
    send("4915112345678")
    status, output, errors = run("status")
    assert (status, errors) == (0, "")
    assert "Spent today     0.05 of 50" in output
    (row,) = [line for line in output.splitlines() if "DE" in line]
    assert row.replace(" ", "") == "│DE│others│1│1(1)│0(0)│0%(0%)│no│"


def test_pause_holds_until_resume(run, send):
    assert send("447400120001")
    assert run("pause", "+44")[0] == 0
    assert not send("447400120001")
    assert "Paused by hand  +44" in run("status")[1]
    assert run("resume", "44")[0] == 0
    assert send("447400120001")
    assert "Paused by hand  nothing" in run("status")[1]


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_what_is_no_calling_code_is_refused_in_one_line(run, command):
    assert run(command, "999") == (1, "", "That is not a calling code\n")


def test_commands_know_their_usage(run):
    assert run("pause")[0] == 2
