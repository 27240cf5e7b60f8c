"""Text that strangers wrote, made fit to stand in a message from our address.

Names, addresses and MXIDs come from callers. They are shown, but they must not act: no control
character, no link, no second reading of a domain. Pure: text in, text out.

Source: security.md, threats 18, 19 and 22; CVE-2021-29432 for what happens otherwise.
"""

import re
import unicodedata
from typing import Final

import idna

# Directional characters can make an address read as another one (Unicode TR 36, section 3.1).
_BIDI_CONTROLS: Final = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
# Control characters, lone surrogates, and the separators that end a line or a paragraph.
_CONTROL_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})

_ZWNJ: Final = "\N{ZERO WIDTH NON-JOINER}"
# Where software joins two words to a domain, an address or a URL: after a dot, in all the forms
# that it takes for one, after an "@", and before the "//" of a URL.
_JOINT: Final = re.compile(r"(?<=\S)(?:[.\u2024\u3002\uff0e\uff61@\uff20]|:(?=//))(?=\S)")


def without_controls(value: object) -> object:
    """`value` with the control characters removed from every string in it.

    Keys of mappings are names that templates know, so they stay.
    """
    match value:
        case str():
            return "".join(character for character in value if not _is_control(character))
        case list():
            return [without_controls(item) for item in value]
        case dict():
            return {key: without_controls(item) for key, item in value.items()}
        case _:
            return value


def shorten(text: str, characters: int) -> str:
    """At most `characters` characters, the last of them "…" where something was cut off."""
    text = str(text)
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"


def defuse(text: str) -> str:
    """The text with zero-width non-joiners where mail programs would see a URL or a domain.

    They turn "evil.example" into a link of their own accord. With a ZWNJ after the dot they do
    not, because no domain continues so; a person sees no difference.
    """
    return _JOINT.sub(lambda joint: joint[0] + _ZWNJ, str(text))


def alabel(address: str) -> str:
    """An e-mail address whose domain is shown as A-labels, so that none looks like another.

    Anything without "@" is returned as it is, and so are ASCII domains.
    """
    local, at, domain = str(address).rpartition("@")
    if not at:
        return domain
    try:
        return f"{local}@{ascii_domain(domain)}"
    except idna.IDNAError:
        return f"{local}@{domain.encode('ascii', 'replace').decode()}"


def ascii_domain(domain: str) -> str:
    """A domain as DNS and SMTP carry it. Raises: idna.IDNAError. Source: RFC 5891."""
    return domain if domain.isascii() else idna.encode(domain, uts46=True).decode()


def _is_control(character: str) -> bool:
    return character in _BIDI_CONTROLS or unicodedata.category(character) in _CONTROL_CATEGORIES
