"""The schema and its migrations.

Migrations are Alembic's, under `migrations/` (mapped into the package as
`identity/migrations`). All of them run in one transaction, under a lock, so that hosts which
start at once upgrade once, and an upgrade that fails changes nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from identity.database import create_engine
from identity.errors import SetupError

_PACKAGED: Final = Path(__file__).parent / "migrations"
_CHECKOUT: Final = Path(__file__).parent.parent / "migrations"
# Any number will do, as long as every host uses the same.
_ADVISORY_LOCK: Final = 4_906_274_133


def head() -> str:
    """The revision that this version of the code works with."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def current(connection: sa.Connection) -> str | None:
    """The revision of a database; None for a new one."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if revision is None else str(revision)


def find_revision(url: str) -> str | None:
    """The same for a database that is not open yet.

    Raises: SetupError when it cannot be reached, or is newer than this version of the code.
    """
    engine = create_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            revision = current(connection)
    except sa.exc.DBAPIError as error:
        raise SetupError(f"The database cannot be opened: {_reason(error)}") from None
    finally:
        engine.dispose()
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise SetupError(
            f"The database has the schema of a newer version of this server ({revision}); "
            "run that version, or restore a backup from before the upgrade"
        )
    return revision


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database to `revision`; nothing happens where it is there already.

    Raises: SetupError, and then nothing has changed.
    """
    _migrate(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Take migrations back; what only the newer schema can hold is lost."""
    _migrate(url, lambda config: command.downgrade(config, revision))


def _migrate(url: str, run: Callable[[Config], None]) -> None:
    engine = create_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql("BEGIN")
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
            config = _config()
            config.attributes["connection"] = connection
            run(config)
            connection.commit()
    except sa.exc.DBAPIError as error:
        raise SetupError(f"The schema cannot be changed: {_reason(error)}") from error
    finally:
        engine.dispose()


def _reason(error: sa.exc.DBAPIError) -> str:
    """libpq's first line says which host and why; it never repeats the password."""
    return str(error.orig).strip().splitlines()[0]


def _config() -> Config:
    config = Config()
    location = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
    config.set_main_option("script_location", str(location).replace("%", "%%"))
    return config
