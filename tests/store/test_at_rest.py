"""What a thief of the database, of its files and of their write-ahead logs can read.

Rows 5, 6 and 50 of the threats; decision 33: the canaries are personal data and secrets of a
whole flow, and none of them is anywhere in what is stored, whatever it is written as.
"""

import base64
import hashlib
import sqlite3
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from identity.database import Database, Sealed
from identity.errors import SetupError
from identity.keys import keyfile
from identity.lookup.hashing import encode_hash, lookup_hash
from identity.mxid import UserId
from identity.opening import open_database
from identity.sealing import SealBroken, StorageKeys
from identity.tables import metadata
from identity.threepid import ThreePid

EMAIL = "canary.strauß@canary.example"
FOLDED = "canary.strauss@canary.example"
GONE = "canary.gone@canary.example"
REFUSED = "canary.pending@canary.example"
PHONE = "447700900123"
SECRET = "canary.client=secret_4711"
NEXT_LINK = "https://canary.example/next?canary=link"

on_one_database = pytest.mark.parametrize("database_kind", ["sqlite"])


def forms(text, peppers):
    """Every way in which it might be written down."""
    data = text.encode()
    variants = {data, data.lower(), data.upper(), quote(text).encode(), data.hex().encode()}
    variants |= {data[::-1], text.encode("utf-16-le"), data.hex().upper().encode()}
    hashes = [hashlib.new(name, data).digest() for name in ("md5", "sha1", "sha256", "sha512")]
    hashes += [hashlib.blake2b(data, digest_size=32).digest()]
    for pepper in peppers:
        hashes += [lookup_hash(text, medium, pepper) for medium in ("email", "msisdn")]
    for value in [data, *hashes]:
        variants |= {value, value.hex().encode(), value.hex().upper().encode()}
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # The last characters depend on what follows.
            variants.add(encode(value).rstrip(b"=")[:-1])
    return variants


@pytest.fixture
def canaries(server, clock):
    """A whole flow: asked, validated, bound, found, unbound, refused, rotated."""
    account = server.account("@alice:hs.test")
    session = account.request_token(EMAIL, SECRET, next_link=NEXT_LINK).json
    mailed = server.mailed()
    token = mailed["token"]
    account.submit_token(sid=session["sid"], client_secret=SECRET, token="canary-wrong-token")
    account.submit_token(sid=session["sid"], client_secret=SECRET, token=token)
    account.post("/3pid/bind", json={**session, "client_secret": SECRET, "mxid": account.user_id})
    hashes = [server.hash_of(EMAIL), server.hash_of(FOLDED), server.hash_of(PHONE, "msisdn")]

    account.bind(GONE, SECRET + "2")
    server.services.associations.unbind(ThreePid.email(GONE), UserId.parse(account.user_id))
    account.request_token(REFUSED, SECRET + "3")
    pending = server.mailed()["token"]
    server.services.associations.bind(ThreePid.msisdn(PHONE), UserId.parse("@phone:hs.test"))
    assert server.found(EMAIL) == server.found(FOLDED) == account.user_id
    assert server.found(PHONE, "msisdn") == "@phone:hs.test"
    clock.advance(hours=2)
    account.get("/hash_details")
    server.services.peppers.finish(server.services.peppers.begin())

    texts = [EMAIL, FOLDED, GONE, REFUSED, PHONE, SECRET, NEXT_LINK, "canary-wrong-token"]
    texts += [token, pending, account.token, *hashes, "canary"]
    return texts


def stored_bytes(server, database_kind):
    """All there is, where a thief would find it."""
    if database_kind == "sqlite":
        folder = Path(server.database.engine.url.database).parent
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = {path.name for path in files}
        assert {"identity.db", "identity.db-wal", "identity.db-shm", "limits.db"} <= names
        return b"\n".join(path.read_bytes() for path in files)
    parts = []
    with psycopg.connect(server.config.database_url) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
        assert {name for (name,) in tables} >= set(metadata.tables)
        for (name,) in tables:
            query = sql.SQL("SELECT * FROM {}").format(sql.Identifier(name))
            for row in connection.execute(query):
                parts += [v if isinstance(v, bytes) else str(v).encode() for v in row]
    return b"\n".join(parts)


