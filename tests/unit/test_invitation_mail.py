import re
from email import message_from_string
from email.policy import SMTPUTF8
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from parts.clock import FakeClock

from identity.config import Config
from identity.invites.invite import SPACE, TEXTS, InviteRequest
from identity.messaging.brands import Brands
from identity.messaging.email import Composer
from identity.messaging.invitation import invitation_mail
from identity.mxid import UserId
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
LINK = "https://app.example.com/#/room/!r:hs.example?email=bob%40example.org&signurl=https%3A%2F%2F"
REFUSE = f"{BASE}/_matrix/identity/invites/refuse?token=R1"
TOKEN = "x3uPq8LrT0vW5yBn2Kd7HsJ4mFg9CaEz"
SENDER = "@alice:hs.example"
# The keys that Synapse sends (INV-02).
SYNAPSE = {
    "room_alias": "#garden:hs.example",
    "room_avatar_url": "mxc://hs.example/picture",
    "room_join_rules": "invite",
    "room_name": "Garden club",
    "sender_display_name": "Alice",
    "sender_avatar_url": "mxc://hs.example/alice",
    "org.matrix.web_client_location": "https://evil.example",
}
HOSTILE = [
    "a\r\nBcc: eve@example.net",
    "=?utf-8?q?a=0d=0aBcc:=20eve=40example.net?=",
    "=?utf8?q?=0aB:=20x?=",
    "=?utf8?q?=41=42?=",
    "\r\n\r\n<h1>Your account is locked</h1>",
    '"><a href="https://evil.example/">click</a><img src=x>',
    "[click](https://evil.example/login)",
    "javascript:alert(1)",
    "www.evil.example",
    "eve@evil.example",
    "evil。example",
    "{{ token }}{% include 'x' %}%(token)s%",
    "]]>--></title></style></bdi><script>",
    "\u202egro.live",
    "Call +44 808 157 0192 about your bank account now",
    "x" * 2048,
    "\ud800\x00\u2028",
]
# What mail programs of today make a link of: a scheme, or labels up to a top-level domain.
URL = re.compile(r"[a-z]://|[\w-][.。．｡][a-z]{2,}|\S@[\w-]+\.", re.IGNORECASE)


def make_composer(templates=None):
    email = {"from": "Matrix Identity <noreply@id.example.org>"}
    config = Config.model_validate(
        {"email": email, "server": {"name": "id.example.org", "public_url": BASE}}
    )
    return Composer(Brands(templates, "default"), config, FakeClock())


COMPOSER = make_composer()


def make_mail(texts=SYNAPSE, composer=COMPOSER, **changes):
    details = {
        "threepid": ThreePid.email("bob@example.org"),
        "room_id": "!r:hs.example",
        "sender": UserId.parse(SENDER),
        "texts": texts,
    }
    request = InviteRequest(**details | changes)
    return invitation_mail(composer, request, token=TOKEN, link=LINK, refuse_link=REFUSE)


class Markup(HTMLParser):
    """The tags, attributes and text of a document."""

    def __init__(self, document):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, tuple(name for name, _ in attributes)))
        self.links += [value for name, value in attributes if name in ("href", "src", "action")]

    def handle_data(self, data):
        self.text += data + "\n"


def text_of(mail):
    return mail.get_body(("plain",)).get_content()


def html_of(mail):
    return Markup(mail.get_body(("html",)).get_content())


def shown(mail):
    """What a person reads in each of the two forms."""
    return [text.replace("\u200c", "") for text in (text_of(mail), html_of(mail).text)]


@pytest.mark.requirement("INV-09")
def test_invitation_names_the_inviter_the_room_and_its_picture():
    mail = make_mail()
    assert mail["To"] == "bob@example.org"
    assert mail["Subject"] == "Invitation from Alice to a room on Matrix"
    for part in shown(mail):
        assert "Alice\n" in part
        assert f"{SENDER}\n" in part
        assert "Garden club\n" in part
        assert "not loaded in this mail" in part
        assert "bob@example.org" in part
    for part in shown(make_mail(SYNAPSE | {"room_avatar_url": ""})):
        assert "not loaded in this mail" not in part


@pytest.mark.requirement("INV-09")
def test_invitation_words_a_space_and_a_room_differently():
    space = make_mail(SYNAPSE | {"room_type": SPACE})
    assert space["Subject"] == "Invitation from Alice to a space on Matrix"
    assert make_mail({"room_type": SPACE})["Subject"] == "Invitation to a space on Matrix"
    for part in shown(space):
        assert "you are invited to a space" in part.casefold()
        assert re.search(r"Space:?\s+Garden club", part)
    for room_type in ("", "org.example.custom"):
        for part in shown(make_mail(SYNAPSE | {"room_type": room_type})):
            assert "you are invited to a room" in part.casefold()
            assert re.search(r"Room:?\s+Garden club", part)
            assert "a space" not in part


