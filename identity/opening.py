"""Opening the database and the keys that belong to it, and making both the first time.

The order matters: key files are made only together with a new database, which then records
their fingerprints; a database that has recorded keys is opened with those keys only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from identity import schema
from identity.associations.store import ensure_origin
from identity.clock import Clock
from identity.config import Config
from identity.database import Database, create_engine, sqlite_path
from identity.errors import SetupError
from identity.keys import keyfile
from identity.keys.service import create_key_files, record_or_check
from identity.lookup.service import create_first_pepper

_DIRECTORY_MODE: Final = 0o700


@dataclass(frozen=True, slots=True)
class Opened:
    """`made`: the files that were created, for the operator to know and to back up."""

    database: Database
    made: tuple[Path, ...]


def open_database(config: Config, clock: Clock, *, migrate: bool) -> Opened:
    """Open the configured database; a new one is created, with its keys.

    `migrate`: bring an old schema up to date; without it an old schema is a SetupError.
    Raises: SetupError.
    """
    url = config.database_url
    revision = _revision(url)
    made: list[Path] = []
    if revision is None:
        made = create_key_files(config.signing_keys_path, config.storage_keys_path)
    signing = keyfile.read_signing_keys(config.signing_keys_path)
    storage = keyfile.read_storage_keys(config.storage_keys_path)
    if revision != schema.head():
        if revision is not None and not migrate:
            raise SetupError("The database has an older schema; run: identity db upgrade")
        schema.upgrade(url)
    database = Database(url, storage, pool_size=config.database.pool_size)
    now_ms = clock.now_ms()

    def check(tx: sa.Connection) -> None:
        record_or_check(tx, signing, storage, now_ms)
        create_first_pepper(tx, now_ms)
        ensure_origin(tx, str(config.server.name))

    database.write(check)
    if revision is None and (path := sqlite_path(url)):
        made.append(path)
    return Opened(database, tuple(made))


def _revision(url: str) -> str | None:
    """The schema's revision, None for a new database. Raises: SetupError when it is newer than
    this version of the code, or cannot be reached."""
    if path := sqlite_path(url):
        path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    engine = create_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            return schema.current(connection)
    except sa.exc.DBAPIError as error:
        # libpq's first line says which host and why; it never repeats the password.
        reason = str(error.orig).strip().splitlines()[0]
        raise SetupError(f"The database cannot be opened: {reason}") from None
    finally:
        engine.dispose()
