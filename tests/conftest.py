"""Fixtures that every folder of tests shares."""

import shutil
import socket
from pathlib import Path

import pytest
from parts.clock import FakeClock
from parts.databases import absent, find_postgres
from parts.redis_server import OwnRedis
from parts.server import Server
from parts.sms_gateway import FakeGateway
from parts.twilio import FakeTwilio

from identity import schema
from identity.config import load
from identity.keys.service import create_key_files

_LOOPBACK = ("127.", "::1", "localhost")


def pytest_addoption(parser):
    parser.addoption(
        "--requirements", help="run only the tests that are marked with one of these, by commas"
    )


def pytest_collection_modifyitems(config, items):
    wanted = set(filter(None, (config.getoption("--requirements") or "").split(",")))
    if wanted:
        chosen = [
            item
            for item in items
            if any(wanted & set(mark.args) for mark in item.iter_markers("requirement"))
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.fixture(autouse=True, scope="session")
def _only_loopback():
    """Nothing that a test starts in this process reaches beyond this machine."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(
            _LOOPBACK
        ):
            raise PermissionError(f"a test tried to reach {address[0]}")
        return connect(self, address)

    socket.socket.connect = guarded
    yield
    socket.socket.connect = connect


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    server = find_postgres(tmp_path_factory.mktemp("postgres"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    schema.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request):
    return request.param


@pytest.fixture
def make_database_url(request, database_kind, tmp_path):
    """Makes migrated databases, and drops them after the test."""
    made = []

    def make() -> str:
        if database_kind == "sqlite":
            path = tmp_path / f"database{len(made)}" / "identity.db"
            path.parent.mkdir()
            shutil.copy(request.getfixturevalue("sqlite_template"), path)
            made.append(f"sqlite:///{path}")
        else:
            made.append(request.getfixturevalue("postgres").create())
        return made[-1]

    yield make
    if database_kind == "postgresql":
        for url in made:
            request.getfixturevalue("postgres").drop(url)


@pytest.fixture
def make_database(request, database_kind):
    """Settings that name a new database, which holds nothing, not even tables."""
    urls = []

    def make() -> dict[str, str]:
        if database_kind == "sqlite":
            return {}
        urls.append(request.getfixturevalue("postgres").create(migrated=False))
        return {"DATABASE__URL": urls[-1]}

    yield make
    for url in urls:
        request.getfixturevalue("postgres").drop(url)


@pytest.fixture
def make_server(make_database_url, tmp_path, clock):
    """Makes servers; a setting is `{"SECTION__KEY": "value"}`, as in the environment."""
    made = []

    def make(settings=None, **parts) -> Server:
        folder = tmp_path / f"server{len(made)}"
        settings = {
            "SERVER__DATA_DIR": str(folder),
            "DATABASE__URL": make_database_url(),
            **(settings or {}),
        }
        config = load(None, {f"IDENTITY_{name}": value for name, value in settings.items()})
        create_key_files(config.signing_keys_path, config.storage_keys_path)
        made.append(Server(config, parts.pop("clock", clock), **parts))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def server(make_server) -> Server:
    return make_server()


@pytest.fixture
def alice(server):
    return server.account("@alice:hs.test")


@pytest.fixture
def bob(server):
    return server.account("@bob:hs.test")


@pytest.fixture
def twilio():
    """For a server: `make_server(twilio.settings())`."""
    with FakeTwilio() as running:
        yield running


@pytest.fixture
def sms_gateway():
    """Likewise: `make_server(sms_gateway.settings())`."""
    with FakeGateway() as running:
        yield running


@pytest.fixture
def own_redis(tmp_path):
    """A redis-server that the test may kill."""
    if not shutil.which("redis-server"):
        absent("redis-server")
    folder = tmp_path / "redis"
    folder.mkdir()
    server = OwnRedis(folder)
    server.start()
    yield server
    server.kill()
