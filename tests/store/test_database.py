"""Transactions that are run again, connections that are lost, libraries that are refused."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from identity.database import Conflict, Database, check_sqlite_version, sqlite
from identity.errors import SetupError, StorageUnavailable
from identity.keys.keyfile import generate_storage_keys

on_postgresql = pytest.mark.parametrize("database_kind", ["postgresql"])
on_sqlite = pytest.mark.parametrize("database_kind", ["sqlite"])

counters = sa.Table(
    "counters",
    sa.MetaData(),
    sa.Column("name", sa.String(10), primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)
VALUES = sa.select(counters.c.name, counters.c.value)


@pytest.fixture
def make_database(make_database_url):
    url, made = make_database_url(), []

    def make(**options) -> Database:
        made.append(Database(url, generate_storage_keys(), **options))
        return made[-1]

    first = make()
    first.write(counters.metadata.create_all)
    first.write(
        lambda tx: tx.execute(counters.insert(), [{"name": n, "value": 0} for n in ("a", "b")])
    )
    yield make
    for database in made:
        database.close()


@pytest.fixture
def database(make_database):
    return make_database()


def add(tx, name):
    tx.execute(counters.update().where(counters.c.name == name).values(value=counters.c.value + 1))


def values(database):
    return dict(database.read(lambda tx: [tuple(row) for row in tx.execute(VALUES)]))


class TestWorkRunsAgain:
    def test_after_a_conflict_and_is_rolled_back_before(self, database):
        runs = []

        def work(tx):
            add(tx, "a")
            runs.append(tx)
            if len(runs) < 3:
                raise Conflict
            return "done"

        assert database.write(work) == "done"
        assert len(runs) == 3
        assert values(database) == {"a": 1, "b": 0}

    def test_a_bounded_number_of_times(self, database):
        runs = []

        def work(tx):
            add(tx, "a")
            runs.append(tx)
            raise Conflict

        with pytest.raises(StorageUnavailable):
            database.write(work)
        assert 1 < len(runs) <= 10
        assert values(database) == {"a": 0, "b": 0}

    @on_postgresql
    def test_after_a_deadlock(self, make_database):
        """A real one: each holds a row that the other one waits for."""
        both_hold = threading.Barrier(2, timeout=10)
        runs = []

        def work(first, second):
            met = []

            def work(tx):
                runs.append(first)
                add(tx, first)
                if not met:
                    met.append(True)
                    both_hold.wait()
                add(tx, second)

            return work

        with ThreadPoolExecutor(2) as threads, capture_logs() as logs:
            done = [threads.submit(make_database().write, work(*order)) for order in ("ab", "ba")]
            for future in done:
                future.result()
        assert values(make_database()) == {"a": 2, "b": 2}
        assert len(runs) == 3
        (repeated,) = logs
        assert repeated["event"] == "transaction_repeated"
        assert repeated["reason"] == "DeadlockDetected"

    @on_postgresql
    def test_after_a_serialization_failure(self, make_database):
        database, other = make_database(), make_database()
        runs = []

        def work(tx):
            runs.append(tx)
            tx.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            assert values_in(tx) == {"a": len(runs) - 1, "b": 0}
            if len(runs) == 1:
                other.write(lambda their_tx: add(their_tx, "a"))
            add(tx, "a")

        with capture_logs() as logs:
            database.write(work)
        assert values(database) == {"a": 2, "b": 0}
        assert [entry["reason"] for entry in logs] == ["SerializationFailure"]

    def test_but_not_after_a_fault_of_its_own(self, database):
        runs = []

        def work(tx):
            runs.append(tx)
            add(tx, "a")
            tx.execute(counters.insert().values(name="b", value=9))

        with pytest.raises(sa.exc.IntegrityError):
            database.write(work)
        assert len(runs) == 1
        assert values(database) == {"a": 0, "b": 0}

    @on_sqlite
    def test_writers_of_sqlite_take_turns(self, make_database):
        """Each reads before it writes; none of them is told that the database is locked."""
        databases = [make_database() for _ in range(3)]

        def work(tx):
            value = tx.execute(VALUES.where(counters.c.name == "a")).one().value
            tx.execute(counters.update().where(counters.c.name == "a").values(value=value + 1))

        with ThreadPoolExecutor(9) as threads:
            list(threads.map(lambda number: databases[number % 3].write(work), range(90)))
        assert values(databases[0])["a"] == 90


def values_in(tx):
    return {row.name: row.value for row in tx.execute(VALUES)}


def kill_connections(url):
    """All but our own."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@on_postgresql
