"""A homeserver on loopback, called `hs.test`, and the names that lead to it."""

from collections.abc import Iterator

import pytest
from parts.dns import FakeResolver
from parts.homeserver import FakeHomeserver
from parts.invitations import lead


@pytest.fixture
def resolver() -> FakeResolver:
    return FakeResolver()


@pytest.fixture
def homeserver(resolver: FakeResolver) -> Iterator[FakeHomeserver]:
    with FakeHomeserver() as running:
        lead(resolver, "hs.test", running)
        yield running
