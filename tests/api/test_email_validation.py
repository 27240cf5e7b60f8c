"""E-mail validation: conformance.md section 8, from the request to the page behind the link."""

import random
import re
from collections import Counter
from email.message import EmailMessage
from email.utils import getaddresses, parsedate_to_datetime
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parts.mailserver import MailServer
from parts.server import V2
from parts.validation import (
    CONFIRM,
    SUBMIT,
    UNLIMITED,
    bind,
    get_validated,
    open_link,
    press_button,
    refused,
    sqlite_only,
    submit,
    token_values,
)

from identity.config import load
from identity.errors import EmailNotSent, InvalidEmail
from identity.messaging.brands import Brands
from identity.messaging.email import Composer, envelope_address
from identity.messaging.sender import sender_from_config
from identity.messaging.verification import verification_mail
from identity.mxid import UserId
from identity.threepid import ThreePid

pytestmark = sqlite_only  # what is stored is the subject of test_sessions.py

EMAIL = "alice@example.com"
REQUEST = V2 + "/validate/email/requestToken"
NEXT_LINK = "https://app.example.org/done?a=b%2Fc%20d&e=%41~!$'()*+,;:@#/room/!x:hs"


@pytest.fixture
def mail_server():
    with MailServer(tls="starttls", login=("identity", "p%ssword")) as mail_server:
        yield mail_server


@pytest.fixture
def smtp_settings(mail_server):
    return {
        "EMAIL__SMTP_HOST": "localhost",
        "EMAIL__SMTP_PORT": str(mail_server.port),
        "EMAIL__SMTP_CA_FILE": str(mail_server.ca_file),
        "EMAIL__SMTP_USERNAME": "identity",
        "EMAIL__SMTP_PASSWORD": "p%ssword",
        "EMAIL__FROM": "Matrix Identity <noreply@id.example.org>",
        "SERVER__NAME": "id.example.org",
        "SERVER__PUBLIC_URL": "https://id.example.org/prefix",
    }


@pytest.fixture
def make_smtp_server(make_server, smtp_settings, clock):
    """Servers that send by SMTP, as their settings say."""

    def make(**more):
        values = smtp_settings | more
        config = load(None, {f"IDENTITY_{name}": value for name, value in values.items()})
        return make_server(values, sender=sender_from_config(config, clock))

    return make


def link_in(text):
    """The link of a mail, and what is in its query."""
    link = re.search(r"https?://\S+", text).group()
    return link, {name: values[0] for name, values in parse_qs(urlsplit(link).query).items()}


class Forms(HTMLParser):
    """The forms of a page, each with its attributes and the fields that it posts."""

    def __init__(self, html):
        super().__init__()
        self.forms = []
        self.scripts = 0
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "form":
            self.forms.append((attributes, {}))
        elif tag == "input":
            self.forms[-1][1][attributes["name"]] = attributes["value"]
        elif tag == "script" or any(name.startswith("on") for name in attributes):
            self.scripts += 1


def is_page(response, status):
    """Whether it is a page for a person, with the headers that keep it harmless."""
    assert (response.status_code, response.mimetype) == (status, "text/html")
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
    assert "<h1>" in response.text
    assert Forms(response.text).scripts == 0
    return True


def validated(server):
    return [row["validated_at_ms"] is not None for row in server.rows("validation_sessions")]


# --- the mail -------------------------------------------------------------------------------


@pytest.mark.requirement("MAIL-01")
def test_request_sends_one_mail_with_token_and_link(make_smtp_server, mail_server):
    server = make_smtp_server()
    alice = server.account("@alice:hs.test")
    response = alice.request_token(EMAIL, next_link=NEXT_LINK)
    assert (response.status_code, list(response.json)) == (200, ["sid"])
    (mail,) = mail_server.wait_for_mails(1)
    assert (mail.mail_from, mail.rcpt_tos) == ("noreply@id.example.org", [EMAIL])
    link, query = link_in(mail.text)
    assert query.keys() == {"sid", "client_secret", "token"}
    assert query["sid"] == response.json["sid"]
    assert re.search(rf"^{query['token']}\s*$", mail.text, re.MULTILINE), "the token by itself"
    assert link.replace("&", "&amp;") in mail.html
    assert query["token"] in mail.html
    assert alice.user_id in mail.html.replace("\N{ZERO WIDTH NON-JOINER}", "")
    assert [row["next_link"] for row in server.rows("validation_sessions")] == [NEXT_LINK]
    assert submit(alice, query).json == {"success": True}


@pytest.mark.requirement("MAIL-01")
def test_request_without_a_good_token_sends_nothing(server):
    body = {"email": EMAIL, "client_secret": "secret", "send_attempt": 1}
    for headers in ({}, {"Authorization": "Bearer bogus"}):
        response = server.client.post(REQUEST, json=body, headers=headers)
        assert refused(response, 401, "M_UNAUTHORIZED")
    assert (server.sender.mails, server.rows("validation_sessions")) == ([], [])


