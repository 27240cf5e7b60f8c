"""Makes docs/conformance.md by running.

    python tests/conformance/run.py [ID …]

For each entry of the *.toml files beside this one: copy the package, switch one behaviour off
by replacing a piece of text, and run the tests that are marked with its requirements. They must
pass on the code as it is, and at least one must fail with the behaviour switched off.
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "conformance.md"


@dataclass(frozen=True)
class SwitchOff:
    ids: tuple[str, ...]
    file: str
    old: str
    new: str


def switch_offs() -> list[SwitchOff]:
    return [
        SwitchOff(tuple(entry["ids"]), entry["file"], entry["old"], entry["new"])
        for path in sorted(HERE.glob("*.toml"))
        for entry in tomllib.loads(path.read_text())["off"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("ids", nargs="*")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, help="begin no run after so long")
    arguments = parser.parse_args()
    chosen = [
        off for off in switch_offs() if not arguments.ids or set(off.ids) & set(arguments.ids)
    ]
    ends_at = time.monotonic() + (arguments.seconds or float("inf"))

    def run(off: SwitchOff) -> str | None:
        return noticed(off) if time.monotonic() < ends_at else "not run"

    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(run, chosen))
    proven, unproven = set(), set()
    for off, outcome in zip(chosen, outcomes, strict=True):
        print(
            f"{'ok  ' if outcome is None else 'FAIL'} {', '.join(off.ids)}: {outcome or 'noticed'}"
        )
        (proven if outcome is None else unproven).update(off.ids)
    if not arguments.ids:
        PAGE.write_text(page(sorted(proven - unproven, key=sort_key)))
    print(f"{len(proven - unproven)} passed, {len(unproven)} failed")
    sys.exit(1 if unproven else 0)


def noticed(off: SwitchOff) -> str | None:
    """None if the tests fail with the behaviour switched off, else what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("identity", "migrations", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "identity.conf.example"):
            shutil.copy(ROOT / name, copy / name)
        target = copy / off.file
        text = target.read_text()
        if text.count(off.old) != 1:
            return f"the text to replace stands {text.count(off.old)} times in {off.file}"
        target.write_text(text.replace(off.old, off.new))
        tests = files_with(off.ids)
        if not tests:
            return "no test is marked with it"
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--requirements", ",".join(off.ids)]
        environ = {**os.environ, "PYTHONPATH": folder}
        result = subprocess.run(
            [*command, *tests], cwd=folder, env=environ, capture_output=True, text=True, check=False
        )
        if result.returncode == 1:
            return None
        if result.returncode == 0:
            return "no test fails without it"
        return f"the tests could not be run: {result.stdout[-500:]}"


def files_with(ids: Iterable[str]) -> list[str]:
    """The test files that name one of the requirements."""
    return sorted({file for requirement in ids for file in marked().get(requirement, ())})


def marked() -> dict[str, set[str]]:
    """Requirement to the test files that are marked with it."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for requirement in ids_in(path.read_text()):
            found.setdefault(requirement, set()).add(str(path.relative_to(ROOT)))
    return found


def ids_in(text: str) -> Iterator[str]:
    for arguments in re.findall(r"mark\.requirement\(([^)]*)\)", text):
        yield from re.findall(r'"([A-Z]+-[0-9]+)"', arguments)


def sort_key(requirement: str) -> tuple[int, int]:
    group, number = requirement.split("-")
    return (GROUPS.index(group), int(number))


GROUPS = (
    *("GEN", "VER", "PING", "AUTH", "TERMS", "KEY", "LOOK", "SESS", "MAIL", "TEL", "VAL", "BIND"),
    *("UNB", "SIGN", "INV", "ONB", "FED", "TPID", "LEG", "AMB"),
)


def page(proven: list[str]) -> str:
    lines = [
        "# Conformance",
        "",
        "Made by `make conformance`; do not edit. The numbers are those of the project's checklist of",
        "the Matrix Identity Service API and of the programs that call it. A requirement is listed if its",
        "tests pass, and at least one of them fails as soon as the behaviour is switched off.",
        "",
        f"{len(proven)} requirements are proven in this way.",
        "",
        "| group | requirements |",
        "|---|---|",
    ]
    for group in GROUPS:
        numbers = [requirement for requirement in proven if requirement.startswith(f"{group}-")]
        if numbers:
            lines.append(f"| {group} | {', '.join(numbers)} |")
    lines += ["", *LATER, ""]
    return "\n".join(lines)


LATER = (HERE / "later.md").read_text().splitlines() if (HERE / "later.md").exists() else []

if __name__ == "__main__":
    main()
