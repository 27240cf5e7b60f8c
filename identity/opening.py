"""Opening the database and the keys that belong to it, and making both the first time.

The order matters: key files are made only together with a new database, which then records
their fingerprints; a database that has recorded keys is opened with those keys only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from identity import schema
from identity.associations.store import ensure_origin
from identity.clock import Clock
from identity.config import Config
from identity.database import Database, Transaction, sqlite_path
from identity.errors import SetupError
from identity.keys import keyfile
from identity.keys.service import create_key_files, record_or_check
from identity.lookup.service import create_first_pepper

_DIRECTORY_MODE: Final = 0o700


@dataclass(frozen=True, slots=True)
class Opened:
    """`made`: what was created, for the operator to know; files by their paths."""

    database: Database
    made: tuple[str, ...]


def open_database(config: Config, clock: Clock, *, migrate: bool) -> Opened:
    """Open the configured database; a new one is created, with its keys.

    `migrate`: bring an old schema up to date; without it an old schema is a SetupError.
    Raises: SetupError.
    """
    url = config.database_url
    path = sqlite_path(url)
    if path is not None:
        _make_folder(path.parent)
    revision = schema.find_revision(url)
    made: list[str] = []
    if revision is None:
        made += map(str, create_key_files(config.signing_keys_path, config.storage_keys_path))
    signing = keyfile.read_signing_keys(config.signing_keys_path)
    storage = keyfile.read_storage_keys(config.storage_keys_path)
    if revision != schema.head():
        if revision is not None and not migrate:
            raise SetupError("The database has an older schema; run: identity db upgrade")
        schema.upgrade(url)
    database = Database(url, storage, pool_size=config.database.pool_size)
    now_ms = clock.now_ms()

    def check(tx: Transaction) -> None:
        record_or_check(tx, signing, storage, now_ms)
        create_first_pepper(tx, now_ms)
        ensure_origin(tx, str(config.server.name))

    try:
        database.write(check)
    except Exception:
        database.close()
        raise
    if revision is None:
        made.append(str(path or "the tables in PostgreSQL"))
    return Opened(database, tuple(made))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{path} cannot be made: {error.strerror}") from None