@pytest.mark.requirement("MAIL-02", "AMB-07")
def test_request_for_what_is_no_address_is_refused(server, alice):
    bad = ["a", "a@", "@b", "a@b@c", "Name <a@b.example>", "<a@b.example>", "mailto:a@b.example"]
    bad += ["a@b.example\r\nBcc: c@d.example", "a@b.example\n", "\na@b.example", "a\r@b.example"]
    bad += ["x" * 500 + "@b.example", "x" * 243 + "@example.com", "a@" + "b" * 64 + ".example", ""]
    bad += ["a b@c.example", '"a b"@c.example', "a@[127.0.0.1]", "a@b..c", ".a@b.example"]
    bad += ["a@b.example,c@d.example", "a@b.example c@d.example", "a@b.example>", "a@-b.example"]
    bad += [" a@b.example", "a@b.example ", "a(comment)@b.example", "a@b.example(comment)", "a@b_c"]
    # Not what it looks like: full-width letters, a dot that is none, an invisible one.
    bad += ["\uff41lice@example.com", "a@example\u3002com", "a\u200b@example.com", "\u202ea@b.c"]
    for email in bad:
        assert refused(alice.request_token(email), 400, "M_INVALID_EMAIL"), email
    assert (server.sender.mails, server.rows("validation_sessions")) == ([], [])


@pytest.mark.requirement("MAIL-03", "AMB-07", "SESS-10")
def test_request_while_mail_cannot_be_sent_is_refused_and_leaves_nothing(
    make_smtp_server, mail_server
):
    server = make_smtp_server()
    alice = server.account("@alice:hs.test")
    mail_server.rcpt_reply = "550 no such user"
    assert refused(alice.request_token(EMAIL), 400, "M_EMAIL_SEND_ERROR")
    mail_server.rcpt_reply = None
    mail_server.data_reply = "451 later"
    assert refused(alice.request_token(EMAIL), 400, "M_EMAIL_SEND_ERROR")
    mail_server.data_reply = None
    mail_server.drop_at = "DATA"
    assert refused(alice.request_token(EMAIL), 400, "M_EMAIL_SEND_ERROR")
    mail_server.drop_at = None
    assert server.rows("validation_sessions") == server.rows("validation_tokens") == []
    assert alice.request_token(EMAIL).status_code == 200
    (mail,) = mail_server.wait_for_mails(1)
    assert submit(alice, link_in(mail.text)[1]).json == {"success": True}
    mail_server.stop()
    assert refused(alice.request_token(EMAIL, "other"), 400, "M_EMAIL_SEND_ERROR")
    assert len(server.rows("validation_sessions")) == 1
    mail_server.__init__()
    mail_server.start()


@pytest.mark.requirement("MAIL-04")
def test_session_and_mail_and_binding_use_the_canonical_address(make_smtp_server, mail_server):
    server = make_smtp_server()
    alice = server.account("@alice:hs.test")
    for number, (typed, canonical) in enumerate(
        {
            "Alice@EXAMPLE.com": "alice@example.com",
            "Strauß@Example.com": "strauss@example.com",
            "first.LAST+tag@example.com": "first.last+tag@example.com",
        }.items()
    ):
        assert alice.request_token(typed, f"secret{number}").status_code == 200
        mail = mail_server.wait_for_mails(number + 1)[number]
        assert (mail.rcpt_tos, mail.message["To"]) == ([canonical], canonical)
        _, query = link_in(mail.text)
        submit(alice, query)
        assert get_validated(alice, query).json["address"] == canonical
        assert bind(alice, query).json["address"] == canonical
        assert server.found(canonical) == alice.user_id
    addresses = [row["address"] for row in server.rows("validation_sessions")]
    assert sorted(addresses) == ["alice@example.com", "first.last+tag@example.com", "strauss@example.com"]


@pytest.mark.requirement("MAIL-04")
def test_address_of_any_spelling_gets_its_mail_where_it_is_bound():
    """security.md, threats 16 and 17: refused, or RCPT and To are the address that is bound."""
    config = load(None, {"IDENTITY_EMAIL__FROM": "noreply@id.example.org"})
    randoms = random.Random(17)
    pieces = ["a", "B", "ß", "é", "0", "_", "-", ".", "+", "@", '"', " ", "<", ">", "(", ")", ","]
    pieces += [";", ":", "\\", "[", "]", "\r\n", "\n", "\t", "=?utf-8?q?x?=", "%", "!", "\u0131"]
    pieces += ["\u017f", "\u212a", "\ufb01", "\uff20", "\u3002", "\u200b", "xn--", "ä", "\0", "'"]
    tails = ["@example.com", "@EXAMPLE.com", "@b\u00fccher.example", "@example.com@evil.example", ""]
    tails += ["@example.com,b@evil.example", "@example.com\r\nBcc: b@evil.example", "@[127.0.0.1]"]
    outcomes = Counter()
    for _ in range(100_000):
        text = "".join(randoms.choices(pieces, k=randoms.randrange(1, 5))) + randoms.choice(tails)
        try:
            threepid = ThreePid.email(text)
            envelope = envelope_address(threepid.address)
        except (InvalidEmail, EmailNotSent):
            outcomes["refused"] += 1
            continue
        outcomes["accepted"] += 1
        local, _, domain = threepid.address.rpartition("@")
        assert threepid.address.count("@") == 1
        assert threepid.address.isprintable()
        assert not set(threepid.address) & set(' <>(),;:\\[]"\u0131\u017f\u212a\ufb01\uff20\u3002')
        assert envelope == f"{local}@{domain}" or envelope == f"{local}@{domain.encode('idna').decode()}"
        # Canonical once: the form that was mailed is the form of its form.
        assert ThreePid.email(threepid.address).address == threepid.address
        if outcomes["accepted"] % 100 == 0:
            message = Composer(Brands(None, "default"), config, FixedClock()).compose(
                "verification", threepid.address, None, {}
            ) if outcomes["accepted"] == 100 else composed(config, threepid)
            assert getaddresses([message["To"]]) == [("", envelope)]
            assert message["To"].addresses[0].addr_spec == envelope
    assert min(outcomes.values()) > 5_000, outcomes
