"""The whole server in this process, over a database of its own, with a clock to advance.

    server = make_server({"LOOKUP__ALGORITHMS": '["sha256", "none"]'})
    alice = server.account("@alice:hs.test")
    alice.bind("alice@example.com")

`client` is Flask's test client; tests of sockets and processes start `identity serve` instead.
"""

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import sqlalchemy as sa
from parts.clock import FakeClock
from parts.sender import FakeSender, FakeTextSender
from werkzeug.test import TestResponse

from identity.app import V1, V2, create_app
from identity.config import Config
from identity.lookup.hashing import encode_hash, lookup_hash
from identity.mxid import UserId
from identity.opening import open_database
from identity.services import assemble
from identity.tables import metadata
from identity.threepid import ThreePid


class Server:
    def __init__(self, config: Config, clock: FakeClock, **parts: Any) -> None:
        self.config = config
        self.clock = clock
        self.sender = parts.pop("sender", None) or FakeSender()
        self.database = open_database(config, clock, migrate=False).database
        self.text_sender = parts.pop("text_sender", None) or FakeTextSender()
        self.services = assemble(
            config,
            self.database,
            clock,
            sender=self.sender,
            text_sender=self.text_sender,
            **parts,
        )
        self.app = create_app(self.services)
        self.client = self.app.test_client()

    def close(self) -> None:
        self.services.close()

    def account(self, user_id: str) -> "Account":
        return Account(self, user_id)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """What is stored, unsealed."""
        query = sa.select(metadata.tables[table])
        return self.database.read(lambda tx: [dict(row._mapping) for row in tx.execute(query)])

    def mailed(self, index: int = -1) -> dict[str, str]:
        """`sid`, `client_secret` and `token` from the link of a mail, and the `link`."""
        _, message = self.sender.mails[index]
        text = message.get_body(("plain",)).get_content()
        link = re.search(r"https?://\S+", text).group()
        query = {name: values[0] for name, values in parse_qs(urlsplit(link).query).items()}
        return {**query, "link": link}

    def hash_of(self, address: str, medium: str = "email") -> str:
        """By the current pepper."""
        pepper, _ = self.services.lookups.hash_details()
        return encode_hash(lookup_hash(address, medium, pepper))

    def found(self, address: str, medium: str = "email") -> str | None:
        """Who a stranger's client finds for an address, by hash, through the API."""
        stranger = self.account("@stranger:elsewhere.test")
        pepper = stranger.get("/hash_details").json["lookup_pepper"]
        asked = encode_hash(lookup_hash(address, medium, pepper))
        body = {"algorithm": "sha256", "pepper": pepper, "addresses": [asked]}
        mappings = stranger.post("/lookup", json=body).json["mappings"]
        assert set(mappings) <= {asked}
        return mappings.get(asked)

    def bind_directly(self, address: str, mxid: str, medium: str = "email") -> dict[str, Any]:
        return self.services.associations.bind(ThreePid.parse(medium, address), UserId.parse(mxid))


class Account:
    """One account with an access token; paths are below the v2 prefix unless they are absolute."""

    def __init__(self, server: Server, user_id: str) -> None:
        self.server = server
        self.user_id = user_id
        self.token = server.services.accounts.issue_token(UserId.parse(user_id))

    def request(self, method: str, path: str, **arguments: Any) -> TestResponse:
        path = path if path.startswith("/_matrix") else V2 + path
        headers = {"Authorization": f"Bearer {self.token}"} | arguments.pop("headers", {})
        return self.server.client.open(path, method=method, headers=headers, **arguments)

    def get(self, path: str, **arguments: Any) -> TestResponse:
        return self.request("GET", path, **arguments)

    def post(self, path: str, **arguments: Any) -> TestResponse:
        return self.request("POST", path, **arguments)

    def request_token(
        self, email: str, client_secret: str = "secret", send_attempt: Any = 1, **more: Any
    ) -> TestResponse:
        body = {"email": email, "client_secret": client_secret, "send_attempt": send_attempt}
        return self.post("/validate/email/requestToken", json={**body, **more})

    def submit_token(self, **values: str) -> TestResponse:
        return self.post("/validate/email/submitToken", json=values)

    def validate(self, email: str, client_secret: str = "secret") -> dict[str, str]:
        """A validated session: `sid` and `client_secret`."""
        response = self.request_token(email, client_secret)
        assert response.status_code == 200, response.json
        mailed = self.server.mailed()
        values = {name: mailed[name] for name in ("sid", "client_secret", "token")}
        assert self.submit_token(**values).json == {"success": True}
        del values["token"]
        return values

    def bind(self, email: str, client_secret: str = "secret") -> TestResponse:
        session = self.validate(email, client_secret)
        return self.post("/3pid/bind", json={**session, "mxid": self.user_id})


__all__ = ["V1", "V2", "Account", "Server"]