@pytest.mark.requirement("INV-09")
def test_invitation_carries_both_links_in_both_forms():
    mail = make_mail()
    assert f"\n{LINK}\n" in text_of(mail)
    assert f"\n{REFUSE}\n" in text_of(mail)
    html = html_of(mail)
    assert html.links == [LINK, LINK, REFUSE]
    assert LINK in html.text


@pytest.mark.requirement("INV-02")
def test_invitation_with_nothing_but_what_is_required_says_less():
    mail = make_mail({})
    assert mail["Subject"] == "Invitation to a room on Matrix"
    text, html = shown(mail)
    assert f"Invited by:  {SENDER}\n" in text
    assert "Room:" not in text
    assert re.search(rf"Invited by\s+{SENDER}\n", html)
    assert "\nRoom\n" not in html
    blank = {"sender_display_name": " \u3000", "room_name": "\r\n\t", "room_alias": " "}
    assert shown(make_mail(blank)) == shown(mail)


def test_invitation_to_a_room_without_a_name_shows_its_alias():
    for part in shown(make_mail(SYNAPSE | {"room_name": " "})):
        assert "#garden:hs.example\n" in part


@pytest.mark.requirement("INV-17")
def test_invitation_shortens_what_callers_wrote():
    """The inviter to 20 characters, the room to 30, a local part to 30; never the server."""
    mail = make_mail(
        {"sender_display_name": "s" * 2048, "room_name": "r" * 2048},
        sender=UserId.parse("@" + "m" * 200 + ":hs.example"),
    )
    assert mail["Subject"] == f"Invitation from {'s' * 19}… to a room on Matrix"
    for part in shown(mail):
        assert re.findall(r"s{5,}…?", part) == ["s" * 19 + "…"]
        assert re.findall(r"r{5,}…?", part) == ["r" * 29 + "…"]
        assert re.findall(r"@m+…?:hs\.example", part) == ["@" + "m" * 28 + "…:hs.example"]


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """A composer whose text part is every variable that a test asks for."""
    folder = tmp_path_factory.mktemp("templates") / "echo"
    folder.mkdir()
    names = [*TEXTS, "room_id", "medium", "address", "sender", "token", "link", "refuse_link"]
    names += ["is_space", "server_name", "custom", "é"]
    lines = "".join(f"{name}={{{{ {name} }}}}\n" for name in names)
    (folder / "invite.txt.j2").write_text(lines + "{{ _('words') }}={{ range(3)|join }}")
    return make_composer(folder.parent)


def variables_of(mail):
    return dict(line.split("=", 1) for line in text_of(mail).splitlines())


@pytest.mark.requirement("INV-02")
def test_invitation_templates_of_a_brand_get_every_parameter_by_its_name(echo):
    texts = SYNAPSE | {"room_type": SPACE, "custom": "own <text>", "é": "x", "a b": "y"}
    assert variables_of(make_mail(texts, echo, brand="echo")) == {
        **{name: texts[name] for name in TEXTS},
        "room_id": "!r:hs.example",
        "medium": "email",
        "address": "bob@example.org",
        "sender": SENDER,
        "token": TOKEN,
        "link": LINK,
        "refuse_link": REFUSE,
        "is_space": "True",
        "server_name": "id.example.org",
        "custom": "own <text>",
        "é": "x",
        "words": "012",
    }
    absent = variables_of(make_mail({}, echo, brand="echo"))
    assert {absent[name] for name in (*TEXTS, "custom", "é")} == {""}


@pytest.mark.requirement("INV-17")
def test_invitation_text_named_like_ours_does_not_take_its_place(echo):
    """Nor that of a function: otherwise a request could decide that no mail is made."""
    ours = ["room_id", "medium", "address", "sender", "token", "link", "refuse_link", "is_space"]
    functions = list(Brands(None, "default")._default.globals)
    names = [*ours, "server_name", *functions, "self", "loop", "super", "caller", "import"]
    mails = [make_mail(dict.fromkeys(names, "evil"), echo, brand=brand) for brand in ("echo", None)]
    assert variables_of(mails[0]) == variables_of(make_mail({}, echo, brand="echo"))
    assert shown(mails[1]) == shown(make_mail({}))


