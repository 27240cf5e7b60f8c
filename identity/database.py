"""The database: engines, transactions, and the type of sealed columns.

Rules:
- A unit of work is a function of a connection, passed to `Database.read` or `Database.write`
  by a service. It may be run again (a serialisation failure, a deadlock, a lost connection),
  so it does nothing but work on the database. Nothing commits anywhere else.
- `read` gives statements that each see the newest committed state. `write` is one transaction:
  BEGIN IMMEDIATE on SQLite, READ COMMITTED on PostgreSQL.
- SQLite: WAL with synchronous=FULL, and only a library that has the fix of the WAL-reset
  race (https://sqlite.org/wal.html#walresetbug).
- A database that is down, full, read-only or locked for too long is `StorageUnavailable`.
"""

import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect

from identity.errors import SetupError, StorageUnavailable
from identity.sealing import StorageKeys

try:
    from pysqlite3 import dbapi2 as sqlite
except ImportError:  # Only Linux has wheels; elsewhere Python's own library must be new enough.
    import sqlite3 as sqlite

log = structlog.get_logger(__name__)
T = TypeVar("T")
# What a unit of work is given. A service hands it on to its store and looks no further.
Transaction: TypeAlias = sa.Connection

metadata: Final = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

# How many rows one purge deletes, in a transaction that is soon over.
PURGE_ROWS: Final = 10_000

# Without it an INSERT does not say how many rows it wrote.
_OPTIONS: Final = {"preserve_rowcount": True}
_MAX_RUNS: Final = 8
_BUSY_TIMEOUT_MS: Final = 5_000
_WAL_PAUSE_SECONDS: Final = 0.01
_CONNECT_TIMEOUT_SECONDS: Final = 3
# Session settings of PostgreSQL, in milliseconds: nothing may wait for ever.
_POSTGRES_TIMEOUTS: Final = {
    "statement_timeout": 5_000,
    "lock_timeout": 2_000,
    "idle_in_transaction_session_timeout": 10_000,
}
# Serialisation failure, deadlock: the transaction is rolled back and may simply run again.
_RETRIABLE_SQLSTATES: Final = frozenset({"40001", "40P01"})


class Conflict(Exception):
    """Raised by a unit of work that met a concurrent one: it is rolled back and run again."""