def dump_of_sqlite(server):
    """The same by SQL: pages may break a value in two."""
    path = Path(server.database.engine.url.database)
    parts = []
    for file in (path, path.with_name("limits.db")):
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (name,) in tables.fetchall():
            for row in connection.execute(f'SELECT * FROM "{name}"'):
                parts += [v if isinstance(v, bytes) else str(v).encode() for v in row]
        connection.close()
    return b"\n".join(parts)


@pytest.mark.requirement("AUTH-19")
def test_nothing_stored_gives_away_an_address_or_a_secret(server, database_kind, canaries):
    peppers = [row["pepper"] for row in server.rows("peppers")]
    stored = stored_bytes(server, database_kind)
    if database_kind == "sqlite":
        stored += dump_of_sqlite(server)
    # It is the right place: what need not be secret is there.
    for known in ("@alice:hs.test", "@phone:hs.test", *peppers):
        assert known.encode() in stored
    for text in canaries:
        for variant in forms(text, peppers):
            assert variant not in stored, f"{text} is stored as {variant!r}"


def test_search_for_canaries_would_find_them(server, database_kind):
    """The control: what is not sealed is found."""
    server.bind_directly("18005552067", "@canary:hs.test", "msisdn")
    assert any(variant in stored_bytes(server, database_kind) for variant in forms("canary", []))
    with_hash = lookup_hash(PHONE, "msisdn", "pepper")
    assert with_hash in forms(PHONE, ["pepper"])
    assert encode_hash(with_hash)[:-1].encode() in forms(PHONE, ["pepper"])
    assert base64.b64encode(PHONE.encode())[:-1] in forms(PHONE, [])


@pytest.mark.usefixtures("canaries")
def test_everything_is_there_for_who_has_the_keys(server):
    """The other control: the canaries were stored, sealed."""
    sessions = server.rows("validation_sessions")
    assert {FOLDED, GONE, REFUSED} == {row["address"] for row in sessions}
    assert {EMAIL, None} == {row["lowered"] for row in sessions}
    assert NEXT_LINK in {row["next_link"] for row in sessions}
    statements = server.rows("statements")
    assert any(PHONE in row["signed"] for row in statements)
    assert EMAIL in {row["lowered"] for row in statements}


SEALED = [
    column
    for table in metadata.sorted_tables
    for column in table.columns
    if isinstance(column.type, Sealed)
]


def test_sealed_columns_are_sealed_each_under_its_own_name():
    assert len(SEALED) >= 5
    assert len({column.type.name for column in SEALED}) == len(SEALED)
    for column in SEALED:
        assert column.type.name == f"{column.table.name}.{column.name}"


@pytest.fixture
def raw(server):
    """Reads and writes sealed values as they are stored."""

    def at(table, column):
        return sa.table(table, sa.column(column, sa.LargeBinary))

    class Raw:
        def get(self, table, column):
            part = at(table, column)
            query = sa.select(part.c[column]).where(part.c[column].is_not(None)).limit(1)
            return bytes(server.database.read(lambda tx: tx.execute(query).scalar_one()))

        def set(self, table, column, value):
            part = at(table, column)
            server.database.write(lambda tx: tx.execute(part.update().values({column: value})))

    return Raw()


@pytest.mark.usefixtures("canaries")
def test_sealed_value_cannot_be_moved_to_another_column(server, raw):
    lowered = raw.get("statements", "lowered")
    assert EMAIL in {row["lowered"] for row in server.rows("statements")}
    for table, column in (("statements", "signed"), ("validation_sessions", "lowered")):
        own = raw.get(table, column)
        raw.set(table, column, lowered)
        with pytest.raises(SealBroken, match=f"{table}.{column}"):
            server.rows(table)
        raw.set(table, column, own)
        server.rows(table)


