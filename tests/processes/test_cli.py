"""Every command: what it prints, its exit status, and how it tells what an operator got wrong.

Commands run in this process, where one of their own would add nothing.
"""

import json
import logging
import os
import re
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import click
import pytest
import structlog
from click.testing import CliRunner, Result
from parts.processes import IDENTITY, away, environment, identity, wait_until
from signedjson.key import decode_verify_key_bytes
from signedjson.sign import verify_signed_json
from unpaddedbase64 import decode_base64

from identity import schema
from identity.cli import main

one_database = pytest.mark.parametrize("database_kind", ["sqlite"])

ALICE = "@alice:hs.test"
PINNED = "ed25519:0=VcuUO/rA1c8DqInt362kfeKnSEeu6HFHgO6cRn7Pbic"
# One way to call each command that opens the database.
OPENING = {
    "db upgrade": [],
    "db current": [],
    "db rebuild": [],
    "db digest": [],
    "keys show": [],
    "keys rotate": [],
    "keys revoke": ["ed25519:0"],
    "bind": ["email", "alice@example.org", ALICE],
    "unbind": ["email", "alice@example.org", ALICE],
    "lookup": ["email", "alice@example.org"],
    "tokens issue": [ALICE],
    "invites list": [],
    "invites revoke": ["token"],
    "deliveries list": [],
    "deliveries retry": ["delivery"],
    "pepper rotate": [],
    "peers add": ["peer.test", "--url", "https://peer.test", "--key", PINNED, "--no-check"],
    "peers list": [],
    "peers status": [],
    "peers remove": ["peer.test"],
    "peers retry": ["peer.test"],
    "peers confirm": ["peer.test"],
    "peers key add": ["peer.test", PINNED],
    "peers key remove": ["peer.test", "ed25519:0"],
    "sms status": [],
    "sms pause": ["44"],
    "sms resume": ["44"],
}
every_opening_command = pytest.mark.parametrize("command", OPENING)


@pytest.fixture
def untouched_process(monkeypatch, tmp_path) -> Iterator[None]:
    """What the commands change of their process is put back; they start in an empty folder."""
    umask = os.umask(0o022)
    structlog_before = structlog.get_config() if structlog.is_configured() else None
    handlers, level = logging.root.handlers[:], logging.root.level
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    os.umask(umask)
    logging.root.handlers[:], logging.root.level = handlers, level
    if structlog_before is None:
        structlog.reset_defaults()
    else:
        structlog.configure(**structlog_before)


