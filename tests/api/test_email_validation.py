"""E-mail validation: conformance.md section 8, from the request to the page behind the link."""

import random
import re
import socket
from collections import Counter
from email import message_from_bytes
from email.policy import SMTPUTF8
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import idna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parts.clock import FakeClock
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
    submit,
    token_values,
)

from identity.config import load
from identity.errors import EmailNotSent, InvalidEmail
from identity.messaging.brands import Brands
from identity.messaging.email import Composer, envelope_address
from identity.messaging.sender import sender_from_config
from identity.messaging.verification import verification_mail
from identity.threepid import ThreePid

EMAIL = "alice@example.com"
REQUEST = V2 + "/validate/email/requestToken"
NEXT_LINK = "https://app.example.org/done?a=b%2Fc%20d&e=%41~!$'()*+,;:@#/room/!x:hs"


COMPOSER = Composer(Brands(None, "default"), load(None, {}), FakeClock())


@pytest.fixture
def database_kind():
    """How sessions are stored is the subject of test_sessions.py."""
    return "sqlite"


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


@pytest.mark.requirement("MAIL-03", "AMB-07")
def test_request_while_no_mail_server_listens_is_refused(make_smtp_server):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    server = make_smtp_server(EMAIL__SMTP_PORT=str(port))
    alice = server.account("@alice:hs.test")
    assert refused(alice.request_token(EMAIL), 400, "M_EMAIL_SEND_ERROR")
    assert server.rows("validation_sessions") == server.rows("validation_tokens") == []


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
    assert sorted(addresses) == [
        "alice@example.com",
        "first.last+tag@example.com",
        "strauss@example.com",
    ]


def recipients(message):
    """The addresses of the To header; the parser leaves octets beyond ASCII undecoded."""
    specs = [to.addr_spec for to in message["To"].addresses]
    return [
        spec.encode("ascii", "surrogateescape").decode()
        if "\udc80" <= max(spec) <= "\udcff"
        else spec
        for spec in specs
    ]


def spellings(count):
    """Texts that some reader might take for an address, from parts that readers disagree about."""
    pick = random.Random(17)
    parts = [
        "a",
        "B",
        "ß",
        "é",
        "0",
        "_",
        "-",
        ".",
        "+",
        "@",
        '"',
        " ",
        "<",
        ">",
        "(",
        ")",
        ",",
        ";",
    ]
    parts += [":", "\\", "[", "]", "\r\n", "\n", "\t", "\0", "=?utf-8?q?x?=", "%", "!", "'", "xn--"]
    parts += ["ä", "\u0131", "\u017f", "\u212a", "\ufb01", "\uff20", "\u3002", "\u200b"]
    ends = ["@example.com", "@EXAMPLE.com", "@b\u00fccher.example", "@example.com@evil.example", ""]
    ends += ["@example.com,b@evil.example", "@example.com\r\nBcc: b@evil.example", "@[127.0.0.1]"]
    for _ in range(count):
        yield "".join(pick.choices(parts, k=pick.randrange(1, 5))) + pick.choice(ends)


