"""Migrations: what they make, that they lose nothing, and that they run once."""

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from parts.openers import open_at_once

from identity import schema
from identity.associations.service import Associations
from identity.config import load
from identity.database import create_engine
from identity.errors import SetupError
from identity.keys import keyfile
from identity.keys.service import SigningKeys, create_key_files
from identity.limits.models import metadata as limits_metadata
from identity.mxid import UserId
from identity.opening import open_database
from identity.tables import metadata
from identity.threepid import ThreePid

SCRIPTS = ScriptDirectory.from_config(schema._config())
REVISIONS = [script.revision for script in SCRIPTS.walk_revisions()][::-1]


@pytest.fixture
def url(request, database_kind, tmp_path):
    """A database without anything in it."""
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path}/identity.db"
    else:
        made = request.getfixturevalue("postgres").create(migrated=False)
        yield made
        request.getfixturevalue("postgres").drop(made)


@pytest.fixture
def engine(url):
    engine = create_engine(url, pool_size=1)
    yield engine
    engine.dispose()


@pytest.fixture
def config(url, tmp_path):
    config = load(
        None,
        {"IDENTITY_DATABASE__URL": url, "IDENTITY_SERVER__DATA_DIR": str(tmp_path / "data")},
    )
    create_key_files(config.signing_keys_path, config.storage_keys_path)
    return config


def revision_of(engine):
    with engine.connect() as connection:
        return schema.current(connection)


def tables_of(engine):
    return set(sa.inspect(engine).get_table_names()) - {"alembic_version"}


def make(kind):
    """A value of a column's type; the same for every table, so that references hold."""
    match kind:
        case sa.Boolean():
            return True
        case sa.Integer() | sa.BigInteger():
            return 1
        case sa.LargeBinary():
            return b"x" * 32
        case sa.String():
            return "x"
    raise AssertionError(f"no value for {kind!r}")


def fill(engine):
    """One row in each table that has none."""
    held = sa.MetaData()
    held.reflect(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        for table in held.sorted_tables:
            if table.name == "alembic_version" or connection.execute(table.select()).first():
                continue
            values = {column.name: make(column.type) for column in table.columns}
            connection.execute(table.insert().values(values))
        connection.commit()


def contents(engine):
    """Table to its rows, by the names of the columns."""
    held = sa.MetaData()
    held.reflect(engine)
    with engine.connect() as connection:
        return {
            table.name: [dict(row._mapping) for row in connection.execute(table.select())]
            for table in held.sorted_tables
            if table.name != "alembic_version"
        }


def assert_kept(before, after):
    """What both schemas have has not changed."""
    for table in before.keys() & after.keys():
        assert len(before[table]) == len(after[table]) == 1
        (old,), (new,) = before[table], after[table]
        common = old.keys() & new.keys()
        assert common
        assert {name: old[name] for name in common} == {name: new[name] for name in common}


def test_migrated_schema_equals_the_models(url, engine):
    schema.upgrade(url)
    wanted = [metadata]
    if engine.dialect.name == "postgresql":
        wanted.append(limits_metadata)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, wanted) == []
    # What the comparison does not look at: collations, keys, references, checks.
    inspector = sa.inspect(engine)
    for table in metadata.sorted_tables:
        assert inspector.get_pk_constraint(table.name)["constrained_columns"] == [
            column.name for column in table.primary_key.columns
        ]
        references = {
            (*key["constrained_columns"], key["referred_table"], key["options"].get("ondelete"))
            for key in inspector.get_foreign_keys(table.name)
        }
        assert references == {
            (key.parent.name, key.column.table.name, key.ondelete) for key in table.foreign_keys
        }
        for column in inspector.get_columns(table.name):
            model = table.columns[column["name"]].type.dialect_impl(engine.dialect)
            if isinstance(model, sa.String):
                assert (column["type"].collation, column["type"].length) == (
                    model.collation,
                    model.length,
                )


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_tables_that_are_found_by_their_key_alone_have_no_row_number(url, engine):
    """Alembic does not compare it: a table WITHOUT ROWID is one tree, not two."""
    schema.upgrade(url)
    with engine.connect() as connection:
        made = dict(connection.exec_driver_sql("SELECT name, sql FROM sqlite_master").fetchall())
    for table in metadata.sorted_tables:
        wanted = table.dialect_kwargs.get("sqlite_with_rowid") is False
        assert made[table.name].rstrip().endswith("WITHOUT ROWID") is wanted, table.name


def test_every_migration_goes_up_down_and_up_again_with_data(url, engine):
    previous = None
    for revision in REVISIONS:
        before = contents(engine)
        schema.upgrade(url, revision)
        assert revision_of(engine) == revision
        above = contents(engine)
        assert_kept(before, above)
        fill(engine)
        full = contents(engine)

        schema.downgrade(url, previous or "base")
        assert revision_of(engine) == previous
        below = contents(engine)
        assert below.keys() == before.keys()
        assert_kept(full, below)

        schema.upgrade(url, revision)
        assert contents(engine).keys() == above.keys()
        assert_kept(below, contents(engine))
        fill(engine)
        previous = revision
    schema.downgrade(url, "base")
    assert tables_of(engine) == set()
    schema.upgrade(url)
    assert revision_of(engine) == schema.head()


