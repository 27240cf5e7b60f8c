"""Key files, what the database knows of the keys, and their rotation."""

import base64
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from host import wait_until_blocked
from parts.openers import open_at_once

from identity import schema
from identity.config import load
from identity.database import Database
from identity.errors import KeyNotFound, SetupError
from identity.keys import keyfile
from identity.keys.service import HOST_SILENCE_MS, create_key_files, record_or_check
from identity.opening import open_database
from identity.signing import SigningKey, is_signed_by, parse_public_key

KEY = SigningKey.generate("ed25519:0")

on_one_database = pytest.mark.parametrize("database_kind", ["sqlite"])


@pytest.fixture
def make_config(request, database_kind, tmp_path):
    """Configurations over one new, empty database, each with a data folder of its own."""
    made = []
    if database_kind == "sqlite":
        url = f"sqlite:///{tmp_path}/new/identity.db"
    else:
        url = request.getfixturevalue("postgres").create(migrated=False)

    def make(**settings):
        settings = {
            "IDENTITY_SERVER__DATA_DIR": str(tmp_path / f"data{len(made)}"),
            "IDENTITY_DATABASE__URL": url,
            **settings,
        }
        made.append(settings)
        return load(None, settings)

    make.made = made
    yield make
    if database_kind == "postgresql":
        request.getfixturevalue("postgres").drop(url)


def key_files(config):
    return [config.signing_keys_path, config.storage_keys_path]


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


