"""The X-Matrix scheme: what a homeserver puts into `Authorization`, and what it signs.

Rules:
- the scheme and the names of parameters are of any case, parameters in any order, values quoted
  or bare; unknown parameters are ignored, repeated ones refused;
- the signature is `sig`, as homeservers send it, or `signature`, as the prose of the
  specification has it; `sig` wins;
- signatures by other algorithms than Ed25519 are passed over;
- several signatures come in several headers, which a server in front may have joined by commas;
  they are of one origin for one destination. Other schemes may stand between them;
- the text is read once: no input takes more than time in proportion to its length.

Whether a signature is good, and made for us, is decided in `requests`.
Source: Matrix server-server API, "Request Authentication"; RFC 9110, 5.6 and 11.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from identity.errors import InvalidParameter, Unauthorized
from identity.mxid import ServerName
from identity.signing import ALGORITHM
from identity.strict_json import encode_canonical

MAX_CHARACTERS: Final = 8 * 1024
MAX_SIGNATURES: Final = 4

_SCHEME: Final = "x-matrix"
# Synapse's name for it in requests to identity servers comes first.
_DESTINATION_KEYS: Final = ("destination_is", "destination")

# One item of the comma list, and the blanks and empty items after it: a parameter, before which a
# scheme may begin; or a scheme without parameters, perhaps with a token of its own. Bare values
# may hold more than a token does: colons, which the specification asks for, and base64.
# Possessive throughout, so that nothing is read again and again.
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_ITEM: Final = re.compile(
    rf"""
    (?:
        (?: (?P<scheme> {_WORD} ) [ ]++ )?
        (?P<name> {_WORD} ) [ \t]*+ = [ \t]*+
        (?: "(?P<quoted> (?: [^"\\] | \\. )*+ )" | (?P<bare> [!#-+\--\[\]-~]++ ) )
    |
        (?P<other> {_WORD} ) (?: [ ]++ [^ \t",]++ )?
    )
    [ \t]*+ (?: , [ \t,]*+ | \Z )
    """,
    re.VERBOSE,
)
_ESCAPED: Final = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class XMatrix:
    """Who says to have signed a request, for whom, and how.

    `destination` is None where the homeserver left it out; `signatures` are at least one and at
    most `MAX_SIGNATURES` pairs of key id and base64.
    """

    origin: ServerName
    destination: str | None
    signatures: tuple[tuple[str, str], ...]


def parse(headers: Iterable[str]) -> XMatrix:
    """What all `Authorization` headers of a request say together.

    Raises: Unauthorized when there is no Ed25519 signature, and for anything that is malformed.
    """
    headers = list(headers)
    if sum(map(len, headers)) > MAX_CHARACTERS:
        raise Unauthorized("The X-Matrix authorization is too long")
    found = [
        _read(parameters)
        for text in headers
        for scheme, parameters in _credentials(text)
        if scheme == _SCHEME
    ]
    if len(found) > MAX_SIGNATURES:
        raise Unauthorized("The request has too many signatures")
    signatures = tuple(
        (key_id, signature)
        for _, _, key_id, signature in found
        if key_id.startswith(f"{ALGORITHM}:")
    )
    if not signatures:
        raise Unauthorized("The request must be signed by the homeserver")
    origin, destination, _, _ = found[0]
    if any(item[:2] != (origin, destination) for item in found):
        raise _malformed()
    return XMatrix(origin, destination, signatures)


def signed_messages(
    method: str, uris: Sequence[str], origin: str, destinations: Sequence[str], content: bytes
) -> Iterator[bytes]:
    """Each text that a homeserver may have signed to ask this of us: canonical JSON.

    `content`: the body, as canonical JSON.
    """
    for uri, destination, key in product(uris, destinations, _DESTINATION_KEYS):
        yield _message(method, uri, origin, {key: destination}, content)


def signed_message(method: str, uri: str, origin: str, destination: str, content: bytes) -> bytes:
    """What the specification has a server sign: canonical JSON. `content`: the same, of the body."""
    return _message(method, uri, origin, {"destination": destination}, content)


def _message(
    method: str, uri: str, origin: str, destination: dict[str, str], content: bytes
) -> bytes:
    rest = encode_canonical({**destination, "method": method, "origin": origin, "uri": uri})
    # Of the five keys "content" is the first in order, so a long one is encoded only once.
    return b'{"content":%b,%b' % (content, rest[1:])


def _credentials(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each scheme in `text` with its parameters; schemes and names are in lower case."""
    found: list[tuple[str, list[tuple[str, str]]]] = []
    text = text.strip(" \t,")
    position = 0
    while position < len(text):
        item = _ITEM.match(text, position)
        if item is None:
            raise _malformed()
        if scheme := item["scheme"] or item["other"]:
            found.append((scheme.lower(), []))
        if name := item["name"]:
            if not found:
                raise _malformed()
            value = item["bare"] or _ESCAPED.sub(r"\1", item["quoted"])
            found[-1][1].append((name.lower(), value))
        position = item.end()
    return found


def _read(parameters: list[tuple[str, str]]) -> tuple[ServerName, str | None, str, str]:
    """Origin, destination, key id and signature."""
    values = dict(parameters)
    if len(values) != len(parameters):
        raise _malformed()
    try:
        return (
            ServerName.parse(values["origin"]),
            values.get("destination"),
            values["key"],
            values["sig"] if "sig" in values else values["signature"],
        )
    except (KeyError, InvalidParameter):
        raise _malformed() from None


def _malformed() -> Unauthorized:
    return Unauthorized("The X-Matrix authorization is malformed")