@pytest.mark.requirement("MAIL-04")
def test_address_of_any_spelling_is_refused_or_mailed_where_it_is_bound(
    mail_server, smtp_settings, clock
):
    """security.md, threats 16 and 17: RCPT is the canonical address, which is what is bound."""
    config = load(None, {f"IDENTITY_{name}": value for name, value in smtp_settings.items()})
    composer = Composer(Brands(None, "default"), config, clock)
    sender = sender_from_config(config, clock)
    outcomes = Counter()
    accepted = {}
    for text in spellings(100_000):
        try:
            threepid = ThreePid.email(text)
            accepted[threepid.address] = envelope_address(threepid.address)
            outcomes["accepted"] += 1
        except (InvalidEmail, EmailNotSent):
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 5_000, outcomes
    for address, envelope in accepted.items():
        local, at, domain = address.partition("@")
        assert at
        assert envelope == f"{local}@{idna.encode(domain).decode()}"
        assert local.isprintable()
        assert not set(local) & set(' <>(),;:@\\[]"\u017f\u212a\ufb01\uff20\u200b')
        # Canonical once: it is its own canonical form.
        assert ThreePid.email(address).address == address
    sample = sorted(accepted)[:: len(accepted) // 40]
    for number, address in enumerate(sample, start=1):
        message = verification_mail(
            composer, ThreePid.email(address), token="t", link="l", requested_by=None, brand=None
        )
        sender.send(message, address)
        mail = mail_server.wait_for_mails(number)[-1]
        assert mail.rcpt_tos == [accepted[address]]
        assert recipients(mail.message) == mail.rcpt_tos


HEADERS = [
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "Auto-Submitted",
    "Content-Type",
    "MIME-Version",
]
HOSTILE = st.text(st.sampled_from("a<>\"'@.,:;=?\r\n\t \0\x1b\u2028\u202e&%{}éß/"), max_size=40)


@pytest.mark.requirement("MAIL-10")
@settings(max_examples=200, deadline=None)
@given(user=HOSTILE, local=HOSTILE, brand=HOSTILE)
def test_mail_has_the_same_headers_whatever_a_caller_wrote(user, local, brand):
    """security.md, threats 18 and 19."""
    try:
        threepid = ThreePid.email(f"{local}@example.com")
    except InvalidEmail:
        threepid = ThreePid.email(EMAIL)
    try:
        message = verification_mail(
            COMPOSER, threepid, token="t", link="https://l.example/", requested_by=user, brand=brand
        )
    except EmailNotSent:
        return
    raw = message.as_bytes()
    parsed = message_from_bytes(raw, policy=SMTPUTF8)
    assert sorted(parsed.keys()) == sorted(HEADERS)
    assert recipients(parsed) == [threepid.address]
    assert len(list(parsed.iter_parts())) == 2
    assert raw.replace(b"\r\n", b"").count(b"\n") == raw.replace(b"\r\n", b"").count(b"\r") == 0
    html = parsed.get_body(("html",)).get_content()
    links = re.findall(r'(?:href|src|action)="([^"]*)"', html)
    assert set(links) == {"https://l.example/"}


@pytest.mark.requirement("MAIL-10", "GEN-22")
def test_mail_is_text_and_html_with_crlf_and_a_link_on_the_public_url(
    make_smtp_server, mail_server
):
    server = make_smtp_server()
    alice = server.account("@alice:hs.test")
    forged = {
        "Host": "evil.example",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "host=evil.example",
    }
    body = {"email": EMAIL, "client_secret": "secret", "send_attempt": 1}
    assert alice.post("/validate/email/requestToken", json=body, headers=forged).status_code == 200
    (mail,) = mail_server.wait_for_mails(1)
    assert b"evil.example" not in mail.raw
    bare = mail.raw.replace(b"\r\n", b"")
    assert (bare.count(b"\n"), bare.count(b"\r")) == (0, 0)
    assert max(map(len, mail.raw.split(b"\r\n"))) <= 998
    message = mail.message
    assert sorted(message.keys()) == sorted([*HEADERS])
    assert message["From"] == "Matrix Identity <noreply@id.example.org>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"].endswith("@id.example.org>")
    assert parsedate_to_datetime(message["Date"]).timestamp() * 1000 == server.clock.now_ms()
    assert message.get_content_type() == "multipart/alternative"
    types = [part.get_content_type() for part in message.iter_parts()]
    assert types == ["text/plain", "text/html"]
    assert all(part.defects == [] for part in message.walk())
    link, query = link_in(mail.text)
    assert link.startswith(f"https://id.example.org/prefix{CONFIRM}?")
    # Whoever has the mail needs nothing else.
    path = link.removeprefix("https://id.example.org/prefix")
    assert is_page(server.client.get(path), 200)
    assert is_page(server.client.post(path, data=query), 200)
    assert validated(server) == [True]


@pytest.mark.requirement("MAIL-10")
def test_mail_without_the_confirm_page_links_to_submit_token(make_server):
    """Decision 12."""
    server = make_server({"VALIDATION__CONFIRM_PAGE": "false"})
    server.account("@alice:hs.test").request_token(EMAIL)
    mailed = server.mailed()
    assert urlsplit(mailed["link"]).path == SUBMIT
    assert mailed["link"].startswith("http://localhost:8090/")
    assert is_page(server.client.get(mailed["link"]), 200)
    assert validated(server) == [True]


