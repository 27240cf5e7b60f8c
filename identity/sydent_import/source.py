"""A Sydent's configuration and database, as they lie on disk; nothing is written to either.

The database is read in one transaction, so it is seen as of one instant. What a row says is not
judged here. Its tables are those of Sydent 2.5 and 2.6 (version 5 of its schema).
"""

import configparser
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from unpaddedbase64 import decode_base64

from identity.errors import SetupError
from identity.signing import ALGORITHM, SEED_BYTES, SigningKey
from identity.sydent_import.rows import KnownPeer, Stated, StoredInvite

_MAGIC: Final = b"SQLite format 3\0"
_SCHEMA: Final = 5
CONFIG_NAME: Final = "sydent.conf"
_PEER_SECTION: Final = "peer."


@dataclass(frozen=True, slots=True)
class SydentConfig:
    """What of sydent.conf is taken over. `peer_urls`: those that it names, by peer."""

    server_name: str
    key: SigningKey = field(repr=False)
    database: Path
    peer_urls: Mapping[str, str]

    @classmethod
    def find(cls, path: Path) -> Self:
        """`path`: sydent.conf, or the database beside it. Raises: SetupError."""
        try:
            with path.open("rb") as file:
                is_database = file.read(len(_MAGIC)) == _MAGIC
            config = path.with_name(CONFIG_NAME) if is_database else path
            text = config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is no text"
            name = getattr(error, "filename", None) or path
            raise SetupError(f"{name}: {why}") from None
        read = cls.parse(text, config)
        return cls(read.server_name, read.key, path, read.peer_urls) if is_database else read

    @classmethod
    def parse(cls, text: str, path: Path) -> Self:
        """`path`: of the file, which others in it are relative to. Raises: SetupError."""
        # Its own texts hold percent signs that are no references.
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string(text)
            name = parser.get("general", "server.name", fallback="").strip()
            key = parser.get("crypto", "ed25519.signingkey", fallback="")
            database = parser.get("db", "db.file", fallback="").strip()
        except configparser.Error:
            raise SetupError(f"{path}: is no sydent.conf") from None
        if not name or not database:
            missing = "server.name" if not name else "db.file"
            raise SetupError(f"{path}: {missing} is missing")
        urls = {
            section.removeprefix(_PEER_SECTION): parser.get(section, "base_replication_url").strip()
            for section in parser.sections()
            if section.startswith(_PEER_SECTION)
            and parser.has_option(section, "base_replication_url")
        }
        return cls(name, _parse_key(key, path), path.parent / database, urls)


