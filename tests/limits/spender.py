"""Eight processes that spend from the same limit.

Arguments: what to spend, kind and URL of the storage, its prefix, the rates, and how often each
process tries. It prints how many permits each was given. The clock stands still, so nothing
comes back meanwhile.
"""

import json
import logging
import multiprocessing
import sys

import structlog
from limit_places import KEYS, FakeClock, Place

from identity.errors import LimitExceeded
from identity.limits.catalogue import with_overrides
from identity.limits.gcra import Rate
from identity.limits.lookup_budget import LookupBudget
from identity.limits.service import Limiter

PROCESSES = 8

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
_, what, kind, url, prefix, rates, tries = sys.argv
context = multiprocessing.get_context("fork")
all_ready = context.Barrier(PROCESSES, timeout=30)


def spend(_process):
    limits = with_overrides(
        {"email_account": Rate.parse_list(rates), "lookup_account": Rate.parse_list(rates)}
    )
    limiter = Limiter(limits, Place(kind, url, prefix).open(), FakeClock(), KEYS)
    budget = LookupBudget(limiter)
    all_ready.wait()
    given = 0
    for number in range(int(tries)):
        try:
            if what == "spend":
                limiter.spend(("email_account", "@alice:example.org"), ("email_global", ""))
                given += 1
            else:
                permits = 1 + number % 7
                budget.spend(permits, ("lookup_account", "@alice:example.org"))
                given += permits
        except LimitExceeded:
            pass
    return given


if __name__ == "__main__":
    with context.Pool(PROCESSES) as pool:
        sys.stdout.write(json.dumps(pool.map(spend, range(PROCESSES), chunksize=1)))
