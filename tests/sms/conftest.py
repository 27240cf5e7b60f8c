"""The defence, and the callers it knows."""

from types import SimpleNamespace

import pytest

from identity.accounts.caller import Caller
from identity.errors import DestinationRejected, LimitExceeded
from identity.mxid import UserId
from identity.threepid import ThreePid


def caller_of(mxid, ip="192.0.2.1"):
    return Caller(None if mxid is None else UserId.parse(mxid), ip)


class Texter:
    """Sends by the defence of one server; nobody proves anything unless told to."""

    def __init__(self, server):
        self.server = server
        self.defence = server.services.sms_defence

    def admit(self, number, mxid="@a:hs.test", ip="192.0.2.1"):
        return self.defence.admit(caller_of(mxid, ip), ThreePid.msisdn(number))

    def send(self, number, mxid="@a:hs.test", ip="192.0.2.1"):
        """Whether it may; a provider takes it."""
        try:
            admission = self.admit(number, mxid, ip)
        except (DestinationRejected, LimitExceeded):
            return False
        self.defence.sent(admission)
        return True

    def send_each(self, numbers, mxid="@a:hs.test"):
        """How many may be sent."""
        return sum(self.send(number, mxid) for number in numbers)

    def prove(self, number, mxid="@a:hs.test"):
        self.defence.converted(ThreePid.msisdn(number), caller_of(mxid).user_id)

    def traffic(self, scope):
        """What is stored of one scope."""
        rows = {row["scope"]: row for row in self.server.rows("sms_traffic")}
        return SimpleNamespace(**rows[scope])


@pytest.fixture
def make_texter(make_server):
    def make(settings=None, **parts):
        return Texter(make_server(settings, **parts))

    return make
