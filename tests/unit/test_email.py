import re
from email import message_from_string
from email.policy import SMTPUTF8
from html.parser import HTMLParser

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from parts.clock import FakeClock

from identity.config import Config
from identity.errors import EmailNotSent, InvalidEmail
from identity.messaging.brands import Brands
from identity.messaging.email import Composer, envelope_address, mail_host
from identity.messaging.verification import verification_mail
from identity.threepid import ThreePid

HEADERS = [
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "Auto-Submitted",
    "MIME-Version",
    "Content-Type",
]
BASE = "https://id.example.org"
LINK = f"{BASE}/_matrix/identity/v2/validate/email/confirm?sid=S1&client_secret=C1&token=T1"
TOKEN = "x3uPq8LrT0vW5yBn2Kd7HsJ4mFg9CaEz"
HOSTILE = [
    "a\r\nBcc: eve@example.net",
    "=?utf-8?q?a=0d=0aBcc:=20eve=40example.net?=",
    "=?utf-8?b?DQpCY2M6IGV2ZUBleGFtcGxlLm5ldA==?=",
    "\r\n\r\n<h1>Hello</h1>",
    '<a href="https://evil.example/">click</a>',
    "https://evil.example/login",
    "@www.evil.example/login:hs.example",
    "javascript:alert(1)",
    "mailto:eve@evil.example",
    "evil。example",
    "{{ token }}{% include 'x' %}%(token)s",
    "]]>--></title></style><script>",
    "\u202egro.live",
    "x" * 5000,
    "\ud800",
]
# What mail programs of today make a link of: a scheme, or labels up to a top-level domain.
URL = re.compile(r"[a-z]://|[\w-][.。．｡][a-z]{2,}|\S@[\w-]+\.", re.IGNORECASE)


def make_composer(templates=None, **email):
    email = {"from": "Matrix Identity <noreply@id.example.org>"} | email
    config = Config.model_validate(
        {"email": email, "server": {"name": "id.example.org", "public_url": BASE}}
    )
    return Composer(Brands(templates, "default"), config, FakeClock())


COMPOSER = make_composer()


def make_mail(address="alice@example.org", composer=COMPOSER, **changes):
    threepid = address if isinstance(address, ThreePid) else ThreePid.email(address)
    details = {"token": TOKEN, "link": LINK, "requested_by": "@alice:example.org", "brand": None}
    return verification_mail(composer, threepid, **details | changes)


def text_of(mail):
    return mail.get_body(("plain",)).get_content()


def html_of(mail):
    return mail.get_body(("html",)).get_content()


class Markup(HTMLParser):
    """The tags, attributes and text of a document."""

    def __init__(self, document):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, tuple(name for name, _ in attributes)))
        self.links += [value for name, value in attributes if name in ("href", "src")]

    def handle_data(self, data):
        self.text += data + "\n"


@pytest.mark.requirement("MAIL-01")
def test_verification_mail_carries_token_and_link_in_both_parts():
    mail = make_mail()
    assert mail["To"] == "alice@example.org"
    assert f"\n{LINK}\n" in text_of(mail)
    assert f"\n{TOKEN}\n" in text_of(mail)
    html = Markup(html_of(mail))
    assert set(html.links) == {LINK}
    assert LINK in html.text
    assert TOKEN in html.text


def test_verification_mail_names_who_asks_and_for_which_address():
    for part in (text_of(make_mail()), Markup(html_of(make_mail())).text):
        shown = part.replace("\u200c", "")
        assert "@alice:example.org" in shown
        assert "alice@example.org" in shown
        assert "id.example.org" in shown
    assert "Matrix account:  " not in text_of(make_mail(requested_by=None))
    assert ">Matrix account<" not in html_of(make_mail(requested_by=None))


@pytest.mark.requirement("MAIL-10")
@pytest.mark.parametrize("address", ["alice@example.org", "jürgen@bücher.example"])
def test_mail_on_the_wire_has_crlf_short_lines_and_plain_bytes(address):
    wire = make_mail(address, requested_by="@" + "é" * 2000 + ":x").as_bytes()
    assert b"\n" not in wire.replace(b"\r\n", b"")
    assert b"\r" not in wire.replace(b"\r\n", b"")
    assert max(map(len, wire.split(b"\r\n"))) <= 998
    assert wire.partition(b"\r\n\r\n")[2].isascii()


@pytest.mark.requirement("MAIL-10")
def test_mail_has_the_headers_of_rfc_5322_and_both_forms():
    mail = message_from_string(make_mail().as_bytes().decode(), policy=SMTPUTF8)
    assert mail.keys() == HEADERS
    assert mail["From"] == "Matrix Identity <noreply@id.example.org>"
    assert mail["Date"] == "Fri, 15 Jan 2027 08:00:00 +0000"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Subject"] == "Confirm your e-mail address for Matrix"
    assert mail.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
    assert not mail.defects


@pytest.mark.requirement("GEN-22")
def test_mail_takes_its_own_host_from_the_public_url():
    first, second = make_mail()["Message-ID"], make_mail()["Message-ID"]
    assert re.fullmatch(r"<[0-9a-f]{32}@id\.example\.org>", first)
    assert first != second
    assert mail_host("http://192.0.2.1:8090/path") == "[192.0.2.1]"
    assert mail_host("http://[2001:db8::1]:8090") == "[IPv6:2001:db8::1]"
    assert mail_host("http://localhost:8090") == "localhost"


