import pytest
from jinja2.exceptions import SecurityError

from identity.errors import SetupError
from identity.messaging.brands import Brands
from identity.messaging.text import alabel, defuse, shorten, without_controls


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def render(brands, brand, file="verified.html.j2", **variables):
    return brands.render(brand, file, variables)


def test_brand_that_lacks_a_file_takes_that_of_the_default_brand(tmp_path):
    write(tmp_path / "acme", verified__html__j2="acme's own")
    write(tmp_path / "house", verified__html__j2="the house's", failed__html__j2="house failed")
    brands = Brands(tmp_path, "house")
    assert render(brands, "acme") == "acme's own"
    assert render(brands, "acme", "failed.html.j2") == "house failed"
    assert "<h1>" in render(brands, "acme", "error.html.j2")


@pytest.mark.parametrize("brand", [None, "", "nobody", "../secret", "acme/../..", "ACME", "x" * 65])
def test_brand_that_is_unknown_is_the_default_brand(tmp_path, brand):
    write(tmp_path / "templates" / "house", verified__html__j2="the house's")
    write(tmp_path / "templates" / "acme", verified__html__j2="acme's own")
    write(tmp_path / "secret", verified__html__j2="secret")
    brands = Brands(tmp_path / "templates", "house")
    assert render(brands, brand) == "the house's"


def test_brand_folder_with_an_odd_name_is_no_brand(tmp_path):
    write(tmp_path / "Odd Name", verified__html__j2="odd")
    assert "odd" not in render(Brands(tmp_path, "default"), "Odd Name")


def test_brand_named_default_overrides_the_built_in_files(tmp_path):
    write(tmp_path / "default", verified__html__j2="mine")
    brands = Brands(tmp_path, "default")
    assert render(brands, None) == render(brands, "default") == "mine"
    assert "<h1>" in render(brands, None, "failed.html.j2")


def test_brand_may_extend_the_built_in_base(tmp_path):
    template = '{% extends "base.html.j2" %}{% block content %}Hello from ACME{% endblock %}'
    write(tmp_path / "acme", verified__html__j2=template)
    page = render(Brands(tmp_path, "default"), "acme")
    assert "Hello from ACME" in page
    assert "<main" in page


def test_template_variable_that_is_missing_is_empty(tmp_path):
    template = "[{{ a }}{{ b.c.d }}{{ e|shorten(3) }}{{ f|defuse }}{{ g|alabel }}{{ none }}]"
    write(tmp_path / "acme", a__txt__j2=template)
    assert render(Brands(tmp_path, "default"), "acme", "a.txt.j2", none=None) == "[]"


def test_template_variables_are_escaped_in_html_only(tmp_path):
    write(tmp_path / "acme", **{f"a__{kind}__j2": "{{ x }}" for kind in ("html", "txt", "subject")})
    brands = Brands(tmp_path, "default")
    assert render(brands, "acme", "a.html.j2", x="<b>&'\"") == "&lt;b&gt;&amp;&#39;&#34;"
    assert render(brands, "acme", "a.txt.j2", x="<b>&") == "<b>&"
    assert render(brands, "acme", "a.subject.j2", x="<b>&") == "<b>&"


def test_template_variables_lose_their_control_characters_at_any_depth(tmp_path):
    write(tmp_path / "acme", a__txt__j2="{{ x }}|{{ y.z[0] }}|{{ n }}")
    shown = render(
        Brands(tmp_path, "default"),
        "acme",
        "a.txt.j2",
        x="a\r\nb\x00\x1b[31m\x7f\x85\u2028\u202ec\ud800",
        y={"z": ["d\te"]},
        n=5,
    )
    assert shown == "ab[31mc|de|5"


def test_template_may_mark_strings_for_translation(tmp_path):
    write(tmp_path / "acme", a__html__j2="{{ _('50 %%') }} {% trans %}hi {{ x }} 5 %{% endtrans %}")
    assert (
        render(Brands(tmp_path, "default"), "acme", "a.html.j2", x="<i>") == "50 % hi &lt;i&gt; 5 %"
    )


def test_template_runs_in_a_sandbox(tmp_path):
    write(tmp_path / "acme", a__txt__j2="{{ x.__class__.__mro__ }}{{ ''.__class__.mro() }}")
    with pytest.raises(SecurityError):
        render(Brands(tmp_path, "default"), "acme", "a.txt.j2", x="")


def test_template_with_a_mistake_is_a_fault_of_the_setup_that_names_the_line(tmp_path):
    write(tmp_path / "acme", verified__html__j2="fine\n{% if %}\n")
    with pytest.raises(SetupError, match=r"acme/verified\.html\.j2, line 2: ") as caught:
        Brands(tmp_path, "default")
    assert "\n" not in str(caught.value)


def test_template_that_is_not_utf8_is_a_fault_of_the_setup(tmp_path):
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "verified.html.j2").write_bytes(b"\xff\xfe")
    with pytest.raises(SetupError, match=r"verified\.html\.j2"):
        Brands(tmp_path, "default")


def test_brand_folders_that_are_missing_are_a_fault_of_the_setup(tmp_path):
    with pytest.raises(SetupError, match="templates"):
        Brands(tmp_path / "missing", "default")
    with pytest.raises(SetupError, match="default_brand"):
        Brands(tmp_path, "acme")


def test_shorten_leaves_at_most_so_many_characters():
    assert shorten("short", 5) == "short"
    assert shorten("longer", 5) == "long…"
    assert shorten("a b c d", 5) == "a b…"


@pytest.mark.parametrize(
    ("text", "defused"),
    [
        ("https://evil.example/x", "https:_//evil._example/x"),
        ("www.evil.example", "www._evil._example"),
        ("eve@evil.example", "eve@_evil._example"),
        ("evil。example evil.example", "evil。_example evil._example"),
        ("J.R.R. Tolkien", "J._R._R. Tolkien"),
        ("Dr. No, 5 : 3 @ home", "Dr. No, 5 : 3 @ home"),
    ],
)
def test_defuse_breaks_what_mail_programs_make_links_of(text, defused):
    assert defuse(text) == defused.replace("_", "\u200c")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("alice@example.org", "alice@example.org"),
        ("bob@аpple.com", "bob@xn--pple-43d.com"),
        ("jürgen@bücher.example", "jürgen@xn--bcher-kva.example"),
        ("bob@😀.example", "bob@?.example"),
        ("447700900001", "447700900001"),
        ("", ""),
    ],
)
def test_alabel_shows_what_a_domain_really_is(address, shown):
    """Threat 22."""
    assert alabel(address) == shown


def test_without_controls_leaves_other_text_alone():
    text = "Ünïcode 👩‍💻 שלום «a b»"
    assert without_controls(text) == text
