"""The alphabet of SMS, and what strangers wrote, made fit for a text message: pure.

A message in the GSM 7-bit default alphabet has room for 160 septets; a character of the extension
table takes two, and a single one outside of both would shrink the room to 70. What callers supply
is spelled with that alphabet. It must not act either: phones turn domains, addresses and longer
numbers into something to tap, and read the code that they offer to fill in from the text.

Source: 3GPP TS 23.038, section 6.2.1; security.md, threats 18 and 19.
"""

import re
import unicodedata
from typing import Final

MAX_SEPTETS: Final = 160

_ALPHABET: Final = frozenset(
    "\n\r !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
    "\u00a1\u00a3\u00a4\u00a5\u00a7\u00bf\u00c4\u00c5\u00c6\u00c7\u00c9\u00d1\u00d6\u00d8\u00dc\u00df"
    "\u00e0\u00e4\u00e5\u00e6\u00e8\u00e9\u00ec\u00f1\u00f2\u00f6\u00f8\u00f9\u00fc"
    "\u0393\u0394\u0398\u039b\u039e\u03a0\u03a3\u03a6\u03a8\u03a9"
)
_EXTENSION: Final = frozenset("\f[\\]^{|}~\u20ac")
_KNOWN: Final = _ALPHABET | _EXTENSION
# Letters and signs that Unicode does not take apart.
_SPELLED: Final = {
    "\u0110": "D",
    "\u0111": "d",
    "\u0131": "i",
    "\u0141": "L",
    "\u0142": "l",
    "\u0152": "OE",
    "\u0153": "oe",
    "\u00de": "Th",
    "\u00fe": "th",
    "\u00d0": "D",
    "\u00f0": "d",
    "\u1e9e": "SS",
    "`": "'",
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
}
# Of names, which are shown far shorter than that.
_MAX_CHARACTERS: Final = 256
# A dot or "@" that joins two words to a domain or an address, and what makes a URL of a word.
_JOINT: Final = re.compile(r"(?<=\S)(?:[.@]|:(?=//))(?=\S)")
# Five digits or more, whatever stands between them: a code, or a number to call.
_NUMBER: Final = re.compile(r"\d(?:[\W_]*\d){4,}")


def count_septets(text: str) -> int | None:
    """How much room a text takes; None where the alphabet has no room for it."""
    if not _KNOWN.issuperset(text):
        return None
    return len(text) + sum(character in _EXTENSION for character in text)


def plain(text: str) -> str:
    """What a stranger wrote, on one line, in the alphabet, and without anything to tap or fill in.

    Accents are dropped where need be, other letters are; what is left may be nothing.
    """
    spelled = "".join(map(_spell, unicodedata.normalize("NFC", text[:_MAX_CHARACTERS])))
    one_line = " ".join(spelled.replace("#", " ").split())
    return _JOINT.sub(lambda joint: f"{joint[0]} ", _NUMBER.sub("*", one_line))


def _spell(character: str) -> str:
    if character.isspace():
        return " "
    if character in _ALPHABET:
        return character
    # The extension table is left out: what it holds serves URLs, and costs twice.
    spelled = _SPELLED.get(character) or unicodedata.normalize("NFKD", character)
    return "".join(letter for letter in spelled if letter in _ALPHABET and not letter.isspace())
