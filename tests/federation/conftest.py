"""A homeserver, the names and the network that lead to it, and clients that call it.

By default the public address of `host` is PUBLIC, where the homeserver answers on 443 and
8448; so the default policy is in force, and nothing leaves this machine.
"""

import os
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from parts.clock import FakeClock
from parts.dns import FakeResolver
from parts.homeserver import FakeHomeserver
from parts.network import FakeNetwork

from identity.config import Federation
from identity.federation.homeserver import HomeserverClient
from identity.federation.transport import Transport

PUBLIC = "1.2.3.4"


@pytest.fixture(autouse=True)
def _no_system_store(monkeypatch):
    """Trust comes from what a test names, not from this machine; and clients are made faster."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)


@pytest.fixture
def homeserver() -> Iterator[FakeHomeserver]:
    with FakeHomeserver() as running:
        running.openid_users["token"] = "@alice:hs.test"
        yield running


@pytest.fixture
def resolver() -> FakeResolver:
    tables = FakeResolver()
    tables.host("hs.test", PUBLIC)
    return tables


@pytest.fixture
def network(homeserver: FakeHomeserver) -> FakeNetwork:
    wires = FakeNetwork()
    for port in (443, 8448):
        wires.routes[PUBLIC, port] = ("127.0.0.1", homeserver.port)
    return wires


@pytest.fixture
def settings(homeserver: FakeHomeserver) -> Callable[..., Federation]:
    def make(**changes: Any) -> Federation:
        return Federation.model_validate({"ca_file": homeserver.ca_file, "timeout": "5s"} | changes)

    return make


@pytest.fixture
def make_transport(
    settings: Callable[..., Federation], resolver: FakeResolver, network: FakeNetwork
) -> Callable[..., Transport]:
    def make(**changes: Any) -> Transport:
        return Transport(settings(**changes), resolver, network)

    return make


@pytest.fixture
def make_client(
    settings: Callable[..., Federation],
    clock: FakeClock,
    resolver: FakeResolver,
    network: FakeNetwork,
) -> Callable[..., HomeserverClient]:
    def make(threads: int = 8, **changes: Any) -> HomeserverClient:
        return HomeserverClient(
            settings(**changes), threads, clock, resolver, connect=network, random=Random(1)
        )

    return make