@on_one_database
@pytest.mark.usefixtures("canaries")
def test_sealed_value_that_was_changed_is_refused(server, raw):
    own = raw.get("statements", "signed")
    for changed in (
        own[:-1] + bytes([own[-1] ^ 1]),
        own[:10] + bytes([own[10] ^ 1]) + own[11:],
        own[:-1],
        own[:26],
        own[:1],
        b"",
        FOLDED.encode(),
    ):
        raw.set("statements", "signed", changed)
        with pytest.raises(SealBroken) as caught:
            server.rows("statements")
        assert "canary" not in str(caught.value)


@on_one_database
def test_same_value_is_sealed_otherwise_each_time(server, raw):
    sealed = set()
    for _ in range(3):
        server.bind_directly("alice@example.com", "@alice:hs.test")
    query = sa.select(sa.table("statements", sa.column("signed", sa.LargeBinary)))
    sealed = {bytes(v) for v in server.database.read(lambda tx: tx.execute(query).scalars().all())}
    assert len(sealed) == 3
    # Number of the key, nonce, text, tag.
    text = server.rows("statements")[0]["signed"]
    assert {len(value) for value in sealed} == {2 + 24 + len(text) + 16}


@on_one_database
class TestKeys:
    @pytest.fixture
    def keys(self, server):
        server.bind_directly("alice@example.com", "@alice:hs.test")
        return server.database.keys

    def reopened(self, server, keys):
        """What is stored, for who holds these keys."""
        database = Database(server.config.database_url, keys)
        query = sa.select(metadata.tables["statements"].c.signed)
        try:
            return database.read(lambda tx: tx.execute(query).scalars().all())
        finally:
            database.close()

    def test_newest_key_seals_and_all_unseal(self, server, keys):
        rotated = keyfile.add_seal(keys)
        (text,) = self.reopened(server, rotated)
        assert "alice@example.com" in text
        sealed = rotated.seal("t.c", b"x")
        assert rotated.unseal("t.c", sealed) == b"x"
        with pytest.raises(SealBroken, match=r"t\.c: sealed with a key that this host does not"):
            keys.unseal("t.c", sealed)

    def test_missing_key_is_told_from_a_broken_value(self, server, keys):
        other = keyfile.generate_storage_keys()
        with pytest.raises(SealBroken, match=r"statements\.signed: .* does not verify"):
            self.reopened(server, StorageKeys(keys.index, other.seals))
        with pytest.raises(SealBroken, match=r"statements\.signed: .* does not have"):
            self.reopened(server, StorageKeys(keys.index, {7: other.seals[1]}))

    def test_host_that_lacks_a_key_does_not_start(self, server, keys, clock):
        path = server.config.storage_keys_path
        (seal,) = keys.seals.values()
        for wrong, name in (
            (StorageKeys(keys.index, {2: seal}), "seal:1"),
            (StorageKeys(keys.index, {1: keys.index}), "seal:1"),
            (StorageKeys(seal, keys.seals), "index"),
        ):
            keyfile.write_storage_keys(path, wrong)
            with pytest.raises(SetupError, match=f"lacks the storage key '{name}'"):
                open_database(server.config, clock, migrate=True)
        keyfile.write_storage_keys(path, keys)
        open_database(server.config, clock, migrate=True).database.close()

    def test_keys_are_not_shown(self, keys):
        shown = repr(keys) + str(keys)
        for key in (keys.index, *keys.seals.values()):
            for form in (repr(key), key.hex(), base64.b64encode(key).decode()):
                assert form not in shown

    def test_hashes_of_different_uses_are_different(self, keys):
        values = [
            keys.keyed_hash("access token", "x"),
            keys.keyed_hash("client secret", "x"),
            keys.keyed_hash("session token", "x"),
            # The border between the parts is part of what is hashed.
            keys.keyed_hash("session token", "x", ""),
            keys.keyed_hash("session token", "ab", "c"),
            keys.keyed_hash("session token", "a", "bc"),
            keys.blind_index(ThreePid.msisdn("18005552067")),
            keys.lookup_key("pepper"),
            keys.lookup_key("pepper2"),
        ]
        assert len(set(values)) == len(values)
        assert {len(value) for value in values} == {32}
        others = keyfile.generate_storage_keys()
        assert others.keyed_hash("access token", "x") != values[0]
