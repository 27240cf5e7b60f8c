"""E19: a name that is public at one look-up and loopback at the next, TTL 0.

A server that looked up once to judge and once to connect would connect to itself. Pass: 0 SYNs
over loopback in 1,000 runs, while about half of them reach the public host.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from internet import CALLERS, PUBLIC, internet


def main() -> None:
    runs = 200 if "--quick" in sys.argv else 1_000
    with internet() as world:
        names = [f"{number}.hs.test:8448" for number in range(CALLERS)]
        for number in range(CALLERS):
            world.names.put(f"{number}.hs.test", "A", [PUBLIC], ["127.0.0.1"])
        with ThreadPoolExecutor(CALLERS) as threads:
            answers = list(
                threads.map(world.register, (names[run % CALLERS] for run in range(runs)))
            )
        syns = world.syns()
        asked = world.names.asked
    print(
        f"{syns['loopback']} connects to loopback in {runs} runs "
        f"({asked} look-ups, {syns['allowed']} connects to the public host)"
    )
    assert syns["loopback"] == syns["denied"] == 0
    assert asked == runs
    assert syns["allowed"] == runs // 2
    assert answers.count(502) >= runs // 2, answers


if __name__ == "__main__":
    main()