# Half of it what markup, links, headers and templates are made of.
texts_of_callers = st.text(st.sampled_from("./:@<>&\"'%=?-{}\r\n e") | st.characters())
HARMLESS = {
    room_type: make_mail(dict.fromkeys(TEXTS, "x") | {"room_type": room_type})
    for room_type in ("", SPACE)
}


def hostile(function):
    for text in HOSTILE:
        function = example(text)(function)
    return function


@pytest.mark.requirement("INV-17")
@hostile
@settings(deadline=None, max_examples=50)
@given(texts_of_callers)
def test_invitation_with_hostile_texts_has_the_same_headers(text):
    """Threat 18."""
    wire = make_mail(dict.fromkeys(TEXTS, text)).as_bytes()
    head = wire.partition(b"\r\n\r\n")[0].decode()
    fields = [line.partition(":")[0] for line in head.split("\r\n") if line[0] not in " \t"]
    assert fields == HEADERS
    read = message_from_string(wire.decode(), policy=SMTPUTF8)
    assert read.keys() == HEADERS
    assert [part.get_content_type() for part in read.iter_parts()] == ["text/plain", "text/html"]
    assert read["To"] == "bob@example.org"
    assert read["Subject"].startswith("Invitation ")
    assert read["Subject"].endswith(" to a room on Matrix")
    assert len(read["Subject"].replace("\u200c", "")) <= 60


@pytest.mark.requirement("INV-17")
@pytest.mark.parametrize("room_type", ["", SPACE])
@hostile
@settings(deadline=None, max_examples=50)
@given(texts_of_callers)
def test_invitation_with_hostile_texts_has_no_other_tag_link_or_line(room_type, text):
    """Threat 19, CVE-2021-29432."""
    texts = dict.fromkeys((*TEXTS, "custom"), "x" + text) | {"room_type": room_type}
    harmless, mail = HARMLESS[room_type], make_mail(texts)
    html = html_of(mail)
    assert html.tags == html_of(harmless).tags
    assert html.links == [LINK, LINK, REFUSE]
    assert len(text_of(mail).splitlines()) == len(text_of(harmless).splitlines())
    for part, whole in ((text_of(mail), text_of(harmless)), (html.text, html_of(harmless).text)):
        ours = part.replace(LINK, "").replace(REFUSE, "").replace("id.example.org", "")
        assert not URL.search(ours)
        assert len(part.replace("\u200c", "")) <= len(whole) + 20 + 30
    assert not URL.search(mail["Subject"])


@pytest.mark.requirement("INV-17")
@pytest.mark.parametrize(
    "localpart", ["Pay at www.evil.example/now", '"><a href=//evil.example>', "a@b.c"]
)
def test_invitation_from_a_hostile_mxid_has_no_other_tag_and_no_other_link(localpart):
    """Historical local parts hold any printable character."""
    mail = make_mail(sender=UserId.parse(f"@{localpart}:hs.example"))
    html = html_of(mail)
    assert html.tags == html_of(make_mail()).tags
    assert html.links == [LINK, LINK, REFUSE]
    for part in (text_of(mail), html.text):
        assert not URL.search(
            part.replace(LINK, "").replace(REFUSE, "").replace("id.example.org", "")
        )


@pytest.mark.parametrize("room_type", ["", SPACE])
def test_invitation_words_are_marked_for_translation(room_type):
    """Decision 16: with a translation that marks what it translates, no other word is left."""
    brands = Brands(None, "default")
    brands._default.install_gettext_callables(
        lambda text: f"«{text}»", lambda one, _many, _count: f"«{one}»", newstyle=True
    )
    names = ("sender_display_name", "room_name", "room_avatar_url", "sender", "address", "link")
    variables = dict.fromkeys(names, "123") | {"is_space": bool(room_type)}
    for file in ("invite.subject.j2", "invite.txt.j2", "invite.html.j2"):
        rendered = brands.render(None, file, variables)
        text = rendered
        if file.endswith(".html.j2"):
            text = Markup(re.sub(r"<style>.*</style>", "", rendered, flags=re.DOTALL)).text
        assert not re.search(r"[^\W\d]", re.sub(r"«[^«»]*»", "", text)), file


def test_invitation_loads_nothing_and_suits_dark_mode():
    html = make_mail().get_body(("html",)).get_content()
    assert not re.search(r"<(img|script|link|iframe|object|form)\b|url\(|@import|mxc:", html)
    assert "prefers-color-scheme: dark" in html
    assert '<html lang="en">' in html
