"""Calls about one validation session, by an account or by whoever has the mail.

`mailed` and `session` hold at least `sid` and `client_secret`, and `token` where it is needed:
what `Server.mailed` and `Account.validate` return.
"""

from collections.abc import Mapping
from typing import Any

import pytest
from parts.server import V2, Account, Server
from werkzeug.test import TestResponse

from identity.accounts.caller import Caller
from identity.threepid import ThreePid
from identity.validation.service import TokenRequest

CONFIRM = V2 + "/validate/email/confirm"
SUBMIT = V2 + "/validate/email/submitToken"
UNLIMITED = {"RATE_LIMITS__ENABLED": "false"}

# For what no database can treat differently.
sqlite_only = pytest.mark.parametrize("database_kind", ["sqlite"])


class Crash(BaseException):
    """The process is gone: nothing that it would have done afterwards happens."""


def refused(response: TestResponse, status: int, errcode: str) -> bool:
    """Whether it is the standard error body, with this status and errcode; fails otherwise."""
    assert (response.status_code, response.json["errcode"]) == (status, errcode), response.json
    assert isinstance(response.json["error"], str)
    assert response.mimetype == "application/json"
    return True


def session_without_owner(server: Server, email: str) -> dict[str, str]:
    """A session as the legacy API makes it: nobody says who asks. What was mailed for it."""
    request = TokenRequest(ThreePid.email(email), "no-owner", 1, next_link=None, brand=None)
    server.services.validation.request_token(Caller(None, "192.0.2.1"), request)
    return server.mailed()


def token_values(mailed: Mapping[str, str], **changed: str) -> dict[str, str]:
    """What submitToken takes."""
    return {name: mailed[name] for name in ("sid", "client_secret", "token")} | changed


def submit(account: Account, mailed: Mapping[str, str], **changed: str) -> TestResponse:
    return account.submit_token(**token_values(mailed, **changed))


def open_link(server: Server, mailed: Mapping[str, str], **changed: str) -> TestResponse:
    """What a browser gets for the link of a mail that has no page with a button."""
    return server.client.get(SUBMIT, query_string=token_values(mailed, **changed))


def press_button(server: Server, mailed: Mapping[str, str], **changed: str) -> TestResponse:
    return server.client.post(CONFIRM, data=token_values(mailed, **changed))


def get_validated(account: Account, session: Mapping[str, str]) -> TestResponse:
    query = {name: session[name] for name in ("sid", "client_secret")}
    return account.get("/3pid/getValidated3pid", query_string=query)


def bind(account: Account, session: Mapping[str, str], mxid: Any = None) -> TestResponse:
    """To the account's own MXID, unless another one is given."""
    body = {name: session[name] for name in ("sid", "client_secret")}
    return account.post("/3pid/bind", json={**body, "mxid": mxid or account.user_id})
