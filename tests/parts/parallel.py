"""Many requests at once: real threads, each with a client of its own.

Servers over one database stand for processes: each has its own connections and locks.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flask.testing import FlaskClient
from parts.dns import FakeResolver
from parts.server import Server
from werkzeug.test import TestResponse

_THREADS = 16


def in_parallel(
    servers: Sequence[Server], count: int, send: Callable[[FlaskClient, int], TestResponse]
) -> list[TestResponse]:
    """The answers to `send(client, 0)` … `send(client, count - 1)`, spread over the servers."""

    def call(number: int) -> TestResponse:
        return send(servers[number % len(servers)].app.test_client(), number)

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(call, range(count)))


def second_server(
    make_server: Callable[..., Server],
    server: Server,
    *,
    resolver: FakeResolver | None = None,
    **settings: Any,
) -> Server:
    """Another server over the database and the keys of `server`."""
    config = server.config
    shared = {
        "DATABASE__URL": config.database_url,
        "KEYS__SIGNING_KEYS": str(config.signing_keys_path),
        "KEYS__STORAGE_KEYS": str(config.storage_keys_path),
    }
    return make_server({**shared, **settings}, sender=server.sender, resolver=resolver)