@pytest.mark.requirement("MAIL-10")
def test_mail_and_pages_are_those_of_the_brand_that_the_request_names(make_server, tmp_path):
    templates = {
        "acme/verification.subject.j2": "Acme wants to know",
        "acme/verification.txt.j2": "Acme: {{ token }} {{ link }} {{ address }} {{ requested_by }}",
        "acme/confirm.html.j2": "<h1>Acme asks {{ requested_by }}</h1>",
        "acme/verified.html.j2": "<h1>Acme knows {{ address }}</h1>",
        "house/verification.subject.j2": "Our house",
        "secret.j2": "not a brand",
    }
    for name, text in templates.items():
        path = tmp_path / "brands" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    server = make_server(
        {**UNLIMITED, "EMAIL__TEMPLATES": str(tmp_path / "brands"), "EMAIL__DEFAULT_BRAND": "house"}
    )
    alice = server.account("@alice:hs.test")
    body = {"email": EMAIL, "send_attempt": 1}

    def request(secret, brand):
        json = {**body, "client_secret": secret}
        query = {} if brand is None else {"brand": brand}
        response = alice.post("/validate/email/requestToken", json=json, query_string=query)
        assert response.status_code == 200, brand
        return server.sender.mails[-1][1]

    message = request("acme", "acme")
    assert message["Subject"] == "Acme wants to know"
    assert message.get_body(("plain",)).get_content().startswith("Acme: ")
    assert message.get_body(("html",)).get_content().startswith("<!DOCTYPE html>")  # built in
    mailed = server.mailed()
    assert server.client.get(mailed["link"]).text == "<h1>Acme asks @alice:hs.test</h1>\n".strip()
    assert press_button(server, mailed).text == f"<h1>Acme knows {EMAIL}</h1>"

    others = [None, "", "house", "unknown", "ACME", "../acme", "acme/../acme", "..", "/", "acme\n"]
    others += ["a" * 65, "\u202e", "{{ 7*7 }}"]
    for number, brand in enumerate(others):
        assert request(f"secret{number}", brand)["Subject"] == "Our house", brand
        assert is_page(server.client.get(server.mailed()["link"]), 200)
    # What cannot be a brand is not kept either.
    brands = {row["brand"] for row in server.rows("validation_sessions")}
    assert brands == {"acme", "house", "unknown", None}


# --- submitting the token ---------------------------------------------------------------------


@pytest.mark.requirement("MAIL-05", "AMB-06")
def test_submit_of_the_token_succeeds_again_and_again(server, clock, alice):
    alice.request_token(EMAIL)
    mailed = server.mailed()
    at_ms = clock.now_ms()
    for _ in range(2):
        response = submit(alice, mailed)
        assert (response.status_code, response.json) == (200, {"success": True})
        assert [row["validated_at_ms"] for row in server.rows("validation_sessions")] == [at_ms]
        clock.advance(hours=1)
    form = alice.post("/validate/email/submitToken", data=token_values(mailed))
    assert (form.status_code, form.json) == (200, {"success": True})


@pytest.mark.requirement("MAIL-05")
def test_submit_by_a_program_needs_an_access_token(server, alice):
    alice.request_token(EMAIL)
    values = token_values(server.mailed())
    for headers in ({}, {"Authorization": "Bearer bogus"}):
        response = server.client.post(SUBMIT, json=values, headers=headers)
        assert refused(response, 401, "M_UNAUTHORIZED")
    assert validated(server) == [False]


@pytest.mark.requirement("MAIL-06", "AMB-06")
def test_submit_of_a_wrong_token_is_refused(server, alice):
    alice.request_token(EMAIL)
    mailed = server.mailed()
    for wrong in ("wrong", mailed["token"].swapcase(), mailed["token"][:-1], mailed["token"] + "x"):
        response = submit(alice, mailed, token=wrong)
        assert refused(response, 400, "M_TOKEN_INCORRECT")
        assert response.json["success"] is False
    assert validated(server) == [False]
    assert submit(alice, mailed).json == {"success": True}


@pytest.mark.requirement("MAIL-07", "AMB-06")
def test_submit_for_unknown_sid_and_for_wrong_secret_are_not_told_apart(server, clock, alice):
    alice.request_token(EMAIL)
    mailed = server.mailed()
    unknown = ["nope", "A" * 22, "", "a b", "é" * 300]
    bodies = [
        submit(alice, mailed, client_secret="other"),
        *(submit(alice, mailed, sid=sid) for sid in unknown),
    ]
    for response in bodies:
        assert refused(response, 400, "M_INVALID_PARAM")
        assert response.json["success"] is False
        assert response.data == bodies[0].data
    assert [row["attempts"] for row in server.rows("validation_sessions")] == [0]
    clock.advance(hours=24, seconds=1)
    response = submit(alice, mailed)
    assert refused(response, 400, "M_SESSION_EXPIRED")
    assert response.json["success"] is False
    # Expired or not, that is between the session and who holds its secret.
    assert submit(alice, mailed, client_secret="other").data == bodies[0].data


