"""Addresses on their whole way: typed, mailed to, bound, found, unbound."""

import re

import idna
import pytest
from parts.mailserver import MailServer

from identity.messaging.smtp import SmtpSender
from identity.signing import is_signed_by, parse_public_key
from identity.threepid import ThreePid


def unbind(account, session, threepid):
    body = {**session, "mxid": account.user_id, "threepid": threepid}
    return account.post("/3pid/unbind", json=body)


@pytest.mark.requirement("TPID-01", "TPID-03", "AMB-11")
def test_address_is_folded_at_the_door_and_found_in_both_forms(server, alice):
    session = alice.validate("Strauß@Example.com")
    recipient, _ = server.sender.mails[-1]
    assert recipient == "strauss@example.com"
    query = f"/3pid/getValidated3pid?sid={session['sid']}&client_secret={session['client_secret']}"
    assert alice.get(query).json["address"] == "strauss@example.com"

    signed = alice.post("/3pid/bind", json={**session, "mxid": alice.user_id}).json

    assert signed["address"] == "strauss@example.com"
    (association,) = server.rows("associations")
    assert association["threepid"] == server.database.keys.blind_index(
        ThreePid.email("strauss@example.com")
    )
    for address in ("strauss@example.com", "strauß@example.com"):
        assert server.found(address) == alice.user_id
    assert server.found("Strauß@Example.com") is None

    # Whoever unbinds may write it in another way; both forms are gone.
    threepid = {"medium": "email", "address": "STRAUSS@EXAMPLE.COM"}
    assert unbind(alice, session, threepid).status_code == 200
    for address in ("strauss@example.com", "strauß@example.com"):
        assert server.found(address) is None
    assert server.rows("lookup_index") == []


@pytest.mark.requirement("TPID-03")
def test_lowered_form_follows_the_newest_binding(server, alice, clock):
    """Rebound by another spelling, the address is found by that spelling alone."""
    alice.bind("strauß@example.com", "one")
    clock.advance(minutes=1)
    alice.bind("strauss@example.com", "two")
    assert server.found("strauss@example.com") == alice.user_id
    assert server.found("strauß@example.com") is None
    assert len(server.rows("lookup_index")) == 1


@pytest.mark.requirement("TPID-02", "AMB-11")
def test_domains_that_only_fold_alike_are_two_3pids(server, alice, bob):
    assert alice.bind("a@STRASSE.example", "one").json["address"] == "a@strasse.example"
    assert bob.bind("a@straße.example", "two").json["address"] == "a@straße.example"
    assert server.found("a@strasse.example") == alice.user_id
    assert server.found("a@straße.example") == bob.user_id
    assert len(server.rows("associations")) == 2


@pytest.mark.requirement("TPID-06")
@pytest.mark.parametrize("database_kind", ["sqlite"])
@pytest.mark.parametrize("medium", ["Email", "fax", "", "EMAIL"])
def test_unknown_medium_is_refused_in_unbind(server, alice, medium):
    session = alice.validate("alice@example.com")
    alice.post("/3pid/bind", json={**session, "mxid": alice.user_id})
    refused = unbind(alice, session, {"medium": medium, "address": "alice@example.com"})
    assert (refused.status_code, refused.json["errcode"]) == (400, "M_INVALID_PARAM")
    assert server.found("alice@example.com") == alice.user_id


@pytest.mark.requirement("TPID-04")
@pytest.mark.parametrize("database_kind", ["sqlite"])
@pytest.mark.parametrize("digits", ["1234567890123456", "018005552067", "1 800 555", "１８００"])
def test_address_that_is_no_e164_number_is_refused_in_unbind(alice, digits):
    session = alice.validate("alice@example.com")
    refused = unbind(alice, session, {"medium": "msisdn", "address": digits})
    assert (refused.status_code, refused.json["errcode"]) == (400, "M_INVALID_PARAM")


@pytest.mark.requirement("SIGN-03", "SIGN-06")
def test_association_is_signed_under_the_name_of_the_server(make_server):
    server = make_server(
        {"SERVER__NAME": "id.example:8448", "SERVER__PUBLIC_URL": "https://id.example:8448"}
    )
    alice = server.account("@alice:hs.test")
    signed = alice.bind("alice@example.com").json
    assert list(signed["signatures"]) == ["id.example:8448"]
    (key_id,) = signed["signatures"]["id.example:8448"]
    public_key = parse_public_key(alice.get(f"/pubkey/{key_id}").json["public_key"])
    assert is_signed_by(signed, "id.example:8448", {key_id: public_key})
    (statement,) = server.rows("statements")
    assert statement["origin"] == "id.example:8448"


ACCEPTED = [
    "alice@example.com",
    "Alice.B+Tag@EXAMPLE.com",
    "o'hara@example.com",
    "!#$%&'*+-/=^_`{|}~?@example.com",
    "a=b/c@sub.example.org",
    "STRAẞE@example.com",
    "jürgen@bücher.example",
    "用户@例子.example",
    "user@xn--bcher-kva.example",
    "0@localhost",
    "a" * 64 + "@example.com",
]
REFUSED = [
    "alice@example.com, eve@example.net",
    '"alice@example.com"@example.net',
    "alice@example.com>\r\nRCPT TO:<eve@example.net",
    "alice@example.com\r\nBcc: eve@example.net",
    "eve@example.net@example.com",
    "<eve@example.net>alice@example.com",
    "alice(eve@example.net)@example.com",
    "=?utf-8?q?eve=40example.net?=@example.com",
    "alıce@example.com\t",
    "ａlice@example.com",
    "\u212aate@example.com",
    "ǰane@example.com",
]


@pytest.fixture
def mail_server():
    with MailServer() as server:
        yield server


@pytest.fixture
def mailing(make_server, mail_server, clock):
    """A server that really sends."""
    settings = {
        "EMAIL__SMTP_HOST": "localhost",
        "EMAIL__SMTP_PORT": str(mail_server.port),
        "EMAIL__TLS": "none",
        "RATE_LIMITS__ENABLED": "false",
    }
    config = make_server(settings).config
    return make_server(settings, sender=SmtpSender(config, clock))


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_mail_server_is_told_the_address_that_is_bound(mailing, mail_server):
    """Row 17 of the threats, through a real mail server."""
    alice = mailing.account("@alice:hs.test")
    for number, typed in enumerate(ACCEPTED):
        session = {"client_secret": f"secret{number}"}
        session["sid"] = alice.request_token(typed, session["client_secret"]).json["sid"]
        mail = mail_server.wait_for_mails(number + 1)[-1]
        token = re.search(r"[?&]token=([\w-]+)", mail.text).group(1)
        assert alice.submit_token(**session, token=token).json == {"success": True}

        bound = alice.post("/3pid/bind", json={**session, "mxid": alice.user_id}).json["address"]

        local, _, domain = bound.rpartition("@")
        recipient = f"{local}@{idna.encode(domain).decode()}"
        assert mail.rcpt_tos == [recipient]
        # A long header is broken after its colon.
        unfolded = mail.raw.replace(b":\r\n ", b": ")
        assert f"\r\nTo: {recipient}\r\n".encode() in unfolded


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_mail_server_is_told_nothing_about_an_address_that_is_none(mailing, mail_server):
    alice = mailing.account("@alice:hs.test")
    for typed in REFUSED:
        refused = alice.request_token(typed)
        assert (refused.status_code, refused.json["errcode"]) == (400, "M_INVALID_EMAIL")
    assert mail_server.connections == 0
    assert mailing.rows("validation_sessions") == []
