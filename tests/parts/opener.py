"""A process that opens a database when it is told to, as `identity serve` does at its start.

Arguments: "migrate" or not, and environment of the server. It prints "ready", waits for a line,
opens, and prints what it was opened with, or why it was not.
"""

import json
import os
import sys
from pathlib import Path

from identity.clock import SystemClock
from identity.config import load
from identity.errors import SetupError
from identity.keys.keyfile import read_signing_keys
from identity.opening import open_database

config = load(None, os.environ)
sys.stdout.write("ready\n")
sys.stdout.flush()
sys.stdin.readline()
try:
    opened = open_database(config, SystemClock(), migrate="migrate" in sys.argv)
except SetupError as error:
    answer = {"error": str(error)}
else:
    opened.database.close()
    answer = {
        "made": sorted(Path(name).name for name in opened.made),
        "storage": {name: key.hex() for name, key in opened.database.keys.fingerprints().items()},
        "signing": {
            key_id: key.public_key.hex()
            for key_id, key in read_signing_keys(config.signing_keys_path).items()
        },
    }
sys.stdout.write(json.dumps(answer))
