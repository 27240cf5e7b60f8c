"""Fill a database with user{i}@example.org bound to @user{i}:example.org, i from 0.

    benchmarks/seed.py --config FILE --associations N

Goes through the real storage code: every statement is signed, sealed, chained and indexed. Only
the homeservers are not told.
"""

import argparse
import os
from pathlib import Path

from rich.progress import track

from identity import logs
from identity.clock import SystemClock
from identity.config import Config, find_path, load
from identity.mxid import UserId
from identity.opening import open_database
from identity.services import assemble
from identity.threepid import ThreePid

BATCH = 1_000


def seed(config: Config, associations: int) -> None:
    clock = SystemClock()
    services = assemble(config, open_database(config, clock, migrate=False).database, clock)
    try:
        for start in track(range(0, associations, BATCH), "Seeding", disable=associations < BATCH):
            numbers = range(start, min(start + BATCH, associations))
            wanted = {
                ThreePid.email(f"user{i}@example.org"): UserId.parse(f"@user{i}:example.org")
                for i in numbers
            }
            services.database.write(
                lambda tx, wanted=wanted: services.associations.publish_all(tx, wanted, tell=False),
                patient=True,
            )
    finally:
        services.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", type=Path)
    parser.add_argument("--associations", type=int, required=True)
    arguments = parser.parse_args()
    logs.configure("warning", "console")
    seed(load(find_path(arguments.config, os.environ), os.environ), arguments.associations)


if __name__ == "__main__":
    main()
