"""Databases of a test's own: a file, or a database on a PostgreSQL that is there or is started.

A migrated template is made once a session and copied for each test.
"""

import os
import secrets
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from identity import schema

DEFAULT_POSTGRES = "postgresql://postgres@127.0.0.1:5432/postgres"


class Postgres:
    """A server on which databases are created and dropped; no other database is touched."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = urlunsplit(
            parts._replace(path=parts.path if len(parts.path) > 1 else "/postgres")
        )
        self._template: str | None = None

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=3).close()
        except psycopg.OperationalError:
            return False
        return True

    def create(self, *, migrated: bool = True) -> str:
        """The URL of a new database."""
        name = f"identity_test_{secrets.token_hex(8)}"
        if migrated and self._template is None:
            template = self.create(migrated=False)
            schema.upgrade(template)
            self._template = _name(template)
        query = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if migrated:
            query += sql.SQL(" TEMPLATE {}").format(sql.Identifier(self._template))
        self._execute(query)
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def drop(self, url: str) -> None:
        query = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        self._execute(query.format(sql.Identifier(_name(url))))

    def close(self) -> None:
        if self._template:
            self.drop(f"postgresql:///{self._template}")

    def _execute(self, query: sql.Composable) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(query)


class PrivatePostgres(Postgres):
    """A server of our own, from the installed binaries, in a folder."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        super().__init__(f"postgresql://postgres@127.0.0.1:{port}/postgres")
        self._ctl = [str(binaries / "pg_ctl"), "-D", str(folder / "data"), "-w"]
        # The server refuses to run as root; a test run in a container often is.
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self._as_user:
            shutil.chown(folder, "postgres")
        initdb = [str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "postgres"]
        self._run([*initdb, "--auth=trust", "--no-sync"])
        options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
        self._run([*self._ctl, "-o", options, "-l", str(folder / "log"), "start"])

    def close(self) -> None:
        self._run([*self._ctl, "-m", "immediate", "stop"])

    def _run(self, command: list[str]) -> None:
        subprocess.run([*self._as_user, *command], check=True, stdout=subprocess.DEVNULL)


def absent(what: str) -> None:
    """A developer's machine may lack a service; CI may not."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what} is not there")


def find_postgres(folder: Path) -> Postgres:
    """The one that $IDENTITY_TEST_POSTGRES names, else one on the default port, else our own."""
    if url := os.environ.get("IDENTITY_TEST_POSTGRES"):
        return Postgres(url)
    local = Postgres(DEFAULT_POSTGRES)
    if local.answers():
        return local
    for binaries in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        return PrivatePostgres(binaries, folder)
    absent("PostgreSQL")
    raise AssertionError


def _name(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")