@pytest.mark.requirement("MAIL-10")
def test_mail_in_ascii_is_sent_as_it_is_so_that_links_stay_whole(tmp_path):
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "verification.txt.j2").write_text("Open {{ link }}\n")
    mail = make_mail(composer=make_composer(tmp_path), brand="acme")
    assert f"\r\nOpen {LINK}\r\n".encode() in mail.as_bytes()
    (tmp_path / "acme" / "verification.txt.j2").write_text("{{ link }}" * 20)
    mail = make_mail(composer=make_composer(tmp_path), brand="acme")
    assert max(map(len, mail.as_bytes().split(b"\r\n"))) <= 998
    assert text_of(mail) == LINK * 20 + "\n"


@pytest.mark.requirement("MAIL-10")
def test_mail_of_a_brand_uses_its_templates(tmp_path):
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "verification.subject.j2").write_text("ACME\n\n  {{ server_name }}\n")
    (tmp_path / "acme" / "verification.html.j2").write_text("<b>{{ requested_by }}</b>")
    composer = make_composer(tmp_path)
    mail = make_mail(composer=composer, brand="acme", requested_by="<i>")
    assert mail["Subject"] == "ACME id.example.org"
    assert html_of(mail) == "<b>&lt;i&gt;</b>\n"
    assert TOKEN in text_of(mail)
    assert make_mail(composer=composer)["Subject"].startswith("Confirm")


@pytest.fixture(scope="module")
def careless(tmp_path_factory):
    """A composer with a template that puts text of callers everywhere, and defuses nothing."""
    folder = tmp_path_factory.mktemp("templates") / "careless"
    folder.mkdir()
    for kind in ("subject", "txt", "html"):
        (folder / f"verification.{kind}.j2").write_text("{{ requested_by }}\n{{ token }}")
    return make_composer(folder.parent)


def check_headers(mail):
    """Threat 18: what is read back is what was meant, and nothing more."""
    wire = mail.as_bytes()
    head = wire.partition(b"\r\n\r\n")[0].decode()
    fields = [line.partition(":")[0] for line in head.split("\r\n") if line[0] not in " \t"]
    assert fields == HEADERS
    read = message_from_string(wire.decode(), policy=SMTPUTF8)
    assert read.keys() == HEADERS
    assert [part.get_content_type() for part in read.iter_parts()] == ["text/plain", "text/html"]
    assert len(read["To"].addresses) == len(read["From"].addresses) == 1
    assert len(read["Subject"]) <= 150
    return read


def hostile(function):
    for text in HOSTILE:
        function = example(text)(function)
    return function


@pytest.mark.requirement("MAIL-10")
@hostile
@settings(deadline=None)
@given(st.text())
def test_mail_with_hostile_text_has_the_same_headers(careless, text):
    check_headers(make_mail(composer=careless, brand="careless", requested_by=text))


local_parts = st.text(
    st.one_of(st.sampled_from("abz019!#$%&'*+/=?^_`{|}~-."), st.characters(min_codepoint=0xA0)),
    min_size=1,
    max_size=64,
)
domains = st.one_of(
    st.sampled_from(["example.org", "localhost", "xn--e1awd7f.com", "a.b.c.d.example"]),
    st.text(st.characters(categories=["Ll", "Nd"]), min_size=1, max_size=60).map(
        lambda label: f"{label}.example"
    ),
)


@pytest.mark.requirement("MAIL-10")
@example("=?utf-8?q?=0d=0abcc=3ax?=", "example.org")
@example("a" * 64, "b" * 60 + "." + "c" * 60 + "." + "d" * 60)
@settings(deadline=None)
@given(local_parts, domains)
def test_mail_to_any_address_goes_to_that_address_only(local, domain):
    """Threats 17 and 18: the To header, read back, is the address of the envelope."""
    try:
        threepid = ThreePid.email(f"{local}@{domain}")
    except InvalidEmail:
        assume(False)
    try:
        mail = make_mail(threepid)
    except EmailNotSent:
        assert "=?" in threepid.address
        return
    read = check_headers(mail)
    assert read["To"].addresses[0].addr_spec == envelope_address(threepid.address)


@hostile
@settings(deadline=None)
@given(st.text())
def test_mail_with_hostile_text_has_no_other_tag_and_no_other_link(text):
    """Threat 19."""
    harmless = Markup(html_of(make_mail(requested_by="@alice:hs")))
    mail = make_mail(requested_by=f"@{text}:hs")
    html = Markup(html_of(mail))
    assert html.tags == harmless.tags
    assert set(html.links) == {LINK}
    assert mail["Subject"] == "Confirm your e-mail address for Matrix"
    for part in (text_of(mail), html.text):
        ours = part.replace(LINK, "").replace("id.example.org", "")
        assert not URL.search(ours)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("bob@аpple.com", "bob@xn--pple-43d.com"),
        ("jürgen@bücher.example", "jürgen@xn--bcher-kva.example"),
    ],
)
def test_mail_to_a_non_ascii_domain_shows_its_a_label(address, shown):
    """Threat 22."""
    mail = make_mail(address)
    assert mail["To"] == shown
    for part in (text_of(mail), Markup(html_of(mail)).text):
        assert shown in part.replace("\u200c", "")
        assert address not in part.replace("\u200c", "")


def test_mail_to_a_non_ascii_local_part_is_written_for_smtputf8():
    wire = make_mail("jürgen@bücher.example").as_bytes()
    assert "\r\nTo: jürgen@xn--bcher-kva.example\r\n".encode() in wire


@pytest.mark.parametrize(
    "address", ["", "alice", "@example.org", "a\r\nb@example.org", "=?x?=@example.org", "a@☃.."]
)
def test_envelope_address_that_mail_cannot_carry_is_refused(address):
    with pytest.raises(EmailNotSent):
        envelope_address(address)


def test_html_mail_loads_nothing_and_suits_dark_mode():
    html = html_of(make_mail())
    assert not re.search(r"<(img|script|link|iframe|object|form)\b|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html
    assert '<meta name="color-scheme" content="light dark">' in html
    assert '<html lang="en">' in html
