import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from identity.messaging import brands as brands_module
from identity.messaging.brands import Brands
from identity.messaging.pages import render_page

BRANDS = Brands(None, "default")
PAGES = ("confirm", "verified", "failed", "invitation", "refuse", "refused", "error")
SECRETS = {"sid": "S1DS1D", "client_secret": "S3CRET", "token": "T0KENT0KEN"}
ASKED = {
    "address": "alice@example.org",
    "requested_by": "@alice:hs.example",
    "server_name": "id.example.org",
}
HOSTILE = [
    '"><script>alert(1)</script>',
    "</style><style>*{display:none}",
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "{{ token }}{% raw %}%(token)s",
    "</title></bdi></form><form action=https://evil.example>",
    "\x00\x1b\u202e\ud800\r\n",
    "a" * 5000,
]
VOID = {"meta", "link", "input", "br", "img", "hr"}


class Document(HTMLParser):
    """Elements with their attributes, and the text; fails on markup that is not balanced."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self._open = [], [], []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self._open[-1] != "style":
            self.text.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def render(name, **variables):
    return render_page(BRANDS, None, name, **ASKED | variables)


def policy(page):
    directives = (directive.split(" ") for directive in page.csp.split("; "))
    return {name: values for name, *values in directives}


def test_confirm_page_says_who_asks_and_posts_the_hidden_values():
    """Threat 12: a person sees the address and the MXID before anything is confirmed."""
    document = Document(render("confirm", action="/v2/confirm", **SECRETS).html)
    assert "alice@example.org" in document.text
    assert "@alice:hs.example" in document.text
    assert "Not you?" in document.text
    assert document.all("form") == [{"method": "post", "action": "/v2/confirm"}]
    hidden = {field["name"]: field["value"] for field in document.all("input")}
    assert hidden == SECRETS
    assert {field["type"] for field in document.all("input")} == {"hidden"}
    assert document.all("button") == [{"type": "submit"}]
    assert document.all("a") == []


def test_confirm_page_without_action_posts_to_its_own_url():
    assert Document(render("confirm").html).all("form") == [{"method": "post"}]


def test_confirm_page_says_when_nobody_is_named():
    document = Document(render("confirm", requested_by="").html)
    assert "The request names none" in document.text


def test_pages_show_the_a_label_of_a_look_alike_domain():
    """Threat 22."""
    for name in ("confirm", "verified", "refuse", "refused"):
        html = render(name, address="bob@аpple.com").html
        assert "bob@xn--pple-43d.com" in html
        assert "аpple" not in html


@pytest.mark.requirement("MAIL-09")
@pytest.mark.parametrize("name", ["verified", "failed", "refused", "error"])
def test_result_page_shows_no_secret(name):
    html = render(name, **SECRETS).html
    assert not any(secret in html for secret in SECRETS.values())
    assert '<meta name="referrer" content="no-referrer">' in html


def test_refuse_page_says_what_its_button_does_and_posts_the_hidden_token():
    """A program that opens every link of a mail refuses nothing: only the button does."""
    document = Document(render("refuse", action="/refuse", code="k0de", **SECRETS).html)
    assert "alice@example.org" in document.text
    assert any("this server sends no more invitations" in text for text in document.text)
    assert document.all("form") == [{"method": "post", "action": "/refuse"}]
    assert document.all("input") == [
        {"type": "hidden", "name": "token", "value": SECRETS["token"]},
        {"type": "hidden", "name": "code", "value": "k0de"},
    ]
    assert document.all("button") == [{"type": "submit"}]
    assert Document(render("refuse").html).all("form") == [{"method": "post"}]


def test_invitation_page_says_who_invites_where_and_words_rooms_and_spaces_differently():
    texts = {"sender": "@alice:hs.test", "sender_display_name": "Alice", "room_name": "Garden"}
    for is_space, word, other in ((False, "room", "space"), (True, "space", "room")):
        document = Document(render("invitation", is_space=is_space, **texts).html)
        text = " ".join(document.text)
        assert all(shown in text for shown in ("Alice", "@alice:hs.", "Garden"))
        assert f"You are invited to a {word} on Matrix" in text
        assert f"Open the {word}" in text
        assert f"Open the {other}" not in text
        assert document.all("form") == document.all("input") == []
    long = render("invitation", sender_display_name="n" * 500, room_name="evil.example " * 50).html
    assert "n" * 21 not in long
    assert "evil.example" not in long


def test_refuse_pages_speak_of_the_medium():
    for name in ("refuse", "refused"):
        by_phone = " ".join(Document(render(name, medium="msisdn").html).text)
        assert "text message" in by_phone
        assert "mail" not in by_phone
        assert "by mail" in " ".join(Document(render(name, medium="email").html).text)


def test_refuse_pages_can_do_without_the_address():
    for name in ("refuse", "refused"):
        document = Document(render(name, address="").html)
        assert any("your e-mail address" in text for text in document.text)
        assert document.all("bdi") == document.all("strong") == []


@pytest.mark.requirement("MAIL-09")
def test_failed_page_gives_the_reason():
    titles = {
        reason: re.search(r"<h1>(.*?)</h1>", render("failed", reason=reason).html, re.DOTALL)[1]
        for reason in ("wrong", "expired", "attempts", "", "other")
    }
    assert titles == {
        "wrong": "This link does not work",
        "expired": "This link has expired",
        "attempts": "Too many attempts",
        "": "This link does not work",
        "other": "This link does not work",
    }


def test_error_page_shows_what_it_is_told():
    text = " ".join(Document(render("error", title="Not here", message="No such page").html).text)
    assert "Not here" in text
    assert "No such page" in text


@pytest.mark.parametrize("name", PAGES)
def test_page_is_allowed_its_style_sheet_and_nothing_else(name):
    """Threat 21."""
    page = render(name, **SECRETS)
    (style,) = re.findall(r"<style>(.*?)</style>", page.html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy(page) == {
        "default-src": ["'none'"],
        "style-src": [f"'sha256-{digest}'"],
        "img-src": ["data:"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
    }


@pytest.mark.parametrize(
    ("url", "sources"),
    [
        ("https://app.example/#/x?a=b", ["https://app.example"]),
        ("http://app.example:8080/x", ["http://app.example:8080"]),
        ("HTTPS://APP.Example", ["https://app.example"]),
        ("https://bücher.example/", ["https://xn--bcher-kva.example"]),
        ("https://user:pw@app.example/", ["https://app.example"]),
        ("https://evil.example; script-src *", []),
        ("https://evil.example, default-src *", []),
        ("https://*", []),
        ("https://a b/", []),
        ("https://[::1]/", []),
        ("https://", []),
        ("https://x:99999/", []),
        ("javascript:alert(1)", []),
        ("//evil.example", []),
        ("", []),
    ],
)
def test_page_policy_lets_a_form_lead_to_the_origins_that_it_is_given(url, sources):
    page = render_page(BRANDS, None, "confirm", form_targets=[url])
    assert policy(page)["form-action"] == ["'self'", *sources]
    assert len(policy(page)) == 6


def test_page_of_a_brand_has_the_hashes_of_all_its_styles(tmp_path):
    (tmp_path / "acme").mkdir()
    template = '<style>a{}</style><p>{{ address }}</p><style media="print">b{}</style>'
    (tmp_path / "acme" / "verified.html.j2").write_text(template)
    page = render_page(Brands(tmp_path, "default"), "acme", "verified", address="<style>x</style>")
    assert len(policy(page)["style-src"]) == 2


@pytest.mark.parametrize("name", PAGES)
def test_page_has_no_script_no_outside_resource_and_no_inline_style(name):
    """Threat 21."""
    links = {"link": "https://app.example/#/room", "refuse_link": "https://id.example/refuse"}
    found = []
    for tag, attributes in Document(render(name, **SECRETS, **links).html).elements:
        assert tag not in {"script", "iframe", "img", "object", "embed"}
        if tag == "a":
            found.append(attributes.pop("href"))
        assert not any(
            attribute.startswith("on") or attribute == "style" for attribute in attributes
        )
        assert attributes.get("href", "data:,") == "data:,"
        assert "src" not in attributes
    assert found == (list(links.values()) if name == "invitation" else [])


@pytest.mark.parametrize("name", PAGES)
def test_page_can_be_read_by_everyone(name):
    document = Document(render(name, **SECRETS).html)
    assert document.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in document.all(
        "meta"
    )
    assert len(document.all("h1")) == len(document.all("main")) == len(document.all("title")) == 1
    assert all(picture["aria-hidden"] == "true" for picture in document.all("svg"))


def test_page_colours_contrast_in_light_and_in_dark():
    """At least 4.5 to 1. Source: WCAG 2.2, success criterion 1.4.3."""
    schemes = re.findall(r":root \{(.*?)\}", render("error").html, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([a-z-]+): #([0-9a-f]{6})", scheme))
        for ink, paper in [
            ("text", "card"),
            ("text", "page"),
            ("soft", "card"),
            ("soft", "page"),
            ("on-accent", "accent"),
            ("on-accent", "accent-strong"),
            ("accent", "card"),
            ("accent", "accent-tint"),
            ("alert", "alert-tint"),
        ]:
            assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def hostile(function):
    for text in HOSTILE:
        function = example(text)(function)
    return function


@hostile
@settings(deadline=None)
@given(st.text())
def test_page_with_hostile_text_has_the_same_elements_and_policy(text):
    """Threats 19 and 21."""
    names = ("address", "requested_by", "sid", "client_secret", "token", "title", "message")
    names += ("sender", "sender_display_name", "room_name", "link", "refuse_link", "medium")
    for name in PAGES:
        harmless = render(name, **dict.fromkeys(names, "x"))
        page = render(name, **dict.fromkeys(names, "x" + text))
        assert page.csp == harmless.csp
        assert shape(page) == shape(harmless)


def shape(page):
    return [(tag, sorted(attributes)) for tag, attributes in Document(page.html).elements]


def test_every_string_of_the_built_in_templates_is_marked_for_translation():
    """Decision 16: with a translation that marks what it translates, no other word is left."""
    brands = Brands(None, "default")
    brands._default.install_gettext_callables(
        lambda text: f"«{text}»", lambda one, _many, _count: f"«{one}»", newstyle=True
    )
    shown = dict.fromkeys(("address", "requested_by", "server_name", "link", "token"), "123")
    templates = Path(brands_module.__file__).parent / "templates" / "default"
    files = sorted(path.name for path in templates.iterdir())
    assert "verification.txt.j2" in files
    for file in files:
        for reason in ("wrong", "expired", "attempts"):
            rendered = brands.render(None, file, shown | {"reason": reason})
            is_html = file.endswith(".html.j2")
            text = "\n".join(Document(rendered).text) if is_html else rendered
            left = re.sub(r"«[^«»]*»", "", text)
            assert not re.search(r"[^\W\d]", left), (file, left)