# --- the pages -----------------------------------------------------------------------------------


@pytest.mark.requirement("MAIL-08", "AMB-05")
def test_get_submit_token_needs_no_access_token_and_ignores_one(make_server):
    server = make_server(UNLIMITED)
    alice, bob = server.account("@alice:hs.test"), server.account("@bob:hs.test")
    headers = [{}, {"Authorization": "Bearer bogus"}, {"Authorization": f"Bearer {bob.token}"}]
    for number, sent in enumerate(headers):
        alice.request_token(EMAIL, f"secret{number}")
        values = token_values(server.mailed())
        assert is_page(server.client.get(SUBMIT, query_string=values, headers=sent), 200)
    assert validated(server) == [True, True, True]


@pytest.mark.requirement("MAIL-09")
def test_get_submit_token_shows_a_page_without_secrets(server, alice):
    alice.request_token("alice@b\u00fccher.example")
    mailed = server.mailed()
    page = open_link(server, mailed)
    assert is_page(page, 200)
    assert "alice@xn--bcher-kva.example" in page.text
    for name in ("sid", "client_secret", "token"):
        assert mailed[name] not in page.text
    assert is_page(open_link(server, mailed), 200)  # again


@pytest.mark.requirement("MAIL-09", "AMB-10")
@pytest.mark.parametrize("method", ["link", "button"])
def test_validation_redirects_to_exactly_the_stored_next_link(server, alice, method):
    alice.request_token(EMAIL, next_link=NEXT_LINK)
    mailed = server.mailed()
    for _ in range(2):
        response = (open_link if method == "link" else press_button)(server, mailed)
        assert (response.status_code, response.headers["Location"]) == (303, NEXT_LINK)
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["Cache-Control"] == "no-store"
        for name in ("sid", "client_secret", "token"):
            assert mailed[name] not in response.text
    assert validated(server) == [True]


@pytest.mark.requirement("MAIL-09")
def test_pages_of_links_that_do_not_work_are_errors_for_people(server, clock, alice):
    alice.request_token(EMAIL, next_link=NEXT_LINK)
    mailed = server.mailed()
    before = server.rows("validation_sessions")
    wrong = [{"sid": "nope"}, {"client_secret": "other"}, {"client_secret": "a b"}]
    for changed in wrong:
        values = token_values(mailed, **changed)
        for page in (
            open_link(server, values),
            press_button(server, values),
            server.client.get(CONFIRM, query_string=values),
        ):
            assert is_page(page, 404 if "b" not in changed.get("client_secret", "") else 400)
    for name in ("sid", "client_secret", "token"):
        values = token_values(mailed)
        del values[name]
        for page in (
            server.client.get(SUBMIT, query_string=values),
            server.client.post(CONFIRM, data=values),
            server.client.get(CONFIRM, query_string=values),
        ):
            assert is_page(page, 400)
    assert is_page(server.client.post(CONFIRM, data=b"{", content_type="application/json"), 400)
    assert server.rows("validation_sessions") == before
    for page in (
        open_link(server, mailed, token="wrong"),
        press_button(server, mailed, token="wrong"),
    ):
        assert is_page(page, 400)
        assert "Location" not in page.headers
    clock.advance(hours=24, seconds=1)
    for page in (
        open_link(server, mailed),
        press_button(server, mailed),
        server.client.get(mailed["link"]),
    ):
        assert is_page(page, 400)
        assert "expired" in page.text
        assert mailed["token"] not in page.text
    assert validated(server) == [False]


