"""E7: three servers, cut off from each other while all state, and disagree.

20 writes a second at each for 60 seconds of full partition, revocations among them, then it heals.
Pass: `identity db digest` prints the same on all within 30 seconds, nothing acknowledged is lost,
and no view shows anything but the newest statements.
"""

import itertools
import sys
import time
from collections import Counter
from contextlib import ExitStack

from cluster import Writer, check_converged, cluster, need_namespaces, wait_until_equal
from parts.namespaces import Network

EVERY_S = 0.05
HEALED_S = 30


def main() -> None:
    partition_s = 6 if "--quick" in sys.argv else 60
    need_namespaces()
    with Network() as network, cluster(3, network=network) as servers:
        with ExitStack() as stack:
            writers = [stack.enter_context(Writer(server, EVERY_S)) for server in servers]
            time.sleep(partition_s / 10)
            for one, other in itertools.combinations(servers, 2):
                network.cut(one.host, other.host)
            time.sleep(partition_s)
        network.heal()
        took_s = wait_until_equal(servers, HEALED_S)
        acknowledged = [signed for writer in writers for signed in writer.acknowledged]
        count = check_converged(servers, acknowledged)
        failures = sum((writer.failures for writer in writers), Counter())
    print(
        f"digests equal {took_s:.1f} s after a partition of {partition_s} s; {count} statements, "
        f"0 of {len(acknowledged)} acknowledged bindings lost, all views that of the newest"
        + (f"; writes that failed: {dict(failures)}" if failures else "")
    )


if __name__ == "__main__":
    main()
