"""A database that is down, read-only or full: what still works, and what is said meanwhile.

Decision 18: 503 `M_UNKNOWN` with Retry-After; 500 is for faults of our own.
"""

from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from parts.routes import routes_of
from parts.server import V2
from parts.validation import sqlite_only
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

WITHOUT_DATABASE = [V2, "/_matrix/identity/versions", f"{V2}/terms", "/health"]


class Outages:
    """Faults of the database behind a server; each ends with its block."""

    def __init__(self, server, admin_url):
        self._server = server
        self._admin_url = admin_url

    @contextmanager
    def down(self):
        if self._admin_url is None:
            folder = Path(self._server.database.engine.url.database).parent
            away = folder.with_name("away")
            self._server.services.close()
            folder.rename(away)
            yield
            away.rename(folder)
        else:
            self._alter("ALLOW_CONNECTIONS false")
            yield
            self._alter("ALLOW_CONNECTIONS true")

    @contextmanager
    def read_only(self):
        if self._admin_url is None:
            with self._pragma("query_only = ON"):
                yield
        else:
            self._alter("SET default_transaction_read_only = on")
            yield
            self._alter("RESET default_transaction_read_only")

    @contextmanager
    def full(self):
        """Only SQLite can be told to pretend."""
        # As few pages as it has: not one more.
        with self._pragma("max_page_count = 1"):
            yield

    @contextmanager
    def _pragma(self, pragma):
        def configure(connection, _record):
            connection.execute(f"PRAGMA {pragma}")

        engine = self._server.database.engine
        sa.event.listen(engine, "connect", configure)
        engine.dispose()
        yield
        sa.event.remove(engine, "connect", configure)
        engine.dispose()

    def _alter(self, change):
        name = conninfo_to_dict(self._server.config.database_url)["dbname"]
        with psycopg.connect(self._admin_url, autocommit=True) as admin:
            admin.execute(
                sql.SQL("ALTER DATABASE {} ").format(sql.Identifier(name)) + sql.SQL(change)
            )
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            )


@pytest.fixture
def server(make_server):
    limits = ("EMAIL_ACCOUNT", "EMAIL_IP", "EMAIL_DOMAIN")
    return make_server({f"RATE_LIMITS__LIMITS__{name}": "1000/h" for name in limits})


@pytest.fixture
def outages(server, database_kind, request):
    admin_url = None
    if database_kind == "postgresql":
        admin_url = request.getfixturevalue("postgres").url
    return Outages(server, admin_url)


def is_unavailable(answer):
    assert answer.status_code == 503, answer.get_data(as_text=True)
    assert int(answer.headers["Retry-After"]) >= 1
    if answer.mimetype == "application/json":
        assert answer.json["errcode"] == "M_UNKNOWN"
        assert set(answer.json) == {"errcode", "error"}
    return True


@pytest.mark.requirement("GEN-06", "GEN-12")
def test_database_that_is_down_is_said_so_on_every_route_and_heals_by_itself(
    server, alice, outages
):
    alice.bind("a@example.com")
    link = alice.request_token("b@example.com").json["sid"] and server.mailed()["link"]
    validated = alice.validate("c@example.com")
    with outages.down():
        unavailable = 0
        for route in routes_of(server.app):
            given = dict.fromkeys(route.names, "x")
            answer = route.send(alice.token, query_string=given, json=given)
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            if route.path == "/ready":
                assert (answer.status_code, answer.json["reasons"]) == (503, ["database"])
            elif answer.status_code >= 500:
                assert is_unavailable(answer), route
                unavailable += 1
        assert unavailable >= 10
        for path in WITHOUT_DATABASE:
            assert server.client.get(path).status_code == 200, path
        assert is_unavailable(alice.post("/3pid/bind", json={**validated, "mxid": alice.user_id}))
        page = server.client.get(link)
        assert page.mimetype == "text/html"
        assert is_unavailable(page)
        body = {"access_token": "openid", "matrix_server_name": "hs.test"}
        assert is_unavailable(server.client.post(f"{V2}/account/register", json=body))
    assert server.found("a@example.com") == alice.user_id
    assert server.client.get("/ready").status_code == 200
    assert server.client.get(link).status_code == 200
    assert alice.post("/3pid/bind", json={**validated, "mxid": alice.user_id}).status_code == 200
    assert server.found("c@example.com") == alice.user_id


def test_database_that_takes_no_writes_still_answers_lookups(server, alice, clock, outages):
    alice.bind("a@example.com")
    validated = alice.validate("b@example.com")
    key = alice.get("/pubkey/ed25519:0").json["public_key"]
    mails = len(server.sender.mails)
    clock.advance(hours=2)  # so that the use of the token would be noted
    with outages.read_only():
        pepper = alice.get("/hash_details").json["lookup_pepper"]
        asked = server.hash_of("a@example.com")
        body = {"algorithm": "sha256", "pepper": pepper, "addresses": [asked]}
        assert alice.post("/lookup", json=body).json == {"mappings": {asked: alice.user_id}}
        assert alice.get("/pubkey/isvalid", query_string={"public_key": key}).json["valid"]
        assert is_unavailable(alice.request_token("c@example.com"))
        assert is_unavailable(alice.post("/3pid/bind", json={**validated, "mxid": alice.user_id}))
        assert is_unavailable(alice.post("/account/logout"))
    # What was refused was not done.
    assert len(server.sender.mails) == mails
    assert server.found("b@example.com") is None
    assert alice.post("/3pid/bind", json={**validated, "mxid": alice.user_id}).status_code == 200


@sqlite_only
def test_full_database_refuses_what_it_cannot_store_and_heals_by_itself(server, alice, outages):
    alice.bind("a@example.com")
    with outages.full():
        # The last pages have room for some.
        answers = [alice.request_token(f"{number}@example.com") for number in range(100)]
        turned_away = [answer for answer in answers if answer.status_code != 200]
        assert turned_away
        for answer in turned_away:
            assert is_unavailable(answer)
        assert server.found("a@example.com") == alice.user_id
    stored = {row["sid"] for row in server.rows("validation_sessions")}
    assert {answer.json["sid"] for answer in answers if answer.status_code == 200} <= stored
    assert server.account("@bob:hs.test").request_token("b@example.com").status_code == 200


def test_mail_that_nobody_can_send_now_costs_no_transaction(server, alice):
    """Those who wait for a mail server must not hold up the database for the others."""
    server.sender.busy = True
    answer = alice.request_token("carol@example.org")
    assert (answer.status_code, answer.json["errcode"]) == (400, "M_EMAIL_SEND_ERROR")
    server.sender.busy = False
    assert server.rows("validation_sessions") == []
    # And no permit: five mails an hour still go out.
    sent = [alice.request_token("carol@example.org", f"s{n}").status_code for n in range(6)]
    assert sent == [200] * 5 + [429]
