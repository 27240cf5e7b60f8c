"""Several processes that open one database at the same moment."""

import json
import os
import subprocess
import sys
from pathlib import Path

_SCRIPT = Path(__file__).with_name("opener.py")


def open_at_once(*settings, migrate=True):
    """What each process answers; `settings`: its environment, one mapping a process."""
    arguments = [sys.executable, str(_SCRIPT), *(["migrate"] if migrate else [])]
    processes = [
        subprocess.Popen(
            arguments,
            env={**os.environ, **chosen},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for chosen in settings
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * len(processes), answers
    return [json.loads(answer) for answer in answers]
