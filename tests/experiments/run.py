"""Runs the fault experiments, each a file e<NN>_<name>.py beside this one.

    python tests/experiments/run.py [--quick] [e18 e19 …]

Each is a program of its own: it prints its figures in its last line and ends with status 0,
with 1 where it failed, or with NOT_RUN where something it needs is not there. One line is
printed for each, and all that it said where it failed. `--quick`: in small, to see that it runs.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
NOT_RUN = 77  # as automake has it


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="e<NN>")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    failed = [
        path.stem for path in experiments(arguments.names) if not run(path, quick=arguments.quick)
    ]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def experiments(names: list[str]) -> list[Path]:
    """In the order of their numbers; all where none is named."""
    found = sorted(HERE.glob("e[0-9][0-9]_*.py"))
    numbers = {path.stem.partition("_")[0]: path for path in found}
    if unknown := [name for name in names if name not in numbers]:
        sys.exit(f"no such experiment: {', '.join(unknown)}; there are {', '.join(numbers)}")
    return [numbers[name] for name in names] or found


def run(path: Path, *, quick: bool) -> bool:
    """Whether it did not fail."""
    name = path.stem.partition("_")[0].upper()
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, str(path), *(["--quick"] if quick else [])],
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    outcome = {0: "passed", NOT_RUN: "not run"}.get(ended.returncode, "failed")
    lines = ended.stdout.splitlines() or [""]
    took_s = time.monotonic() - began
    said = lines[-1] if outcome != "failed" else "\n" + "\n".join(lines)
    print(f"{name} {outcome} ({took_s:.0f} s): {said}", flush=True)
    return outcome != "failed"


if __name__ == "__main__":
    main()
