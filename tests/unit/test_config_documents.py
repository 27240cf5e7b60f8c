"""The example file and the documents name the settings that exist, with their real defaults."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from identity.config import parse
from identity.config.environment import CONFIG_VARIABLE, TEST_PREFIX
from identity.config.fields import FIELDS, is_settable, is_table, key_names, section_names

ROOT = Path(__file__).parents[2]
BASE = Path("/etc/identity")
EXAMPLE = (ROOT / "identity.conf.example").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Not there: "[server]" as a heading of a file that is shown, or "[text](link)".
SETTING = re.compile(r"\[([a-z_]+(?:\.[a-z_]+)*)\] ([a-z_]+)")
VARIABLE = re.compile(r"IDENTITY_[A-Z0-9_]+")
TOML_BLOCK = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def places_in(tree: dict, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The place of each key in a decoded file, down to tables whose keys are free."""
    for name, value in tree.items():
        place = (*above, name)
        if isinstance(value, dict) and place not in FIELDS:
            yield from places_in(value, place)
        else:
            yield place


def test_example_as_shipped_changes_nothing():
    assert parse(tomllib.loads(EXAMPLE), {}, BASE) == parse({}, {}, BASE)


def test_example_with_every_line_in_use_has_every_key_with_its_default():
    tree = tomllib.loads(re.sub(r"^#(?=[a-z_]+ = )", "", EXAMPLE, flags=re.MULTILINE))
    assert set(places_in(tree)) == set(FIELDS)
    assert parse(tree, {}, BASE) == parse({}, {}, BASE)


def test_example_explains_each_section():
    headings = re.findall(r"^\[(.+)\]$", EXAMPLE, re.MULTILINE)
    free = [place for place in FIELDS if is_table(FIELDS[place]) and ".".join(place) in headings]
    assert sorted(headings) == sorted(".".join(place) for place in [*section_names(), *free])


def test_example_gives_each_key_its_own_explanation():
    """A comment goes before each key, or before a few that belong together."""
    lines = EXAMPLE.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#[a-z_]+ = ", line):
            before = next(text for text in reversed(lines[:number]) if not re.match("#[a-z]", text))
            assert before.startswith("# "), line


def unknown_settings(text: str) -> list[str]:
    """What a document names and nobody can set."""
    unknown = [
        variable
        for variable in VARIABLE.findall(text)
        if variable != CONFIG_VARIABLE
        and not variable.startswith(TEST_PREFIX)
        and not is_settable(tuple(variable.removeprefix("IDENTITY_").lower().split("__")))
    ]
    for section, key in SETTING.findall(text):
        place = tuple(section.split("."))
        if place in FIELDS and is_table(FIELDS[place]):
            known = is_settable((*place, key))
        else:
            known = place in section_names() and key in key_names(place)
        if not known:
            unknown.append(f"[{section}] {key}")
    for block in TOML_BLOCK.findall(text):
        unknown += [
            f"[{'.'.join(place[:-1])}] {place[-1]}"
            for place in places_in(tomllib.loads(block))
            if not is_settable(place)
        ]
    return unknown


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_only_settings_that_exist(document):
    assert unknown_settings(document.read_text(encoding="utf-8")) == []


def test_example_names_only_settings_that_exist():
    assert unknown_settings(EXAMPLE) == []


def test_unknown_settings_in_a_document_are_found():
    text = """
    `[server] nmae`, `[sever] name`, `[sms.twilio] url`, `[email] smtp_password_file`,
    IDENTITY_SERVER__NMAE, IDENTITY_CONFIG, IDENTITY_TEST_POSTGRES, IDENTITY_SMS__HTTP__HEADERS__X
```toml
[server]
name = "a"
trusted = true
[rate_limits.limits]
email_ip = "1/h"
```
"""
    assert unknown_settings(text) == [
        "IDENTITY_SERVER__NMAE",
        "[server] nmae",
        "[sever] name",
        "[sms.twilio] url",
        "[server] trusted",
    ]
