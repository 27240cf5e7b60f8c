"""What a log must never hold: whole flows through a server at its most talkative (GEN-21)."""

import email.policy
import json
import re
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
from parts.homeserver import FakeHomeserver
from parts.phones import LINK, code_in
from parts.server import V2

OPENID, CLIENT_SECRET = "canary-openid-token", "canary-client-secret"
WRONG, BEARER = "canary-wrong-token", "canary-bearer"
SECRETS = [OPENID, CLIENT_SECRET, WRONG, BEARER]
ADDRESSES = ["canary1@example.com", "canary2@example.com"]
NUMBERS = ["447700900814", "447700900815"]


@pytest.fixture
def homeserver():
    with FakeHomeserver() as running:
        running.name = f"localhost:{running.port}"
        running.openid_users[OPENID] = f"@canary-user:{running.name}"
        yield running


@pytest.fixture
def talkative(make_running, homeserver):
    """A server that logs all it can."""
    server = make_running(
        {
            "LOGGING__LEVEL": "debug",
            "LOGGING__FORMAT": "json",
            "LOOKUP__ALGORITHMS": '["sha256", "none"]',
            "FEDERATION__CA_FILE": str(homeserver.ca_file),
            "FEDERATION__ALLOW_PRIVATE_ADDRESSES": "true",
            "RATE_LIMITS__LIMITS__EMAIL_RECIPIENT": "2/h",
        }
    )
    server.start()
    return server


class Visitor:
    """Uses the server with canaries wherever a secret or an address goes."""

    def __init__(self, server, homeserver):
        self.server = server
        self.homeserver = homeserver
        self.hidden = [*SECRETS, *ADDRESSES, *NUMBERS, *(number[2:] for number in NUMBERS)]
        self.codes = []
        self.user_id = f"@canary-user:{homeserver.name}"
        self.token = self.register().json()["token"]
        self.hidden.append(self.token)

    def register(self, token=OPENID, name=None):
        body = {"access_token": token, "matrix_server_name": name or self.homeserver.name}
        return self.server.post("/account/register", json=body)

    def get(self, path, query, token=None):
        return self.server.get(f"{path}?{urlencode(query)}", token=token)

    def post(self, path, **body):
        return self.server.post(path, token=self.token, json=body)

    def mailed(self):
        """The link of the newest mail, and what it holds."""
        newest = max((self.server.folder / "data" / "outbox").glob("*.eml"))
        message = email.message_from_bytes(newest.read_bytes(), policy=email.policy.default)
        link = re.search(r"https?://\S+", message.get_body(("plain",)).get_content()).group()
        parts = urlsplit(link)
        self.hidden.append(parse_qs(parts.query)["token"][0])
        values = {name: value[0] for name, value in parse_qs(parts.query).items()}
        return f"{parts.path}?{parts.query}", values

    def present_tokens(self):
        assert self.register(WRONG).status == 401
        assert self.register(name="localhost:1").status == 502
        assert self.register(name=f"{CLIENT_SECRET}@x").status == 400
        assert self.server.get("/account", token=BEARER).status == 401
        assert self.server.post("/account/logout", token=BEARER).status == 401
        assert self.get("/account", {"access_token": self.token}).status == 401
        assert self.get("/hash_details", {"access_token": self.token}).status == 200
        assert self.get("/hash_details", {"access_token": BEARER}).status == 401

    def prove_and_bind(self, address):
        path = "/validate/email/submitToken"
        assert self.server.request_token(self.token, address, CLIENT_SECRET).status == 200
        link, values = self.mailed()
        session = {"sid": values["sid"], "client_secret": CLIENT_SECRET}
        assert self.post(path, **session, token=WRONG).status == 400
        assert self.get(path, {**session, "token": WRONG}).status == 400
        assert self.get(f"{path}/nowhere", values).status == 404
        assert self.server.request("PUT", f"{path}?{urlencode(values)}").status == 405
        assert self.server.get(link).status == 200
        assert self.get(path, values).status == 200
        assert self.post(path, **values).status == 200
        assert self.get("/3pid/getValidated3pid", session, self.token).status == 200
        assert self.post("/3pid/bind", **session, mxid=self.user_id).status == 200
        assert self.post("/3pid/bind", **session, mxid="@x:y").status == 403
        return session

    def texted(self):
        """The newest text message."""
        newest = max((self.server.folder / "data" / "outbox").glob("*.txt"))
        return newest.read_text().strip()

    def prove_number(self, number):
        asked = {"client_secret": CLIENT_SECRET, "country": "", "send_attempt": 1}
        path = "/validate/msisdn"
        answer = self.post(f"{path}/requestToken", **asked, phone_number=f"+{number}")
        assert answer.status == 200
        self.codes.append(code_in(self.texted()))
        session = {"sid": answer.json()["sid"], "client_secret": CLIENT_SECRET}
        values = {**session, "token": self.codes[-1]}
        assert self.post(f"{path}/submitToken", **session, token=WRONG).status == 400
        assert self.get(f"{path}/confirm", values).status == 200
        assert self.get(f"{path}/submitToken", values).status == 200
        assert self.post(f"{path}/submitToken", **values).status == 200
        assert self.post("/3pid/bind", **session, mxid=self.user_id).status == 200

    def invite_number(self, number):
        named = {"room_id": "!room:hs.test", "sender": self.user_id, "room_name": WRONG}
        answer = self.post("/store-invite", medium="msisdn", address=number, **named)
        assert answer.status == 200
        link = LINK.search(self.texted())
        self.hidden.append(link[1])
        assert self.server.get(urlsplit(link[0]).path).status == 200
        assert self.server.get(urlsplit(link[0]).path + "x").status == 404

    def look_up(self):
        pepper = self.server.get("/hash_details", token=self.token).json()["lookup_pepper"]
        asked = [f"{address} email" for address in ADDRESSES]
        answer = self.post("/lookup", algorithm="none", pepper=pepper, addresses=asked)
        assert len(answer.json()["mappings"]) == len(ADDRESSES)

    def send_nonsense(self):
        text = json.dumps({"a": self.hidden})
        for path in ("/account/register", "/lookup", "/terms", "/3pid/bind", "/3pid/unbind"):
            for body in (text, f"{text}{{", f"[{text}]", text * 5_000):
                assert self.server.post(path, token=self.token, body=body).status in (400, 413)
            query = {"x": text, "access_token": self.token}
            assert self.get(path, query).status in (200, 405)
        for hidden in self.hidden:
            assert self.server.get(f"/pubkey/{quote(hidden)}").status == 404
            assert self.server.get(f"/{quote(hidden)}").status == 404

    def leave(self, session):
        threepid = {"medium": "email", "address": ADDRESSES[-1]}
        unbind = {**session, "mxid": self.user_id, "threepid": threepid}
        assert self.post("/3pid/unbind", **{**unbind, "client_secret": WRONG}).status == 403
        assert self.post("/3pid/unbind", **unbind).status == 200
        assert self.server.post("/account/logout", token=self.token).status == 200

    def keys(self):
        """The private keys of the server."""
        data = self.server.folder / "data"
        files = (data / "signing.keys", data / "storage.keys")
        return [key for file in files for key in re.findall("[A-Za-z0-9+/]{43}", file.read_text())]


