"""Invitations, from the request of a homeserver to what it is told in the end.

invite(alice, "bob@example.com")
mail = mailed_invitation(server)
server.account("@bob:hs.test").bind("bob@example.com")
deliver(server)
assert [body["mxid"] for body in told(homeserver)] == ["@bob:hs.test"]
"""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from parts.dns import FakeResolver
from parts.homeserver import ONBIND, FakeHomeserver, ca_file
from parts.server import Account, Server
from signedjson.key import decode_verify_key_bytes
from signedjson.sign import verify_signed_json
from unpaddedbase64 import decode_base64
from werkzeug.test import TestResponse

from identity.federation.resolver import Service

BOB = "bob@example.com"
ROOM = "!room:hs.test"
OWN = "/_matrix/identity/unstable/org.identity/invites"

# With `lead`, homeservers on loopback are called as if they were anywhere.
REACHABLE = {
    "FEDERATION__ALLOW_PRIVATE_ADDRESSES": "true",
    "FEDERATION__CA_FILE": str(ca_file()),
    "FEDERATION__TIMEOUT": "5s",
}


def limits(**rates: str) -> dict[str, str]:
    """The settings that change these limits: `limits(invite_sender="3/h")`."""
    return {f"RATE_LIMITS__LIMITS__{name.upper()}": rate for name, rate in rates.items()}


def lead(resolver: FakeResolver, name: str, homeserver: FakeHomeserver) -> None:
    """Let a server name without a port lead to `homeserver`, by an SRV record."""
    resolver.host(name, "127.0.0.9")  # where nobody answers for its well-known
    resolver.host(f"target.{name}", "127.0.0.1")
    resolver.service(f"_matrix-fed._tcp.{name}", Service(10, 0, homeserver.port, f"target.{name}"))


def invitation(address: str = BOB, sender: str = "@alice:hs.test", **more: Any) -> dict[str, Any]:
    """The body of store-invite with what is required."""
    named = {"medium": "email", "address": address, "room_id": ROOM, "sender": sender}
    return {**named, **more}


def invite(account: Account, address: str = BOB, **more: Any) -> TestResponse:
    return account.post("/store-invite", json=invitation(address, account.user_id, **more))


@dataclass(frozen=True)
class MailedInvitation:
    """What the mail carries. `linked`: the parameters of the link into the web client."""

    recipient: str
    link: str
    refuse_link: str
    room_id: str
    linked: dict[str, str]

    @property
    def sign_url(self) -> str:
        return self.linked["signurl"]

    @property
    def token(self) -> str:
        return parse_qs(urlsplit(self.sign_url).query)["token"][0]

    @property
    def private_key(self) -> str:
        return parse_qs(urlsplit(self.sign_url).query)["private_key"][0]


def mailed_invitation(server: Server, index: int = -1) -> MailedInvitation:
    recipient, message = server.sender.mails[index]
    lines = message.get_body(("plain",)).get_content().splitlines()
    link, refuse_link = (line for line in lines if line.startswith(("https://", "http://")))
    room, _, query = urlsplit(link).fragment.partition("?")
    values = parse_qs(query, keep_blank_values=True, strict_parsing=True)
    linked = {name: text for name, (text,) in values.items()}
    room_id = unquote(room.removeprefix("/room/"))
    return MailedInvitation(recipient, link, refuse_link, room_id, linked)


def path_of(url: str) -> str:
    """What the test client takes of one of our own URLs."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def bind_anyone(server: Server, address: str, mxid: str, client_secret: str = "") -> Any:
    """Validate and bind over the v2 API, as an account of that MXID."""
    response = server.account(mxid).bind(address, client_secret or "secret")
    assert response.status_code == 200, response.json
    return response.json


def deliver(server: Server) -> None:
    """One round of the courier, in this thread: what is due now is tried once."""
    notifications = server.services.notifications
    for leased in notifications.lease_due(100).values():
        notifications.deliver(leased, server.clock.now_ms())


def told(homeserver: FakeHomeserver) -> list[dict[str, Any]]:
    """The bodies of all onbind requests."""
    requests = [request for request in homeserver.requests if request.path == ONBIND]
    return [json.loads(request.body) for request in requests]


def is_signed(value: dict[str, Any], public_key: str, key_id: str, name: str = "localhost") -> bool:
    """Whether the signature under that key id is good; it fails loudly if it is not."""
    only = {**value, "signatures": {name: {key_id: value["signatures"][name][key_id]}}}
    key = decode_verify_key_bytes(key_id, decode_base64(public_key))
    verify_signed_json(only, name, key)
    return True


def is_valid(server: Server, key: dict[str, str]) -> bool:
    """What the validity URL of one of the two public keys of an invitation says."""
    answer = server.client.get(
        path_of(key["key_validity_url"]), query_string={"public_key": key["public_key"]}
    )
    assert answer.status_code == 200
    assert set(answer.json) == {"valid"}
    return answer.json["valid"]
