"""The storages of rate limits, all real: SQLite, PostgreSQL and Redis."""

import os
import secrets
import socket

import psycopg
import pytest
import redis
from limit_places import KEYS, FakeClock, Place
from psycopg import sql

from identity.limits import models

POSTGRES_URL = os.environ.get("IDENTITY_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432")
REDIS_URL = os.environ.get("IDENTITY_TEST_REDIS", "redis://127.0.0.1:6379")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def keys():
    return KEYS


def absent(what, reason):
    """A machine may lack a service; CI may not."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what} is not there: {reason}")


@pytest.fixture(scope="session")
def postgres():
    """The URL of a database of our own."""
    name = f"identity_limits_{secrets.token_hex(6)}"
    try:
        server = psycopg.connect(POSTGRES_URL, autocommit=True, connect_timeout=3)
    except psycopg.OperationalError:
        absent("PostgreSQL", POSTGRES_URL)
    with server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield f"{POSTGRES_URL}/{name}"
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def place(request, tmp_path):
    if request.param == "sqlite":
        place = Place("sqlite", f"sqlite:///{tmp_path}/limits.db")
        place.open().create_table()
        yield place
    elif request.param == "postgresql":
        place = Place("postgresql", request.getfixturevalue("postgres"))
        engine = place.database().engine
        models.metadata.create_all(engine)
        yield place
        models.metadata.drop_all(engine)
    else:
        place = Place("redis", REDIS_URL, f"identity-test:{secrets.token_hex(6)}:")
        with redis.Redis.from_url(REDIS_URL) as client:
            try:
                client.ping()
            except redis.ConnectionError:
                absent("Redis", REDIS_URL)
            yield place
            for key in client.scan_iter(match=place.prefix + "*"):
                client.delete(key)
    place.close()


@pytest.fixture
def open_unwritable():
    """Opens a storage, by its kind, that can be neither read nor written."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    urls = {
        "sqlite": "sqlite:////nonexistent/limits.db",
        "postgresql": f"postgresql://postgres@127.0.0.1:{port}/none",
        "redis": f"redis://127.0.0.1:{port}",
    }
    places = []

    def open_storage(kind):
        places.append(Place(kind, urls[kind]))
        return places[-1].open()

    yield open_storage
    for place in places:
        place.close()


@pytest.fixture
def storage(place):
    return place.open()
