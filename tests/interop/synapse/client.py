"""An ordinary Matrix client, as far as these flows need one: HTTP calls, and reading mail."""

import base64
import hashlib
import json
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import urllib3
from parts.mailserver import Mail, MailServer

PASSWORD = "correct horse battery staple"
PATIENCE_S = 60
CLIENT = "/_matrix/client/v3"
IDENTITY = "/_matrix/identity/v2"


class Refused(Exception):
    """An answer other than 2xx."""

    def __init__(self, what: str, status: int, body: Any) -> None:
        super().__init__(f"{what} answered {status} {body}")
        self.status = status
        self.body = body


class Http:
    """Calls over TLS that trust `ca_file` alone."""

    def __init__(self, ca_file: Path) -> None:
        self._pool = urllib3.PoolManager(ca_certs=str(ca_file), retries=False, timeout=PATIENCE_S)

    def call(self, method: str, url: str, token: str | None = None, **arguments: Any) -> Any:
        """The JSON of the answer, or its text if it is none. Raises: Refused."""
        # A connection for each call, so that none outlives a server that is restarted.
        headers = {"Connection": "close"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        response = self._pool.request(method, url, headers=headers, **arguments)
        text = response.data.decode()
        is_json = response.headers.get("Content-Type", "").startswith("application/json")
        body = json.loads(text) if is_json else text
        if not 200 <= response.status < 300:
            raise Refused(f"{method} {urlsplit(url).path}", response.status, body)
        return body


@dataclass(frozen=True)
class Session:
    """A validated session at the identity server."""

    sid: str
    client_secret: str


@dataclass(frozen=True)
class World:
    """The servers, as a client knows them. `identity_server` is host and port."""

    http: Http
    homeserver_url: str
    identity_server: str
    mail: MailServer

    @property
    def identity_url(self) -> str:
        return f"https://{self.identity_server}"

    def mails_to(self, address: str) -> list[Mail]:
        return [mail for mail in self.mail.mails if address in mail.rcpt_tos]

    def wait_for_mail(self, address: str, count: int = 1) -> Mail:
        """The last of at least `count` mails to `address`."""
        self.mail.wait_for(lambda: len(self.mails_to(address)) >= count, PATIENCE_S)
        return self.mails_to(address)[-1]


def link_in(mail: Mail) -> str:
    """The first one: what the recipient is asked to open."""
    return re.search(r"https://\S+", mail.text).group()


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


class User:
    """Somebody with an account at Synapse, which is made here."""

    def __init__(self, world: World, localpart: str) -> None:
        self._world = world
        made = world.http.call(
            "POST",
            f"{world.homeserver_url}{CLIENT}/register",
            json={
                "username": localpart,
                "password": PASSWORD,
                "auth": {"type": "m.login.dummy"},
            },
        )
        self.user_id: str = made["user_id"]
        self._token: str = made["access_token"]
        self.identity_token: str | None = None
        self._synced: str | None = None
        self._invited: set[str] = set()

    # At the homeserver.

    def homeserver(self, method: str, path: str, **arguments: Any) -> Any:
        url = f"{self._world.homeserver_url}{CLIENT}{path}"
        return self._world.http.call(method, url, self._token, **arguments)

    def with_password(self, path: str, body: dict[str, Any]) -> Any:
        """POST what needs the password once more."""
        try:
            return self.homeserver("POST", path, json=body)
        except Refused as asked:
            if asked.status != 401:
                raise
            session = asked.body["session"]
        auth = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.user_id},
            "password": PASSWORD,
            "session": session,
        }
        return self.homeserver("POST", path, json={**body, "auth": auth})

    def add_email(self, address: str) -> None:
        """To the account, by a mail that Synapse sends itself."""
        secret, before = uuid.uuid4().hex, len(self._world.mails_to(address))
        asked = {"client_secret": secret, "email": address, "send_attempt": 1}
        sid = self.homeserver("POST", "/account/3pid/email/requestToken", json=asked)["sid"]
        self._world.http.call("GET", link_in(self._world.wait_for_mail(address, before + 1)))
        self.with_password("/account/3pid/add", {"client_secret": secret, "sid": sid})

    def added(self) -> list[str]:
        threepids = self.homeserver("GET", "/account/3pid")["threepids"]
        return [threepid["address"] for threepid in threepids]

    def bind(self, session: Session) -> None:
        """Through Synapse."""
        self.homeserver(
            "POST",
            "/account/3pid/bind",
            json={
                "sid": session.sid,
                "client_secret": session.client_secret,
                "id_server": self._world.identity_server,
                "id_access_token": self.identity_token,
            },
        )

    def unbind(self, address: str, path: str = "/account/3pid/unbind") -> str:
        """Through Synapse; what it says of the outcome."""
        threepid = {"medium": "email", "address": address}
        body = {**threepid, "id_server": self._world.identity_server}
        return self.homeserver("POST", path, json=body)["id_server_unbind_result"]

    def create_room(self, name: str, **more: Any) -> str:
        """One that only those who are invited can join."""
        body = {"name": name, "preset": "private_chat", **more}
        return self.homeserver("POST", "/createRoom", json=body)["room_id"]

    def email_invite(self, address: str) -> dict[str, Any]:
        return {
            "medium": "email",
            "address": address,
            "id_server": self._world.identity_server,
            "id_access_token": self.identity_token,
        }

    def invite_email(self, room: str, address: str) -> None:
        self.homeserver("POST", f"/rooms/{quote(room)}/invite", json=self.email_invite(address))

    def set_display_name(self, name: str) -> None:
        path = f"/profile/{quote(self.user_id)}/displayname"
        self.homeserver("PUT", path, json={"displayname": name})

    def set_state(self, room: str, kind: str, key: str, content: dict[str, Any]) -> None:
        path = f"/rooms/{quote(room)}/state/{kind}/{quote(key, safe='')}"
        self.homeserver("PUT", path, json=content)

    def state(self, room: str, kind: str) -> dict[str, Any]:
        """State key to content of the room's state events of one kind."""
        events = self.homeserver("GET", f"/rooms/{quote(room)}/state")
        return {event["state_key"]: event["content"] for event in events if event["type"] == kind}

    def is_invited(self, room: str) -> bool:
        """By what the homeserver tells clients; it waits a second for news."""
        since = f"&since={quote(self._synced)}" if self._synced else ""
        news = self.homeserver("GET", f"/sync?timeout=1000{since}")
        self._synced = news["next_batch"]
        rooms = news.get("rooms", {})
        self._invited |= rooms.get("invite", {}).keys()
        self._invited -= rooms.get("join", {}).keys() | rooms.get("leave", {}).keys()
        return room in self._invited

    def join(self, room: str, third_party_signed: dict[str, Any] | None = None) -> None:
        body = {} if third_party_signed is None else {"third_party_signed": third_party_signed}
        self.homeserver("POST", f"/join/{quote(room)}", json=body)

    def joined(self) -> list[str]:
        return self.homeserver("GET", "/joined_rooms")["joined_rooms"]

    # At the identity server.

    def identity(self, method: str, path: str, **arguments: Any) -> Any:
        url = f"{self._world.identity_url}{IDENTITY}{path}"
        return self._world.http.call(method, url, self.identity_token, **arguments)

    def register_at_identity_server(self) -> None:
        """By an OpenID token."""
        path = f"/user/{quote(self.user_id)}/openid/request_token"
        openid = self.homeserver("POST", path, json={})
        self.identity_token = self.identity("POST", "/account/register", json=openid)["token"]

    def accept_terms(self) -> None:
        policies = self.identity("GET", "/terms")["policies"].values()
        accepted = [policy["en"]["url"] for policy in policies]
        self.identity("POST", "/terms", json={"user_accepts": accepted})

    def validate(self, address: str) -> Session:
        """Read the mail, open its link, press the button."""
        secret, before = uuid.uuid4().hex, len(self._world.mails_to(address))
        asked = {"client_secret": secret, "email": address, "send_attempt": 1}
        sid = self.identity("POST", "/validate/email/requestToken", json=asked)["sid"]
        link = link_in(self._world.wait_for_mail(address, before + 1))
        assert 'method="post"' in self._world.http.call("GET", link)
        form = {"fields": query_of(link), "encode_multipart": False}
        self._world.http.call("POST", link.partition("?")[0], **form)
        validated = self.identity("GET", f"/3pid/getValidated3pid?sid={sid}&client_secret={secret}")
        assert validated["address"] == address, validated
        return Session(sid, secret)

    def find(self, address: str) -> str | None:
        """Who the address belongs to, asked by its hash."""
        pepper = self.identity("GET", "/hash_details")["lookup_pepper"]
        digest = hashlib.sha256(f"{address} email {pepper}".encode()).digest()
        hashed = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        asked = {"algorithm": "sha256", "pepper": pepper, "addresses": [hashed]}
        return self.identity("POST", "/lookup", json=asked)["mappings"].get(hashed)
