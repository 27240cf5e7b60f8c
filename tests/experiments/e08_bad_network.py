"""E8: two servers over a network that delays, loses, repeats and reorders packets.

200±50 ms each way, 5 % lost, 1 % twice, 1 % out of order, for 10 minutes (`--seconds N`), while
both state. Pass: the lag's p99 is 30 seconds at most, and the digests are equal afterwards.
"""

import argparse
import time
from contextlib import ExitStack

from cluster import (
    LagWatch,
    Writer,
    check_converged,
    cluster,
    need_namespaces,
    wait_until_equal,
)
from parts.namespaces import Conditions, Network

CONDITIONS = Conditions(delay_s=0.2, jitter_s=0.05, loss=0.05, duplicates=0.01, reorder=0.01)
EVERY_S = 0.5
MAX_LAG_S = 30


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=600)
    arguments = parser.parse_args()
    seconds = 20 if arguments.quick else arguments.seconds
    need_namespaces()
    with Network() as network, cluster(2, network=network) as servers:
        one, other = servers
        network.conditions = CONDITIONS
        with ExitStack() as stack:
            watches = [stack.enter_context(LagWatch(*pair)) for pair in (servers, servers[::-1])]
            writers = [stack.enter_context(Writer(server, EVERY_S)) for server in (one, other)]
            time.sleep(seconds)
        took_s = wait_until_equal(servers, MAX_LAG_S)
        count = check_converged(servers, [one for writer in writers for one in writer.acknowledged])
        lost, carried = network.lost, network.carried
    p99_s = max(watch.percentile_s(0.99) for watch in watches)
    p50_s = max(watch.percentile_s(0.5) for watch in watches)
    print(
        f"lag p50 {p50_s:.1f} s, p99 {p99_s:.1f} s over {seconds:.0f} s ({count} statements, "
        f"{lost} of {carried + lost} packets lost); digests equal {took_s:.1f} s after the end"
    )
    assert p99_s <= MAX_LAG_S


if __name__ == "__main__":
    main()