class TestFiles:
    def test_keys_are_written_for_their_owner_alone_and_read_back(self, tmp_path):
        path = tmp_path / "signing.keys"
        keys = {"ed25519:0": KEY, "ed25519:auto_1": SigningKey.generate("ed25519:auto_1")}
        old_mask = os.umask(0)
        try:
            keyfile.write_signing_keys(path, keys)
        finally:
            os.umask(old_mask)
        assert mode_of(path) == 0o600
        read = keyfile.read_signing_keys(path)
        assert {key_id: key.seed for key_id, key in read.items()} == {
            key_id: key.seed for key_id, key in keys.items()
        }

        storage = keyfile.add_seal(keyfile.generate_storage_keys())
        keyfile.write_storage_keys(tmp_path / "storage.keys", storage)
        assert mode_of(tmp_path / "storage.keys") == 0o600
        assert keyfile.read_storage_keys(tmp_path / "storage.keys") == storage
        assert sorted(storage.seals) == [1, 2]
        # Nothing else is left lying about.
        assert {entry.name for entry in tmp_path.iterdir()} == {"signing.keys", "storage.keys"}

    @pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o644, 0o610])
    def test_file_that_others_can_read_is_refused(self, tmp_path, mode):
        """Row 59 of the threats."""
        signing, storage = tmp_path / "signing.keys", tmp_path / "storage.keys"
        keyfile.write_signing_keys(signing, {KEY.key_id: KEY})
        keyfile.write_storage_keys(storage, keyfile.generate_storage_keys())
        for path, read in (
            (signing, keyfile.read_signing_keys),
            (storage, keyfile.read_storage_keys),
        ):
            path.chmod(mode)
            with pytest.raises(SetupError, match=f"chmod 600 {path}"):
                read(path)
            path.chmod(0o400)
            read(path)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "holds no key"),
            ("# only a comment\n\n", "holds no key"),
            ("rsa 0 AAAA", "line 1: expected"),
            ("ed25519 0", "line 1: expected"),
            ("ed25519 0 AAAA", "line 1: not a key of 32 bytes"),
            ("ed25519 0 ????", "line 1: not a key of 32 bytes"),
            ("ed25519 a-b {seed}", "line 1: expected"),
            ("ed25519 0 {seed}\n\ned25519 0 {seed}", "line 3: ed25519:0 appears twice"),
            ("ed25519 0 {seed} x", "line 1: expected"),
            ("ed25519 0 \xe9", "cannot be read"),
        ],
    )
    def test_file_of_another_shape_is_refused_without_showing_a_key(self, tmp_path, text, reason):
        path = tmp_path / "signing.keys"
        seed = base64.b64encode(KEY.seed).decode().rstrip("=")
        path.write_bytes(text.replace("{seed}", seed).encode("latin-1"))
        path.chmod(0o600)
        with pytest.raises(SetupError) as caught:
            keyfile.read_signing_keys(path)
        assert reason in str(caught.value)
        assert seed not in str(caught.value)

    @pytest.mark.parametrize(
        "text",
        [
            "index {key}",
            "seal 1 {key}",
            "index {key}\nindex {key}\nseal 1 {key}",
            "index {key}\nseal {key}",
            "index {key}\nseal 0 {key}",
            "index {key}\nseal 65536 {key}",
            "index {key}\nseal x {key}",
            "index {key}\nseal \u0661 {key}",
        ],
    )
    def test_storage_keys_of_another_shape_are_refused(self, tmp_path, text):
        path = tmp_path / "storage.keys"
        key = base64.b64encode(KEY.seed).decode().rstrip("=")
        path.write_text(text.replace("{key}", key))
        path.chmod(0o600)
        with pytest.raises(SetupError) as caught:
            keyfile.read_storage_keys(path)
        assert key not in str(caught.value)

    def test_file_that_is_missing_is_named(self, tmp_path):
        for read in (keyfile.read_signing_keys, keyfile.read_storage_keys):
            with pytest.raises(SetupError, match=r"some\.keys does not exist"):
                read(tmp_path / "some.keys")

    def test_first_file_is_made_by_one_of_many(self, tmp_path):
        path = tmp_path / "signing.keys"
        keys = [SigningKey.generate("ed25519:0") for _ in range(8)]
        with ThreadPoolExecutor(8) as threads:
            made = list(
                threads.map(lambda key: keyfile.create_signing_keys(path, {key.key_id: key}), keys)
            )
        assert made.count(True) == 1
        first = keyfile.read_signing_keys(path)["ed25519:0"]
        assert first.seed == keys[made.index(True)].seed
        # A rotation replaces it.
        keyfile.write_signing_keys(path, {KEY.key_id: KEY})
        assert keyfile.read_signing_keys(path)["ed25519:0"].seed == KEY.seed
        assert [entry.name for entry in tmp_path.iterdir()] == ["signing.keys"]

    def test_files_that_exist_are_kept(self, tmp_path):
        paths = tmp_path / "a" / "signing.keys", tmp_path / "b" / "storage.keys"
        assert create_key_files(*paths) == list(paths)
        before = [path.read_bytes() for path in paths]
        assert create_key_files(*paths) == []
        paths[1].unlink()
        assert create_key_files(*paths) == [paths[1]]
        assert paths[0].read_bytes() == before[0]
        assert paths[1].read_bytes() != before[1]

    def test_folder_that_cannot_be_made_is_reported(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(SetupError, match="cannot be made"):
            create_key_files(tmp_path / "file" / "signing.keys", tmp_path / "storage.keys")


class TestFirstStart:
    """Decision 23."""

    def test_keys_are_made_together_with_a_new_database(self, make_config, clock):
        config = make_config()
        opened = open_database(config, clock, migrate=True)
        opened.database.close()
        assert set(map(str, key_files(config))) <= set(opened.made)
        assert [mode_of(path) for path in key_files(config)] == [0o600, 0o600]
        before = [path.read_bytes() for path in key_files(config)]
        opened = open_database(config, clock, migrate=False)
        opened.database.close()
        assert opened.made == ()
        assert [path.read_bytes() for path in key_files(config)] == before

    def test_keys_are_never_made_for_a_database_that_exists(self, make_config, clock):
        open_database(make_config(), clock, migrate=True).database.close()
        newcomer = make_config()
        with pytest.raises(SetupError, match=r"signing\.keys does not exist"):
            open_database(newcomer, clock, migrate=True)
        assert not any(path.exists() for path in key_files(newcomer))

    def test_keys_that_the_operator_provides_are_taken(self, make_config, clock):
        config = make_config()
        create_key_files(*key_files(config))
        before = [path.read_bytes() for path in key_files(config)]
        opened = open_database(config, clock, migrate=True)
        opened.database.close()
        assert not set(map(str, key_files(config))) & set(opened.made)
        assert [path.read_bytes() for path in key_files(config)] == before

    @pytest.mark.parametrize(
        ("file", "name"), [(0, "signing key 'ed25519:0'"), (1, "storage key 'index'")]
    )
    def test_host_that_lacks_a_recorded_key_is_told_which(self, make_config, clock, file, name):
        first, second = make_config(), make_config()
        open_database(first, clock, migrate=True).database.close()
        create_key_files(*key_files(second))
        theirs, ours = key_files(first), key_files(second)
        ours[1 - file].write_bytes(theirs[1 - file].read_bytes())
        with pytest.raises(SetupError, match=f"lacks the {name}"):
            open_database(second, clock, migrate=False)
        ours[file].write_bytes(theirs[file].read_bytes())
        open_database(second, clock, migrate=False).database.close()

    def test_start_that_died_before_the_keys_were_recorded_is_finished(self, make_config, clock):
        config = make_config()
        create_key_files(config.signing_keys_path, config.storage_keys_path)
        config.storage_keys_path.unlink()
        opened = open_database(config, clock, migrate=True)
        opened.database.close()
        assert str(config.storage_keys_path) in opened.made
        open_database(config, clock, migrate=False).database.close()

    def test_processes_that_start_at_once_end_with_one_set_of_keys(self, make_config):
        make_config()
        settings = [make_config.made[0]] * 4
        answers = open_at_once(*settings)
        assert [answer for answer in answers if "error" in answer] == []
        for what in ("storage", "signing"):
            assert len({str(answer[what]) for answer in answers}) == 1
        made = [name for answer in answers for name in answer["made"]]
        assert made.count("signing.keys") == made.count("storage.keys") == 1

    @pytest.mark.parametrize("database_kind", ["postgresql"])
    def test_host_that_records_its_keys_at_the_same_time_checks_them_instead(
        self, make_config, clock
    ):
        """The very moment: both have seen that nothing is recorded."""
        configs = [make_config() for _ in range(2)]
        schema.upgrade(configs[0].database_url)
        for config in configs:
            create_key_files(*key_files(config))
        databases = [
            Database(config.database_url, keyfile.read_storage_keys(config.storage_keys_path))
            for config in configs
        ]
        recorded, committing = threading.Event(), threading.Event()

        def record(number):
            def work(tx):
                signing = keyfile.read_signing_keys(configs[number].signing_keys_path)
                record_or_check(tx, signing, databases[number].keys, clock.now_ms())
                if number == 0:
                    recorded.set()
                    assert committing.wait(10)

            databases[number].write(work)

        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(record, 0)
            assert recorded.wait(10)
            second = threads.submit(record, 1)
            wait_until_blocked(databases[0])
            committing.set()
            first.result()
            with pytest.raises(SetupError, match="lacks the storage key 'index'"):
                second.result()
        for database in databases:
            database.close()

    def test_hosts_with_keys_of_their_own_agree_on_the_first(self, make_config, clock):
        """Each made its keys, for each found the database new; the first to record them wins."""
        configs = [make_config() for _ in range(3)]
        for config in configs:
            create_key_files(*key_files(config))
        answers = open_at_once(*make_config.made)
        refused = [answer.get("error", "") for answer in answers]
        assert sum("lacks the storage key" in reason for reason in refused) == 2
        # The refused ones recorded nothing.
        winner = configs[refused.index("")]
        open_database(winner, clock, migrate=False).database.close()


@pytest.fixture
def signed_by(make_host):
    """The key id by which a host signs."""

    def signed_by(host):
        signed = host.bind("alice@example.com", "alice")
        (key_id,) = signed["signatures"][host.name]
        public_key = parse_public_key(host.signing_keys.get_public_key(key_id))
        assert is_signed_by(signed, host.name, {key_id: public_key})
        return key_id

    return signed_by


class TestRotation:
    def test_without_a_running_server_the_new_key_signs_at_once(self, host, signed_by):
        assert signed_by(host) == "ed25519:0"
        assert host.signing_keys.rotate() == "ed25519:1"
        assert signed_by(host) == "ed25519:1"
        assert list(host.signing_keys.public_keys()) == ["ed25519:0", "ed25519:1"]
        held = keyfile.read_signing_keys(host.config.signing_keys_path)
        assert list(held) == ["ed25519:0", "ed25519:1"]
        assert mode_of(host.config.signing_keys_path) == 0o600

    @on_one_database
    @pytest.mark.requirement("KEY-08")
    def test_old_key_stays_published_and_valid(self, host, signed_by):
        old = host.signing_keys.get_public_key("ed25519:0")
        signed = host.bind("bob@example.com", "bob")
        host.signing_keys.rotate()
        assert signed_by(host) == "ed25519:1"
        assert host.signing_keys.get_public_key("ed25519:0") == old
        assert host.signing_keys.is_valid(old)
        assert is_signed_by(signed, host.name, {"ed25519:0": parse_public_key(old)})
        assert host.signing_keys.is_valid(host.signing_keys.get_public_key("ed25519:1"))

    def test_new_key_signs_once_every_live_host_holds_it(self, make_host, signed_by, clock):
        here, there = make_host(), make_host()
        for host, host_id in ((here, "here"), (there, "there")):
            host.signing_keys.report(host_id)
        # The other host has a file of its own, as on another machine.
        there.signing_keys._path = there.config.signing_keys_path.with_name("there.keys")
        there.signing_keys._path.write_bytes(here.config.signing_keys_path.read_bytes())
        there.signing_keys._path.chmod(0o600)

        assert here.signing_keys.rotate() == "ed25519:1"

        new = here.signing_keys.get_public_key("ed25519:1")
        for _ in range(2):
            # Published and valid at once, so that whoever sees it first can check it.
            assert here.signing_keys.is_valid(new)
            assert signed_by(here) == signed_by(there) == "ed25519:0"
            here.signing_keys.report("here")
            there.signing_keys.report("there")

        there.signing_keys._path.write_bytes(here.config.signing_keys_path.read_bytes())
        there.signing_keys.report("there")
        assert signed_by(here) == signed_by(there) == "ed25519:1"

    @on_one_database
    def test_host_that_is_silent_is_not_waited_for(self, host, signed_by, clock):
        host.signing_keys.report("gone")
        clock.advance(ms=HOST_SILENCE_MS)
        host.signing_keys.rotate()
        assert signed_by(host) == "ed25519:0"
        clock.advance(ms=1)
        host.signing_keys.report("here")
        assert signed_by(host) == "ed25519:1"
        assert [row["host_id"] for row in host.rows("hosts")] == ["here"]

    @on_one_database
    def test_host_that_left_is_not_waited_for(self, host, signed_by):
        host.signing_keys.report("gone")
        host.signing_keys.leave("gone")
        host.signing_keys.rotate()
        assert signed_by(host) == "ed25519:1"

    @on_one_database
    def test_key_that_a_host_lacks_keeps_it_from_starting(self, make_host, clock):
        host = make_host()
        path = host.config.signing_keys_path
        before = path.read_bytes()
        host.signing_keys.rotate()
        path.write_bytes(before)
        with pytest.raises(SetupError, match="lacks the signing key 'ed25519:1'"):
            make_host()

    @on_one_database
    def test_active_key_that_vanished_from_the_file_is_reported_not_replaced(self, host):
        path = host.config.signing_keys_path
        before = path.read_bytes()
        host.signing_keys.rotate()
        path.write_bytes(before)
        with pytest.raises(SetupError, match="lacks the active key ed25519:1"):
            host.bind("alice@example.com", "alice")
        assert host.rows("statements") == []

    @pytest.mark.requirement("KEY-08")
    def test_revoked_key_is_not_valid_but_old_signatures_can_be_checked(self, host, signed_by):
        signed = host.bind("bob@example.com", "bob")
        host.signing_keys.rotate()
        old = host.signing_keys.get_public_key("ed25519:0")
        host.signing_keys.revoke("ed25519:0")
        assert not host.signing_keys.is_valid(old)
        assert host.signing_keys.get_public_key("ed25519:0") == old
        assert is_signed_by(signed, host.name, {"ed25519:0": parse_public_key(old)})
        assert signed_by(host) == "ed25519:1"
        for key_id in ("ed25519:0", "ed25519:7", "nonsense"):
            with pytest.raises(KeyNotFound):
                host.signing_keys.revoke(key_id)

    @on_one_database
    def test_newest_key_can_be_revoked_and_the_one_before_signs(self, host, signed_by):
        host.signing_keys.rotate()
        host.signing_keys.revoke("ed25519:1")
        assert signed_by(host) == "ed25519:0"
        # Its number is not used again.
        assert host.signing_keys.rotate() == "ed25519:2"

    @on_one_database
    def test_rotation_counts_under_a_clock_that_jumped_back(self, host, signed_by, clock):
        clock.advance(hours=-24)
        host.signing_keys.rotate()
        assert signed_by(host) == "ed25519:1"
        host.signing_keys.report("here")
        host.signing_keys.rotate()
        host.signing_keys.rotate()
        host.signing_keys.report("here")
        assert signed_by(host) == "ed25519:3"
        assert list(host.signing_keys.public_keys()) == [f"ed25519:{n}" for n in range(4)]

    @on_one_database
    def test_only_key_cannot_be_revoked(self, host, signed_by):
        with pytest.raises(SetupError, match="rotate first"):
            host.signing_keys.revoke("ed25519:0")
        assert signed_by(host) == "ed25519:0"
        assert host.signing_keys.is_valid(host.signing_keys.get_public_key("ed25519:0"))

    @on_one_database
    def test_revoked_key_may_be_missing_from_the_file(self, make_host):
        host = make_host()
        host.signing_keys.rotate()
        host.signing_keys.revoke("ed25519:0")
        path = host.config.signing_keys_path
        held = keyfile.read_signing_keys(path)
        keyfile.write_signing_keys(path, {"ed25519:1": held["ed25519:1"]})
        make_host()

    @on_one_database
    def test_unknown_key_is_not_found(self, host):
        with pytest.raises(KeyNotFound):
            host.signing_keys.get_public_key("ed25519:1")
        assert not host.signing_keys.is_valid("")
        assert not host.signing_keys.is_valid(base64.b64encode(KEY.public_key).decode())