@pytest.mark.requirement("MAIL-10")
def test_confirm_page_shows_who_asks_and_validates_only_by_its_button(server, alice):
    """Decision 12 and security.md, threat 12: whatever a scanner of mail opens does nothing."""
    alice.request_token(EMAIL, next_link=NEXT_LINK)
    mailed = server.mailed()
    assert urlsplit(mailed["link"]).path == CONFIRM
    for _ in range(3):
        for method in ("GET", "HEAD", "OPTIONS"):
            assert server.client.open(mailed["link"], method=method).status_code == 200
        assert server.client.head(SUBMIT, query_string=token_values(mailed)).status_code == 200
    assert validated(server) == [False]
    assert [row["attempts"] for row in server.rows("validation_sessions")] == [0]

    page = server.client.get(mailed["link"])
    assert is_page(page, 200)
    assert EMAIL in page.text
    assert alice.user_id in page.text
    ((attributes, fields),) = Forms(page.text).forms
    assert attributes == {"method": "post"}  # to its own URL
    assert fields == token_values(mailed)
    # Threat 13: nothing of it has used up the link.
    response = server.client.post(mailed["link"], data=fields)
    assert (response.status_code, response.headers["Location"]) == (303, NEXT_LINK)
    assert validated(server) == [True]


@pytest.mark.requirement("MAIL-09")
@pytest.mark.parametrize(
    ("next_link", "origin"),
    [
        (None, ""),
        ("https://app.example.org/x;script-src%20*?y#z", " https://app.example.org"),
        ("http://localhost:8080/", " http://localhost:8080"),
        ("https://B\u00fccher.example/", " https://xn--bcher-kva.example"),
    ],
)
def test_confirm_page_may_be_left_for_the_origin_of_next_link_only(
    server, alice, next_link, origin
):
    alice.request_token(EMAIL, **({"next_link": next_link} if next_link else {}))
    page = server.client.get(server.mailed()["link"])
    policy = page.headers["Content-Security-Policy"].split("; ")
    assert [item for item in policy if item.startswith("form-action")] == [
        f"form-action 'self'{origin}"
    ]
    assert len(page.headers.getlist("Content-Security-Policy")) == 1


@pytest.mark.requirement("MAIL-10")
def test_confirm_page_shows_hostile_values_as_text(server, alice):
    """security.md, threat 21: what is in the query is markup nowhere."""
    alice.request_token(EMAIL)
    mailed = server.mailed()
    evil = '"><script>alert(1)</script><form action="https://evil.example">'
    values = token_values(mailed, token=evil)
    page = server.client.get(CONFIRM, query_string={**values, "action": evil, "address": evil})
    assert is_page(page, 200)
    ((attributes, fields),) = Forms(page.text).forms
    assert attributes == {"method": "post"}
    assert fields["token"] == evil


@pytest.mark.requirement("MAIL-10")
def test_mxid_of_the_request_is_shown_as_text(server):
    mallory = server.account("@<b>evil.example/x</b>:hs.test")
    mallory.request_token(EMAIL)
    page = server.client.get(server.mailed()["link"])
    assert "<b>" not in page.text
    assert is_page(page, 200)
    text = server.sender.mails[0][1].get_body(("plain",)).get_content()
    assert "evil.example" not in text  # no mail program makes a link of it
    assert "evil." in text


# --- who gets mail at all ---------------------------------------------------------------------------


@pytest.mark.requirement("MAIL-02")
def test_domain_that_is_not_served_is_refused(make_server):
    cases = {
        ("", '["bad.example", "*.worse.example"]'): {
            "a@good.example": True,
            "a@bad.example": False,
            "a@BAD.example": False,
            "a@sub.bad.example": True,
            "a@worse.example": True,
            "a@x.worse.example": False,
            "a@y.x.worse.example": False,
            "a@notbad.example": True,
        },
        ('["good.example", "*.corp.example"]', '["x.corp.example"]'): {
            "a@good.example": True,
            "a@Good.Example": True,
            "a@other.example": False,
            "a@y.corp.example": True,
            "a@x.corp.example": False,
            "a@corp.example": False,
            "a@good.example.evil.example": False,
        },
    }
    for (allowed, denied), addresses in cases.items():
        lists = {"EMAIL__ALLOWED_DOMAINS": allowed or "[]", "EMAIL__DENIED_DOMAINS": denied}
        server = make_server(UNLIMITED | lists)
        alice = server.account("@alice:hs.test")
        for address, served in addresses.items():
            response = alice.request_token(address, f"secret-{len(server.sender.mails)}")
            if served:
                assert response.status_code == 200, address
            else:
                assert refused(response, 400, "M_INVALID_EMAIL"), address
        assert len(server.sender.mails) == sum(addresses.values())
        assert len(server.rows("validation_sessions")) == sum(addresses.values())


