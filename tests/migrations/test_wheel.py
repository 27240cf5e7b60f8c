"""What is installed from the built package: templates, types, and the migrations."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Runs on the unpacked wheel alone, away from the checkout.
SCRIPT = """
import sys
from pathlib import Path
import identity
from identity import schema
assert Path(identity.__file__).is_relative_to(sys.argv[1]), identity.__file__
schema.upgrade(sys.argv[2])
schema.downgrade(sys.argv[2], "base")
schema.upgrade(sys.argv[2])
print(schema.find_revision(sys.argv[2]), schema.head())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, which leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("identity", "migrations"):
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "-w", str(folder), str(source)]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_everything_that_is_read_at_run_time(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("identity", "identity"), ("migrations", "identity/migrations")):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".j2", ".mako", ".typed"):
                assert f"{inside}/{path.relative_to(ROOT / folder)}" in names
    assert "identity/py.typed" in names
    # Nothing else comes along.
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "identity",
        "matrix_identity",
    }


def test_installed_package_finds_its_migrations(wheel, tmp_path):
    unpacked = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(unpacked)
    command = [sys.executable, "-c", SCRIPT, str(unpacked), f"sqlite:///{tmp_path}/new.db"]
    environ = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    revision, head = done.stdout.split()
    assert revision == head
