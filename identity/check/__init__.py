"""`identity check`: would this server run as it is configured?

Everything is tried and nothing changed: no file or database is made, no mail or SMS sent. All
that is wrong is told at once, in bounded time, however the other side behaves.
`report` is what is told and how probes are run; the other modules are the probes.
"""

from identity.check.report import Line
from identity.check.run import run_check

__all__ = ["Line", "run_check"]