class Source:
    """The open database. Every method reads it from its beginning."""

    def __init__(self, connection: sqlite3.Connection, server_name: str) -> None:
        self._connection = connection
        self._server_name = server_name

    def count(self) -> int:
        """How many rows the iterators give in all."""
        return sum(
            self._one(f"SELECT count(*) FROM {table}")  # noqa: S608 - only names of tables
            for table in (
                "local_threepid_associations",
                "global_threepid_associations WHERE originServer <> :name",
                "accounts",
                "tokens",
                "accepted_terms_urls",
                "invite_tokens",
                "ephemeral_public_keys",
                "peers",
            )
        )

    def own(self) -> Iterator[Stated]:
        """What it stated itself, in order of id."""
        for row in self._rows(
            "SELECT l.id, l.medium, l.address, l.mxid, l.ts, l.notBefore, l.notAfter, g.sgAssoc "
            "FROM local_threepid_associations l LEFT JOIN global_threepid_associations g "
            "ON g.originServer = :name AND g.originId = l.id ORDER BY l.id"
        ):
            yield Stated(row[0], self._server_name, row[0], *row[1:])

    def last_own_id(self) -> int:
        """The highest id that it ever gave."""
        query = "SELECT max(seq) FROM sqlite_sequence WHERE name = 'local_threepid_associations'"
        return int(self._one(query) or 0)

    def foreign(self) -> Iterator[Stated]:
        """What it holds of others, in order of origin and id."""
        for row in self._rows(
            "SELECT id, originServer, originId, medium, address, mxid, ts, notBefore, notAfter, "
            "sgAssoc FROM global_threepid_associations WHERE originServer <> :name "
            "ORDER BY originServer, originId"
        ):
            yield Stated(*row)

    def accounts(self) -> Iterator[tuple[Any, Any]]:
        """(MXID, when it was made, in ms), oldest first."""
        yield from self._rows("SELECT user_id, created_ts FROM accounts ORDER BY created_ts")

    def tokens(self) -> Iterator[tuple[Any, Any]]:
        """(access token, MXID), oldest first; MXID None where there is no such account."""
        yield from self._rows(
            "SELECT t.token, a.user_id FROM tokens t LEFT JOIN accounts a "
            "ON a.user_id = t.user_id ORDER BY t.rowid"
        )

    def terms(self) -> Iterator[tuple[Any, Any]]:
        """(MXID, URL); MXID None where there is no such account."""
        yield from self._rows(
            "SELECT a.user_id, t.url FROM accepted_terms_urls t LEFT JOIN accounts a "
            "ON a.user_id = t.user_id ORDER BY t.rowid"
        )

    def invites(self) -> Iterator[StoredInvite]:
        """Oldest first. Nothing says which key belongs to which, but both rows are written for
        one request, and so have one number and one time."""
        for row in self._rows(
            "SELECT i.id, i.medium, i.address, i.room_id, i.sender, i.token, i.received_ts, "
            "i.sent_ts, e.public_key FROM invite_tokens i LEFT JOIN ephemeral_public_keys e "
            "ON e.id = i.id AND abs(e.persistence_ts - i.received_ts) <= 60 ORDER BY i.id"
        ):
            yield StoredInvite(*row)

    def ephemeral_keys(self) -> Iterator[tuple[Any, Any]]:
        """(public key, when it was made, in seconds), oldest first."""
        yield from self._rows(
            "SELECT public_key, persistence_ts FROM ephemeral_public_keys ORDER BY id"
        )

    def peers(self) -> Iterator[KnownPeer]:
        for row in self._rows(
            "SELECT id, name, port, lastSentVersion, active FROM peers ORDER BY id"
        ):
            query = "SELECT key FROM peer_pubkeys WHERE peername = :peer AND alg = :alg"
            keys = self._connection.execute(query, {"peer": row[1], "alg": ALGORITHM})
            number, name, port, last_sent, active = row
            yield KnownPeer(
                number, name, port, last_sent, bool(active), tuple(key for (key,) in keys)
            )

    def pepper(self) -> Any:
        """Text; None where it has none."""
        return self._one("SELECT max(lookup_pepper) FROM hashing_metadata")

    def _rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        yield from self._connection.execute(query, {"name": self._server_name})

    def _one(self, query: str) -> Any:
        return self._connection.execute(query, {"name": self._server_name}).fetchone()[0]


@contextmanager
def open_source(config: SydentConfig) -> Iterator[Source]:
    """Raises: SetupError where it is no database of a Sydent."""
    path = config.database
    if not path.exists():
        raise SetupError(f"{path}: does not exist")
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, isolation_level=None
    )
    try:
        connection.execute("BEGIN")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if "local_threepid_associations" not in tables:
            raise SetupError(f"{path}: is no database of a Sydent")
        if version != _SCHEMA:
            raise SetupError(
                f"{path}: has version {version} of Sydent's schema, and {_SCHEMA} is needed; "
                "start Sydent 2.6 with it once"
            )
        yield Source(connection, config.server_name)
    except sqlite3.DatabaseError as error:
        raise SetupError(f"{path}: cannot be read: {error}") from None
    finally:
        connection.close()


def _parse_key(text: str, path: Path) -> SigningKey:
    """`ed25519 <version> <seed>`. Raises: SetupError."""
    words = text.split()
    try:
        algorithm, version, seed = words
        decoded: bytes = decode_base64(seed)
        if algorithm == ALGORITHM and len(decoded) == SEED_BYTES and version.isalnum():
            return SigningKey.from_seed(f"{ALGORITHM}:{version}", decoded)
    except ValueError:
        pass
    raise SetupError(f"{path}: ed25519.signingkey is missing, or no key")