class TestLostConnection:
    @pytest.fixture
    def url(self, make_database_url):
        return make_database_url()

    @pytest.fixture
    def database(self, url):
        database = Database(url, generate_storage_keys())
        database.write(counters.metadata.create_all)
        database.write(lambda tx: tx.execute(counters.insert().values(name="a", value=0)))
        yield database
        database.close()

    @pytest.fixture
    def pooled(self, database):
        """Several connections lie idle in the pool."""
        all_there = threading.Barrier(4, timeout=10)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(database.read, [lambda _tx: all_there.wait()] * 4))
        assert database.engine.pool.checkedin() == 4

    @pytest.mark.usefixtures("pooled")
    def test_reads_heal_without_an_error(self, database, url):
        for _ in range(2):
            kill_connections(url)
            for _ in range(5):
                assert values(database) == {"a": 0}

    @pytest.mark.usefixtures("pooled")
    def test_hot_reads_heal_without_an_error(self, database, url):
        """Those that go past SQLAlchemy: every lookup, every access token."""
        for _ in range(2):
            kill_connections(url)
            for _ in range(5):
                query = "SELECT value FROM counters WHERE name = ?"
                assert list(database.fetch(query, ("a",))) == [(0,)]

    @pytest.mark.usefixtures("pooled")
    def test_writes_that_had_not_committed_run_again(self, database, url):
        kill_connections(url)
        database.write(lambda tx: add(tx, "a"))
        runs = []

        def work(tx):
            runs.append(tx)
            add(tx, "a")
            if len(runs) == 1:
                kill_connections(url)
            add(tx, "a")

        database.write(work)
        assert len(runs) == 2
        assert values(database) == {"a": 3}

    def test_commit_that_nobody_knows_the_end_of_is_not_repeated(self, database, url):
        runs = []

        def work(tx):
            runs.append(tx)
            add(tx, "a")
            kill_connections(url)

        with pytest.raises(StorageUnavailable):
            database.write(work)
        assert len(runs) == 1
        assert values(database) == {"a": 0}

    def test_database_that_is_gone_is_unavailable(self, database, request, url):
        values(database)
        request.getfixturevalue("postgres").drop(url)
        for act in (
            lambda: values(database),
            lambda: database.write(lambda tx: add(tx, "a")),
            lambda: database.fetch("SELECT value FROM counters WHERE name = ?", ("a",)),
        ):
            with pytest.raises(StorageUnavailable) as caught:
                act()
            assert caught.value.retry_after_ms > 0


@on_postgresql
def test_nothing_waits_for_ever(database):
    query = "SELECT current_setting('{}')"
    settings = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")

    def work(tx):
        return [tx.exec_driver_sql(query.format(name)).scalar() for name in settings]

    assert database.read(work) == ["5s", "2s", "10s"]
    assert database.write(work) == ["5s", "2s", "10s"]
    # An operator's long piece of work may wait; the next one may not.
    assert database.write(work, patient=True) == ["0", "0", "0"]
    assert database.write(work) == ["5s", "2s", "10s"]


@on_sqlite
@pytest.mark.parametrize(("synchronous", "number"), [("FULL", 2), ("NORMAL", 1)])
def test_sqlite_is_opened_durably(make_database, synchronous, number):
    pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")

    def work(tx):
        return [tx.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]

    database = make_database(synchronous=synchronous)
    assert database.read(work) == database.write(work) == ["wal", number, 1, 5_000]


def test_read_sees_what_others_commit_meanwhile(make_database):
    reader, writer = make_database(), make_database()

    def work(tx):
        before = values_in(tx)
        writer.write(lambda their_tx: add(their_tx, "a"))
        return before, values_in(tx)

    before, after = reader.read(work)
    assert (before["a"], after["a"]) == (0, 1)


def test_error_of_the_database_does_not_repeat_what_was_to_be_stored(database):
    """A statement that fails is logged by the application, with its traceback."""

    def work(tx):
        secret = counters.insert().values(name="a", value=123456789)
        tx.execute(secret)

    with pytest.raises(sa.exc.IntegrityError) as caught:
        database.write(work)
    assert "123456789" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "mysql://x", "sqlite://", "sqlite:relative.db", "postgresql:x", "/tmp/x.db"]
)
def test_url_of_another_kind_is_refused(url):
    with pytest.raises(SetupError, match=r"database\.url"):
        Database(url, generate_storage_keys())


@pytest.mark.parametrize(
    ("version", "fit"),
    [
        ("3.6.23", False),
        ("3.7.0", False),
        ("3.40.1", False),
        ("3.44.5", False),
        ("3.44.6", True),
        ("3.44.9", True),
        ("3.45.0", False),
        ("3.45.3", False),
        ("3.49.2", False),
        ("3.50.6", False),
        ("3.50.7", True),
        ("3.51.0", False),
        ("3.51.2", False),
        ("3.51.3", True),
        ("3.52.0", True),
        ("3.100.0", True),
        ("4.0.0", True),
    ],
)
def test_sqlite_library_with_the_wal_race_is_refused(version, fit):
    """Row 57 of the threats; decision 24."""
    if fit:
        check_sqlite_version(version)
        return
    with pytest.raises(SetupError) as caught:
        check_sqlite_version(version)
    assert version in str(caught.value)
    assert "3.51.3" in str(caught.value)


def test_new_database_that_others_write_to_is_waited_for(tmp_path):
    """SQLite itself does not wait where it is to switch to the write-ahead log."""
    path = tmp_path / "new.db"
    other = sqlite.connect(path, isolation_level=None)
    other.execute("CREATE TABLE theirs (value)")
    other.execute("BEGIN IMMEDIATE")
    database = Database(f"sqlite:///{path}", generate_storage_keys())
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(
            database.read, lambda tx: tx.exec_driver_sql("PRAGMA journal_mode").scalar()
        )
        with pytest.raises(TimeoutError):
            opening.result(timeout=0.1)
        other.execute("COMMIT")
        assert opening.result() == "wal"
    other.close()
    database.close()