@pytest.mark.requirement("GEN-21")
def test_no_secret_and_no_address_reaches_the_log(talkative, homeserver):
    visitor = Visitor(talkative, homeserver)
    visitor.present_tokens()
    sessions = [visitor.prove_and_bind(address) for address in ADDRESSES]
    visitor.prove_number(NUMBERS[0])
    visitor.invite_number(NUMBERS[1])
    assert talkative.request_token(visitor.token, ADDRESSES[0], CLIENT_SECRET, 9).status == 200
    assert talkative.request_token(visitor.token, ADDRESSES[0], CLIENT_SECRET, 10).status == 429
    visitor.look_up()
    visitor.send_nonsense()
    visitor.leave(sessions[-1])
    assert talkative.stop() == 0

    log = talkative.log
    # It does tell of each request, by its route.
    events = ('"request"', '"limit_exceeded"', '"homeserver_call_failed"', '"email_written"')
    for event in (*events, '"sms_written"'):
        assert f'"event": {event}' in log
    assert log.count(f'"route": "{V2}/validate/email/submitToken"') >= 8
    keys = visitor.keys()
    assert len(keys) == 3
    for hidden in [*visitor.hidden, *keys]:
        for form in (hidden, quote(hidden, safe="")):
            assert form not in log
    # Six digits may also stand in a time or in a request's id.
    for code in visitor.codes:
        assert not re.search(rf"(?<![0-9a-f.]){code}(?![0-9a-f])", log)