class Commands:
    """Runs commands with settings in the environment."""

    def __init__(self, settings: dict[str, str]) -> None:
        self.settings = settings

    def run(self, *arguments: object, **settings: str) -> Result:
        """It may fail, but never with a traceback."""
        named = {f"IDENTITY_{name}": text for name, text in {**self.settings, **settings}.items()}
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], env=named)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        assert "Traceback" not in result.stderr
        return result

    def prints(self, *arguments: object) -> str:
        """What a command that succeeds prints, without the last line break."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
        return result.stdout.removesuffix("\n")

    def refused(self, *arguments: object, status: int = 1, **settings: str) -> str:
        """The one line that a command says when it fails."""
        result = self.run(*arguments, **settings)
        assert result.exit_code == status, result.output
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr
        return result.stderr.removesuffix("\n")


@pytest.fixture
def data(tmp_path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def commands(untouched_process, make_database, data) -> Commands:
    """On a database that is not there yet."""
    return Commands({"SERVER__DATA_DIR": str(data), "SERVER__NAME": "id.test", **make_database()})


def leaves(group: click.Group, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{prefix}{name} ")
        else:
            yield prefix + name


def test_every_command_is_looked_at_here():
    # What an import refuses is looked at in tests/replication.
    assert set(leaves(main)) == {*OPENING, "serve", "check", "import-sydent"}


# --- what they do ---------------------------------------------------------------------


def test_database_commands_create_upgrade_compare_and_rebuild(commands, data):
    assert commands.prints("db", "current") == schema.head()
    assert commands.prints("db", "upgrade") == schema.head()
    for path in data.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    for number in range(3):
        commands.prints("bind", "email", f"alice{number}@example.org", ALICE)
    commands.prints("unbind", "email", "alice0@example.org", ALICE)
    digest = json.loads(commands.prints("db", "digest"))
    assert digest.keys() == {"origin", "last_id", "head", "ranges"}
    assert (digest["origin"], digest["last_id"]) == ("id.test", 4)
    assert commands.prints("db", "rebuild") == "4 statements"
    assert json.loads(commands.prints("db", "digest")) == digest


def test_bind_lookup_and_unbind_are_the_operators_hand(commands):
    address = ["email", "Alice@Example.org"]
    assert commands.refused("lookup", *address) == "That address is not bound"
    bound = json.loads(commands.prints("bind", *address, ALICE))
    assert (bound["address"], bound["mxid"]) == ("alice@example.org", ALICE)
    key_id, key = commands.prints("keys", "show").split()
    verify_signed_json(bound, "id.test", decode_verify_key_bytes(key_id, decode_base64(key)))
    assert commands.prints("lookup", *address) == ALICE
    reason = commands.refused("unbind", *address, "@bob:hs.test")
    assert reason == "That address is not bound to that user"
    assert commands.prints("unbind", *address, ALICE) == ""
    assert commands.refused("lookup", *address) == "That address is not bound"


def test_signing_keys_are_shown_rotated_and_revoked(commands):
    first = commands.prints("keys", "show")
    assert re.fullmatch("ed25519:0 [A-Za-z0-9+/]{43}", first)
    assert commands.refused("keys", "revoke", "ed25519:0").startswith("The only active key")
    second = commands.prints("keys", "rotate")
    assert re.fullmatch("ed25519:1 [A-Za-z0-9+/]{43}", second)
    assert commands.prints("keys", "show") == f"{first}\n{second}"
    # There is no server that would have to learn of it first.
    bound = json.loads(commands.prints("bind", "email", "alice@example.org", ALICE))
    assert list(bound["signatures"]["id.test"]) == ["ed25519:1"]
    assert commands.prints("keys", "revoke", "ed25519:0") == ""
    assert commands.refused("keys", "revoke", "ed25519:0")
    assert commands.refused("keys", "revoke", "ed25519:nope")
    assert commands.prints("keys", "show") == f"{first}\n{second}"


def test_tokens_issue_prints_the_token_and_nothing_else(commands):
    tokens = {commands.prints("tokens", "issue", ALICE) for _ in range(3)}
    assert len(tokens) == 3
    assert all(re.fullmatch("[A-Za-z0-9_-]{43}", token) for token in tokens)


def test_pepper_rotate_keeps_what_is_bound(commands):
    commands.prints("bind", "email", "alice@example.org", ALICE)
    assert commands.prints("pepper", "rotate") == ""
    assert commands.prints("lookup", "email", "alice@example.org") == ALICE


@one_database
def test_invites_and_deliveries_of_a_new_server_are_none(commands):
    assert commands.prints("invites", "list") == ""
    assert commands.prints("deliveries", "list") == ""
    assert commands.refused("invites", "revoke", "token")
    assert commands.refused("deliveries", "retry", "delivery")


@one_database
def test_check_says_whether_the_server_would_run(commands, data):
    good = commands.run("check")
    assert good.exit_code == 0, good.stdout
    assert good.stdout.startswith("ok   configuration: no file")
    assert "FAIL" not in good.stdout
    assert not data.exists()

    bad = commands.run("check", TERMS__FILE="missing.yaml")
    assert bad.exit_code == 1
    assert re.search(r"^FAIL \[terms\] file: .*missing.yaml", bad.stdout, re.MULTILINE)
    faulty = commands.run("check", SERVER__WORKERS="-1", EMAIL__TLS="perhaps")
    assert faulty.exit_code == 1
    assert [line[:4] for line in faulty.stdout.splitlines()] == ["FAIL", "FAIL"]


# --- which configuration --------------------------------------------------------------


@pytest.fixture
def configs(commands, tmp_path) -> dict[str, Path]:
    """Files by the key that a server has who is configured by them."""
    del commands.settings["SERVER__DATA_DIR"]
    files = {}
    for name in ("one", "two", "three"):
        path = tmp_path / f"{name}.conf"
        path.write_text(f'[server]\ndata_dir = "{name}"\n')
        files[commands.prints("-c", path, "keys", "show")] = path
    assert len(files) == 3
    return files


@one_database
def test_config_option_works_before_and_after_the_command_and_the_last_counts(commands, configs):
    (key, path), (_, other), _ = configs.items()
    for option in ("-c", "--config"):
        assert commands.prints(option, path, "keys", "show") == key
        assert commands.prints("keys", option, path, "show") == key
        assert commands.prints("keys", "show", option, path) == key
        assert commands.prints(option, other, "keys", "show", option, path) == key


@one_database
def test_config_is_found_by_option_then_variable_then_in_the_folder(commands, configs):
    (first, _), (second, variable), (third, path) = configs.items()
    Path("identity.conf").write_text(configs[first].read_text().replace('"one"', '"../one"'))
    assert commands.prints("keys", "show") == first
    commands.settings["CONFIG"] = str(variable)
    assert commands.prints("keys", "show") == second
    assert commands.prints("-c", path, "keys", "show") == third
    commands.settings["CONFIG"] = "missing.conf"
    assert commands.refused("keys", "show").startswith("missing.conf: cannot be read")


@one_database
def test_config_paths_start_at_the_file_and_may_hold_any_character(commands, tmp_path):
    folder = tmp_path / "a b%20c?#é"
    folder.mkdir()
    path = folder / "identity.conf"
    path.write_text('[server]\ndata_dir = "d %41"\n')
    del commands.settings["SERVER__DATA_DIR"]
    key = commands.prints("-c", path, "keys", "show")
    assert commands.prints("-c", path, "keys", "show") == key
    assert [entry.name for entry in folder.iterdir() if entry.is_dir()] == ["d %41"]
    names = {entry.name for entry in (folder / "d %41").iterdir()}
    assert {"identity.db", "signing.keys", "storage.keys"} <= names
    assert not any("%20" in entry.name or "%25" in entry.name for entry in folder.rglob("*"))


# --- what went wrong ------------------------------------------------------------------


@one_database
@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["db", "nonsense"],
        ["bind", "email"],
        ["tokens", "issue"],
        ["serve", "--nonsense"],
        ["keys", "show", "surplus"],
        ["-c"],
    ],
)
def test_wrong_usage_is_status_2(commands, data, arguments):
    result = commands.run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr
    assert not data.exists()


@one_database
def test_help_is_status_0(commands, data):
    for arguments in (["-h"], ["--help"], ["--version"], ["keys", "--help"], ["bind", "-h"]):
        assert commands.prints(*arguments)
    assert not data.exists()


@one_database
@pytest.mark.parametrize(
    "arguments",
    [
        ["bind", "email", "alice", ALICE],
        ["bind", "fax", "alice@example.org", ALICE],
        ["bind", "email", "alice@example.org", "alice"],
        ["lookup", "email", ""],
        ["tokens", "issue", "alice"],
    ],
)
def test_malformed_argument_is_one_line_and_status_1(commands, arguments):
    assert commands.refused(*arguments)


@one_database
@every_opening_command
def test_wrong_configuration_is_told_by_every_command(commands, data, command):
    result = commands.run(*command.split(), *OPENING[command], SERVER__NAME="?", LOGGING__LEVEL="x")
    assert result.exit_code == 1
    starts = [line.partition(":")[0] for line in result.stderr.splitlines()]
    assert sorted(starts) == ["[logging] level", "[server] name"]
    assert result.stdout == ""
    assert not data.exists()


def ask_where_nobody_listens(data: Path) -> dict[str, str]:
    return {"DATABASE__URL": "postgresql://nobody@127.0.0.1:1/none"}


def break_signing_keys(data: Path) -> None:
    (data / "signing.keys").write_text("ed25519 0 short\n")


def break_storage_keys(data: Path) -> None:
    (data / "storage.keys").write_bytes(b"\xff\xfe")


def lose_storage_keys(data: Path) -> None:
    (data / "storage.keys").unlink()


def show_keys_to_all(data: Path) -> None:
    (data / "signing.keys").chmod(0o644)


def put_folder_in_place_of_keys(data: Path) -> None:
    (data / "signing.keys").unlink()
    (data / "signing.keys").mkdir()


def break_database(data: Path) -> None:
    (data / "identity.db").write_bytes(b"nonsense" * 1_000)


def put_folder_in_place_of_database(data: Path) -> None:
    (data / "identity.db").unlink()
    (data / "identity.db").mkdir()


def set_revision(data: Path, revision: str) -> None:
    with sqlite3.connect(data / "identity.db") as database:
        database.execute("UPDATE alembic_version SET version_num = ?", [revision])
    database.close()


def make_schema_newer(data: Path) -> None:
    set_revision(data, "9999")


def put_file_in_place_of_folder(data: Path) -> dict[str, str]:
    (data / "file").touch()
    return {"SERVER__DATA_DIR": str(data / "file")}


def put_file_above_folder(data: Path) -> dict[str, str]:
    (data / "file").touch()
    return {"SERVER__DATA_DIR": str(data / "file" / "data")}


def keep_keys_nowhere(data: Path) -> dict[str, str]:
    return {"KEYS__SIGNING_KEYS": str(data / "nowhere" / "signing.keys")}


BROKEN = {
    ask_where_nobody_listens: "The database cannot be opened",
    break_signing_keys: "signing.keys, line 1: not a key",
    break_storage_keys: "storage.keys cannot be read",
    lose_storage_keys: "storage.keys does not exist",
    show_keys_to_all: "can be read by others; run: chmod 600 ",
    put_folder_in_place_of_keys: "signing.keys cannot be read",
    break_database: "The database cannot be opened: file is not a database",
    put_folder_in_place_of_database: "The database cannot be opened",
    make_schema_newer: "newer version",
    put_file_in_place_of_folder: "cannot be made",
    put_file_above_folder: "cannot be made",
    keep_keys_nowhere: "does not exist",
}


@one_database
@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_damage_is_told_in_one_line(commands, data, damage):
    commands.prints("db", "upgrade")
    settings = damage(data) or {}
    for command in ("db upgrade", "keys show"):
        reason = commands.refused(*command.split(), **settings)
        assert BROKEN[damage] in reason
        assert "postgresql://" not in reason


@one_database
def test_damage_is_told_by_every_command_in_one_line(commands, data, tmp_path):
    commands.prints("db", "upgrade")
    break_database(data)
    for command, arguments in OPENING.items():
        reason = commands.refused(*command.split(), *arguments)
        assert reason == "The database cannot be opened: file is not a database", command
    served = identity("serve", folder=tmp_path, settings=commands.settings)
    assert (served.returncode, served.stdout) == (1, "")
    assert served.stderr.splitlines()[-1].startswith("The database cannot be opened: ")
    assert "Traceback" not in served.stderr


@one_database
def test_disk_that_is_full_is_told_in_one_line(commands, data, tmp_path):
    # As far as the process can tell: files may not grow beyond 32 KiB.
    script = f'ulimit -f 64; exec "{IDENTITY}" db upgrade'
    ended = subprocess.run(
        ["sh", "-c", script],
        env=environment(commands.settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "The schema cannot be changed: disk I/O error\n"
    assert commands.prints("db", "upgrade") == schema.head()


@one_database
def test_current_folder_that_is_gone_is_told_in_one_line(commands, tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert commands.refused("keys", "show") == "No such file or directory"


@one_database
def test_older_schema_is_refused_by_all_but_upgrade(commands, data):
    commands.prints("db", "upgrade")
    schema.downgrade(f"sqlite:///{data / 'identity.db'}", "-1")
    for command in OPENING.keys() - {"db upgrade"}:
        reason = commands.refused(*command.split(), *OPENING[command])
        assert reason == "The database has an older schema; run: identity db upgrade"
    assert commands.prints("db", "upgrade") == schema.head()
    assert commands.prints("db", "current") == schema.head()


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_database_that_is_away_is_told_in_one_line(commands, postgres):
    commands.prints("db", "upgrade")
    with away(postgres, commands.settings["DATABASE__URL"]):
        assert commands.refused("keys", "show").startswith("The database cannot be opened: ")
    commands.prints("keys", "show")


# --- beside a running server ----------------------------------------------------------


@one_database
def test_keys_rotate_reaches_a_running_server(running):
    def call(*arguments: str) -> str:
        ended = identity(*arguments, folder=running.folder, settings=running.settings)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout.removesuffix("\n")

    pids = sorted(running.descendants())
    token = call("tokens", "issue", ALICE)
    assert running.get("/account", token=token).json() == {"user_id": ALICE}
    session = running.inside.account(ALICE).validate("alice@example.org")

    def bind() -> dict:
        answer = running.post("/3pid/bind", token=token, json={**session, "mxid": ALICE})
        assert answer.status == 200
        return answer.json()

    def signers(association: dict) -> list[str]:
        return list(association["signatures"]["localhost"])

    old = bind()
    assert signers(old) == ["ed25519:0"]
    key_id, key = call("keys", "rotate").split()
    assert running.get(f"/pubkey/{key_id}").json() == {"public_key": key}
    new = wait_until(lambda: bound if signers(bound := bind()) == [key_id] else None)
    for association, signer in ((old, "ed25519:0"), (new, key_id)):
        published = running.get(f"/pubkey/{signer}").json()["public_key"]
        verify_key = decode_verify_key_bytes(signer, decode_base64(published))
        verify_signed_json(association, "localhost", verify_key)
        validity = running.get(f"/pubkey/isvalid?public_key={quote(published)}")
        assert validity.json() == {"valid": True}
    assert sorted(running.descendants()) == pids
