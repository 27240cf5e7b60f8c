"""People with phones: the messages they get, and what they do with them.

answer = request_code(alice, "07700 900001", "GB")
submit(alice, texted(server))
"""

import re
from collections.abc import Mapping
from typing import Any

from parts.server import V1, Account, Server
from parts.validation import token_values
from werkzeug.test import TestResponse

from identity.invites.invite import SHORT_PATH

NUMBER = "447700900001"  # of those that Ofcom keeps free for fiction
CONFIRM = "/_matrix/identity/v2/validate/msisdn/confirm"
SUBMIT = "/_matrix/identity/v2/validate/msisdn/submitToken"
CODE = re.compile(r"(?m)^@(\S+) #([0-9]{6})\Z", re.ASCII)
LINK = re.compile(rf"https?://\S+{SHORT_PATH}/([0-9A-Za-z_-]+)", re.ASCII)


def request_code(
    account: Account,
    number: str = f"+{NUMBER}",
    country: str = "",
    client_secret: str = "secret",
    send_attempt: Any = 1,
    **more: Any,
) -> TestResponse:
    body = {
        "phone_number": number,
        "country": country,
        "client_secret": client_secret,
        "send_attempt": send_attempt,
    }
    return account.post("/validate/msisdn/requestToken", json={**body, **more})


def code_in(text: str) -> str:
    """The code of a message, from the line that phones read it from."""
    found = CODE.search(text)
    assert found is not None
    return found[2]


def code_sent(server: Server, index: int = -1) -> str:
    _, text = server.text_sender.texts[index]
    return code_in(text)


def wrong(code: str) -> str:
    """Another code."""
    return f"{(int(code) + 1) % 10**6:06}"


def submit(account: Account, values: Mapping[str, str], **changed: str) -> TestResponse:
    return account.post("/validate/msisdn/submitToken", json=token_values(values, **changed))


def validate(
    account: Account, number: str = f"+{NUMBER}", client_secret: str = "secret"
) -> dict[str, str]:
    """A validated session: `sid` and `client_secret`."""
    answer = request_code(account, number, client_secret=client_secret)
    assert answer.status_code == 200, answer.json
    session = {"sid": answer.json["sid"], "client_secret": client_secret}
    code = code_sent(account.server)
    assert submit(account, {**session, "token": code}).json == {"success": True}
    return session


def bind_number(
    account: Account, number: str = f"+{NUMBER}", client_secret: str = "secret"
) -> TestResponse:
    session = validate(account, number, client_secret)
    return account.post("/3pid/bind", json={**session, "mxid": account.user_id})


def legacy(server: Server, path: str, values: Mapping[str, Any], **arguments: Any) -> TestResponse:
    """A call of the v1 API by nobody known, as Synapse makes it."""
    return server.client.post(f"{V1}{path}", json=values, **arguments)