def test_what_was_bound_survives_the_way_down_and_up(url, config, clock):
    threepid, mxid = ThreePid.email("alice@example.com"), UserId.parse("@alice:hs.test")

    def associations(database):
        keys = SigningKeys(database, config.signing_keys_path, clock)
        return Associations(database, keys, str(config.server.name), clock)

    database = open_database(config, clock, migrate=True).database
    associations(database).bind(threepid, mxid)
    database.close()
    schema.downgrade(url, REVISIONS[0])
    database = open_database(config, clock, migrate=True).database
    assert associations(database).find_mxid(threepid) == str(mxid)
    associations(database).rebuild()
    assert associations(database).find_mxid(threepid) == str(mxid)
    assert associations(database).unbind(threepid, mxid)
    database.close()


def test_homeservers_are_known_since_their_first_account(url, engine):
    schema.upgrade(url, "0002")
    accounts = [
        ("@a:One.test", 5),
        ("@b:one.test:8448", 3),
        ("@c:two.test", 9),
        ("@d:[2001:DB8::1]:443", 7),
        ("@e:[2001:db8::1]", 8),
    ]
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        for user_id, at_ms in accounts:
            values = {"user_id": user_id, "created_at_ms": at_ms}
            connection.execute(metadata.tables["accounts"].insert().values(values))
        connection.commit()
    schema.upgrade(url, "0003")
    assert sorted(tuple(row.values()) for row in contents(engine)["homeservers"]) == [
        ("2001:db8::1", 7),
        ("one.test", 3),
        ("two.test", 9),
    ]


def test_upgrade_that_fails_changes_nothing(url, engine):
    """All migrations of one upgrade are one transaction."""
    foreign = "validation_tokens"
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE TABLE {foreign} (theirs INTEGER)")
        connection.commit()
    with pytest.raises(SetupError, match=f"{foreign}.* already exists"):
        schema.upgrade(url)
    assert revision_of(engine) is None
    assert tables_of(engine) == {foreign}


def test_upgrade_of_what_is_up_to_date_does_nothing(url, engine):
    schema.upgrade(url)
    fill(engine)
    before = contents(engine)
    schema.upgrade(url)
    assert contents(engine) == before
    assert revision_of(engine) == schema.head() == REVISIONS[-1]


def settings_of(config):
    return {
        "IDENTITY_DATABASE__URL": config.database_url,
        "IDENTITY_SERVER__DATA_DIR": str(config.server.data_dir),
    }


def test_processes_that_upgrade_at_once_upgrade_once(url, engine, config):
    """From the first schema; test_key_files does it from nothing."""
    schema.upgrade(url, REVISIONS[0])
    answers = open_at_once(*[settings_of(config)] * 4)
    assert [answer.get("error") for answer in answers] == [None] * 4
    assert revision_of(engine) == schema.head()
    assert tables_of(engine) >= set(metadata.tables)
    with engine.connect() as connection:
        versions = connection.exec_driver_sql("SELECT count(*) FROM alembic_version").scalar()
    assert versions == 1


def test_old_schema_is_refused_where_nobody_asked_for_a_migration(url, engine, config, clock):
    open_database(config, clock, migrate=True).database.close()
    schema.downgrade(url, REVISIONS[0])
    if REVISIONS[0] != schema.head():
        with pytest.raises(SetupError, match="older schema; run: identity db upgrade"):
            open_database(config, clock, migrate=False)
        assert revision_of(engine) == REVISIONS[0]
    open_database(config, clock, migrate=True).database.close()
    assert revision_of(engine) == schema.head()


@pytest.mark.parametrize("migrate", [True, False])
def test_schema_of_a_newer_version_is_refused_and_left_alone(url, engine, config, clock, migrate):
    open_database(config, clock, migrate=True).database.close()
    with engine.connect() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    before = contents(engine)
    with pytest.raises(SetupError, match=r"newer version of this server \(9999\)"):
        open_database(config, clock, migrate=migrate)
    assert revision_of(engine) == "9999"
    assert contents(engine) == before


def test_database_that_cannot_be_reached_is_reported(tmp_path, clock):
    (tmp_path / "folder.db").mkdir()
    keys = tmp_path / "data"
    for url in (
        f"sqlite:///{tmp_path}/folder.db",
        "postgresql://identity:hunter2@127.0.0.1:1/identity",
    ):
        config = load(None, {"IDENTITY_DATABASE__URL": url, "IDENTITY_SERVER__DATA_DIR": str(keys)})
        with pytest.raises(SetupError, match="cannot be opened") as caught:
            open_database(config, clock, migrate=True)
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)
        # A database that may well exist gets no new keys.
        assert not keys.exists()


def test_new_database_without_migrate_is_made_all_the_same(url, engine, config, clock):
    """Decision 27: every command creates what is missing."""
    open_database(config, clock, migrate=False).database.close()
    assert revision_of(engine) == schema.head()
    assert keyfile.read_signing_keys(config.signing_keys_path)


def test_each_migration_says_what_it_locks():
    for script in SCRIPTS.walk_revisions():
        assert f"\nRevision: {script.revision}, " in script.longdoc
        assert "Locks:" in script.longdoc