@pytest.mark.requirement("MAIL-01")
def test_domain_of_a_closed_network_is_served(make_server):
    """Decision 13: special-use and single-label domains, without asking DNS."""
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    for domain in ("example.test", "printer.local", "localhost", "corp", "x.invalid", "home.arpa"):
        assert alice.request_token(f"alice@{domain}").status_code == 200, domain
    assert len(server.sender.mails) == 6


# --- how much mail ------------------------------------------------------------------------------------


def is_limited(response):
    assert refused(response, 429, "M_LIMIT_EXCEEDED")
    assert response.json["retry_after_ms"] > 0
    assert int(response.headers["Retry-After"]) * 1000 >= response.json["retry_after_ms"]
    return True


@pytest.mark.requirement("MAIL-12", "GEN-15")
def test_burst_of_new_secrets_meets_the_limit_of_the_address(server, clock, alice):
    statuses = [alice.request_token(EMAIL, f"secret{n}").status_code for n in range(8)]
    assert statuses == [200] * 5 + [429] * 3
    response = alice.request_token(EMAIL, "last")
    assert is_limited(response)
    assert len(server.sender.mails) == len(server.rows("validation_sessions")) == 5
    # Another form of the address is the same address; another address is free.
    assert is_limited(alice.request_token("ALICE@EXAMPLE.COM", "last"))
    assert alice.request_token("other@example.com").status_code == 200
    # What was answered before costs nothing, and after the time that was named it works again.
    assert alice.request_token(EMAIL, "secret0").status_code == 200
    clock.advance(ms=response.json["retry_after_ms"] - 1)
    assert is_limited(alice.request_token(EMAIL, "last"))
    clock.advance(ms=1)
    assert alice.request_token(EMAIL, "last").status_code == 200


@pytest.mark.requirement("MAIL-12")
def test_account_that_mails_many_addresses_meets_its_limit(server, alice, bob):
    statuses = [alice.request_token(f"a{n}@example.com").status_code for n in range(12)]
    assert statuses == [200] * 10 + [429] * 2
    assert bob.request_token("b@example.com").status_code == 200
    assert len(server.sender.mails) == 11


@pytest.mark.requirement("MAIL-12")
def test_many_accounts_of_one_address_on_the_network_meet_its_limit(server):
    def ask(number, ip):
        account = server.account(f"@u{number}:hs{number}.test")
        body = {"email": f"a{number}@d{number}.example", "client_secret": "s", "send_attempt": 1}
        return account.post(
            "/validate/email/requestToken", json=body, environ_base={"REMOTE_ADDR": ip}
        ).status_code

    statuses = [ask(number, "192.0.2.7") for number in range(22)]
    assert statuses == [200] * 20 + [429] * 2
    assert ask(30, "192.0.2.8") == 200


@pytest.mark.requirement("MAIL-12")
def test_mailbox_is_not_flooded_by_a_thousand_accounts(make_server, clock):
    """security.md, threat 26: from many homeservers and networks, over two days."""
    server = make_server()
    sent_at_ms = []
    for number in range(1_000):
        account = server.account(f"@u{number}:hs{number % 100}.test")
        body = {"email": EMAIL, "client_secret": "s", "send_attempt": 1}
        ip = {"REMOTE_ADDR": f"198.51.{number // 250}.{number % 250}"}
        before = len(server.sender.mails)
        response = account.post("/validate/email/requestToken", json=body, environ_base=ip)
        assert response.status_code in (200, 429)
        assert len(server.sender.mails) - before == (response.status_code == 200)
        if response.status_code == 200:
            sent_at_ms.append(clock.now_ms())
        if number >= 500:
            clock.advance(seconds=48 * 3600 / 500)
    hour, day = 3_600_000, 86_400_000

    def most_within(span_ms, since_ms=0):
        return max(
            sum(start <= at < start + span_ms for at in sent_at_ms)
            for start in sent_at_ms
            if start >= since_ms
        )

    # What an idle bucket holds, and what comes back meanwhile: 5 + 5 an hour, 10 + 10 a day.
    assert most_within(hour) < 10
    assert most_within(day) < 20
    # From then on what the limit says.
    assert most_within(hour, since_ms=sent_at_ms[0] + day) <= 5
    assert most_within(day, since_ms=sent_at_ms[0] + day) <= 10