class Database:
    """One database and the keys that unseal it. Threads may share it; forks may too, before use."""

    def __init__(
        self,
        url: str,
        keys: StorageKeys,
        *,
        pool_size: int = 10,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
    ) -> None:
        """`url`: `sqlite:///path`, or a `postgresql://` URL that goes to libpq as it is.

        Raises: SetupError for a URL of another kind, or an unfit SQLite library.
        """
        self.engine = create_engine(url, pool_size=pool_size, synchronous=synchronous)
        # Column types find the keys through the dialect, which belongs to this engine alone.
        self.engine.dialect.storage_keys = keys  # type: ignore[attr-defined]
        self.keys = keys
        self._writing = self.engine.execution_options(begin=_begin_statement(self.engine))
        self._driver = self.engine.dialect.loaded_dbapi
        self._is_sqlite = self.engine.dialect.name == "sqlite"
        # SQLite has one writer at a time; waiting here is fair and wakes at once, while its
        # own busy handler sleeps and polls.
        self._writer = threading.Lock()

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` without a transaction. Raises: StorageUnavailable."""
        return _run(self.engine, work, commit=False)

    def fetch(self, statement: str, parameters: tuple[Any, ...]) -> Sequence[tuple[Any, ...]]:
        """The rows of one SELECT written by hand, with `?` for each parameter.

        Only for what every lookup runs: taking the driver's cursor as it is costs a fifth of
        what a compiled expression does. Raises: StorageUnavailable.
        """
        if not self._is_sqlite:
            statement = statement.replace("?", "%s")
        try:
            return self._fetch(statement, parameters)
        except self._driver.Error as error:
            log.info("read_repeated", reason=type(error).__name__)
        except sa.exc.TimeoutError as error:
            log.warning("database_pool_exhausted")
            raise StorageUnavailable from error
        # Once more in the usual way: where one connection was lost, all in the pool may be.
        return self.read(
            lambda tx: [tuple(row) for row in tx.exec_driver_sql(statement, parameters)]
        )

    def _fetch(self, statement: str, parameters: tuple[Any, ...]) -> Sequence[tuple[Any, ...]]:
        connection = self.engine.raw_connection()
        try:
            cursor = connection.cursor()
            try:
                cursor.execute(statement, parameters)
                return cursor.fetchall()
            finally:
                cursor.close()
        except self._driver.Error:
            connection.invalidate()
            raise
        finally:
            connection.close()

    def write(self, work: Callable[[Transaction], T], *, patient: bool = False) -> T:
        """Run `work` in one transaction and commit it. Raises: StorageUnavailable.

        `patient`: an operator's long piece of work, which no time-out of a statement may end.
        """
        if not self._is_sqlite:
            return _run(self._writing, _without_timeouts(work) if patient else work, commit=True)
        with self._writer:
            return _run(self._writing, work, commit=True)

    def close(self) -> None:
        self.engine.dispose()


class Sealed(sa.types.TypeDecorator[str]):
    """A column of text that is sealed in the database; `name` is `table.column`."""

    impl = sa.LargeBinary
    cache_ok = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> bytes | None:
        return None if value is None else _keys(dialect).seal(self.name, value.encode())

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else _keys(dialect).unseal(self.name, bytes(value)).decode()


def insert(tx: Transaction, table: sa.Table) -> postgresql.Insert | sqlite_dialect.Insert:
    """An INSERT that may have an ON CONFLICT clause, which both databases spell alike."""
    if tx.dialect.name == "sqlite":
        return sqlite_dialect.insert(table)
    return postgresql.insert(table)


def select_many(
    tx: Transaction, statement: str, parameters: tuple[Any, ...]
) -> Sequence[sa.Row[Any]]:
    """The rows of one SELECT written by hand, with `?` for each parameter, of which there are many:
    the driver takes them at a fraction of what a compiled expression costs."""
    if tx.dialect.name != "sqlite":
        statement = statement.replace("?", "%s")
    return tx.exec_driver_sql(statement, parameters).all()


def insert_many(tx: Transaction, statement: str, rows: Sequence[tuple[Any, ...]]) -> int:
    """Run one INSERT written by hand, with `?` for each parameter; returns how many rows it wrote.

    Only for what every statement of a peer runs: the driver's own parameters cost a third of what
    a compiled expression does with each. What is sealed is sealed by the caller.
    """
    if tx.dialect.name != "sqlite":
        statement = statement.replace("?", "%s")
    return tx.exec_driver_sql(statement, list(rows)).rowcount if rows else 0


def create_engine(
    url: str,
    *,
    pool_size: int = 10,
    synchronous: Literal["FULL", "NORMAL"] = "FULL",
) -> sa.Engine:
    """An engine whose connections are in autocommit until `begin` asks for a transaction.

    Raises: SetupError.
    """
    if url.startswith("sqlite:///"):
        check_sqlite_version(sqlite.sqlite_version)
        engine = sa.create_engine(
            url,
            module=sqlite,
            pool_size=pool_size,
            max_overflow=0,
            hide_parameters=True,
            execution_options=_OPTIONS,
        )
        _configure_sqlite(engine, synchronous)
    elif re.match(r"postgres(ql)?://", url):
        engine = sa.create_engine(
            "postgresql+psycopg://",
            creator=lambda: _connect_postgres(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=_CONNECT_TIMEOUT_SECONDS,
            hide_parameters=True,
            execution_options=_OPTIONS,
        )
    else:
        raise SetupError("database.url must start with sqlite:/// or postgresql://")

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if statement := connection.get_execution_options().get("begin"):
            connection.exec_driver_sql(statement)

    return engine


def check_sqlite_version(version: str) -> None:
    """Raises: SetupError for a library with the WAL-reset race: 3.7.0 to 3.51.2, but for
    the patched 3.50.7 and 3.44.6 and what follows them in their branches."""
    number = tuple(int(part) for part in version.split("."))
    fixed = number >= (3, 51, 3) or (3, 50, 7) <= number < (3, 51) or (3, 44, 6) <= number < (3, 45)
    if not fixed:
        raise SetupError(
            f"SQLite {version} can corrupt a database that several connections write to; "
            "3.51.3 or newer is needed (the package pysqlite3 carries one), or use PostgreSQL"
        )


def _configure_sqlite(engine: sa.Engine, synchronous: str) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        _switch_to_wal(connection)
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")


def _switch_to_wal(connection: Any) -> None:
    """Of a new database several processes may want it at once, and SQLite does not let them
    wait for each other here, as it does elsewhere."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_MS / 1_000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite.OperationalError as error:
            if str(error) != "database is locked" or time.monotonic() > deadline:
                raise
            time.sleep(_WAL_PAUSE_SECONDS)
        else:
            return


def _connect_postgres(url: str) -> Any:
    import psycopg  # noqa: PLC0415 - servers on SQLite need not load it

    connection = psycopg.connect(
        url, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_SECONDS, application_name="identity"
    )
    settings = ", ".join(
        f"set_config('{name}', '{value}', false)" for name, value in _POSTGRES_TIMEOUTS.items()
    )
    connection.execute(f"SELECT {settings}")
    return connection


def _begin_statement(engine: sa.Engine) -> str:
    return "BEGIN IMMEDIATE" if engine.dialect.name == "sqlite" else "BEGIN"


def _run(engine: sa.Engine, work: Callable[[Transaction], T], *, commit: bool) -> T:
    for run in range(1, _MAX_RUNS + 1):
        committing = False
        try:
            with engine.connect() as connection:
                result = work(connection)
                if commit:
                    committing = True
                    connection.commit()
                return result
        except Conflict:
            log.info("transaction_conflict", run=run)
        except (sa.exc.OperationalError, sa.exc.InternalError, sa.exc.InterfaceError) as error:
            if not _may_run_again(error, committing=committing, run=run):
                raise _unavailable(error) from error
            log.info("transaction_repeated", run=run, reason=type(error.orig).__name__)
        except sa.exc.TimeoutError as error:
            log.warning("database_pool_exhausted")
            raise StorageUnavailable from error
    log.warning("transaction_given_up", runs=_MAX_RUNS)
    raise StorageUnavailable


def _without_timeouts(work: Callable[[Transaction], T]) -> Callable[[Transaction], T]:
    def patient_work(tx: Transaction) -> T:
        for name in _POSTGRES_TIMEOUTS:
            tx.exec_driver_sql(f"SET LOCAL {name} = 0")
        return work(tx)

    return patient_work


def _may_run_again(error: sa.exc.DBAPIError, *, committing: bool, run: int) -> bool:
    if getattr(error.orig, "sqlstate", None) in _RETRIABLE_SQLSTATES:
        return True
    # A pooled connection that died while idle. Once COMMIT was sent, nobody knows whether it
    # was carried out, so the caller is told that it failed and asks again.
    return error.connection_invalidated and not committing and run == 1


def _unavailable(error: sa.exc.DBAPIError) -> StorageUnavailable:
    # The driver's first line names the fault; parameters, which may be personal, are not in it.
    log.warning("database_unavailable", reason=type(error.orig).__name__)
    return StorageUnavailable()


def _keys(dialect: sa.Dialect) -> StorageKeys:
    keys: StorageKeys = dialect.storage_keys  # type: ignore[attr-defined]
    return keys


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL, or None for another database."""
    return Path(sa.make_url(url).database or "") if url.startswith("sqlite:///") else None
