"""Starts Sydent with less time between its pushes: a backlog of 5,000 takes it eight minutes else.

python launch.py SECONDS
"""

import sys
from typing import Any

from sydent.sydent import main
from twisted.internet.task import LoopingCall

# What it has, and nothing else in it has.
_USUAL_S = 10.0
_start = LoopingCall.start


def start(call: LoopingCall, interval: float, *arguments: Any, **options: Any) -> Any:
    wanted = float(sys.argv[1]) if interval == _USUAL_S else interval
    return _start(call, wanted, *arguments, **options)


if __name__ == "__main__":
    LoopingCall.start = start
    main()
