"""Eight processes that have messages sent to one block at the same moment.

The settings are in the environment. The argument is how often each process tries; it prints how
many messages each was allowed. Every second one is withdrawn where a second argument is given.
"""

import json
import logging
import multiprocessing
import os
import sys

import structlog

from identity.accounts.caller import Caller
from identity.clock import SystemClock
from identity.config import load
from identity.errors import DestinationRejected, LimitExceeded
from identity.mxid import UserId
from identity.opening import open_database
from identity.services import assemble
from identity.threepid import ThreePid

PROCESSES = 8

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
tries, withdraws = int(sys.argv[1]), len(sys.argv) > 2
context = multiprocessing.get_context("fork")
all_ready = context.Barrier(PROCESSES, timeout=30)


def pump(process):
    config, clock = load(None, os.environ), SystemClock()
    database = open_database(config, clock, migrate=False).database
    services = assemble(config, database, clock)
    all_ready.wait()
    sent = 0
    for number in range(tries):
        caller = Caller(UserId.parse(f"@{process}-{number}:hs.test"), f"192.0.{process}.{number}")
        to = ThreePid.msisdn(f"44740012{process}{number:03}")
        try:
            admission = services.sms_defence.admit(caller, to)
        except (DestinationRejected, LimitExceeded):
            continue
        if withdraws and number % 2:
            services.sms_defence.withdraw(admission)
        else:
            services.sms_defence.sent(admission)
            sent += 1
    services.close()
    return sent


if __name__ == "__main__":
    with context.Pool(PROCESSES) as pool:
        sys.stdout.write(json.dumps(pool.map(pump, range(PROCESSES), chunksize=1)))
