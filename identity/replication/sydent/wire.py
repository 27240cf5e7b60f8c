"""What goes between a Sydent and us: pure.

One request holds up to 100 signed associations, each under the id that it has at its sender, all
six keys in each, null where a revocation has nothing to say. The sender is whom its certificate
names, and only its own statements are in it.

Source: docs/replication.md, "v1".
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from identity import strict_json
from identity.errors import BadJson, NotJson

PATH: Final = "/_matrix/identity/replicate/v1/push"
# Compared as it stands: a Sydent refuses one with a charset.
CONTENT_TYPE: Final = "application/json"
# The only key that a Sydent looks at; its number is part of its program.
KEY_ID: Final = "ed25519:0"
MAX_PUSHED: Final = 100

_KEYS: Final = ("medium", "address", "mxid", "ts", "not_before", "not_after", "signatures")
_TEXT: Final = "sgAssocs"
_ID: Final = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
# Ids are 64-bit integers in both databases.
_MAX_ID: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Arrived:
    """One association as it came: its id at the sender, and the signed object, whatever it holds."""

    origin_id: int
    signed: Any


def encode_push(associations: Iterable[tuple[int, Mapping[str, Any]]]) -> bytes:
    """The body of a push; `associations`: (id, six keys and `signatures`), ids ascending."""
    listed = {
        str(origin_id): {key: signed[key] for key in _KEYS} for origin_id, signed in associations
    }
    return json.dumps({_TEXT: listed}).encode()


def decode_push(body: bytes) -> list[Arrived]:
    """In ascending order of their ids. Raises: BadJson."""
    try:
        value = strict_json.decode(body)
    except NotJson:
        raise BadJson("Malformed JSON") from None
    if not isinstance(value, dict) or _TEXT not in value:
        raise BadJson(f'No "{_TEXT}" key in JSON')
    if not isinstance(value[_TEXT], dict):
        raise BadJson(f'"{_TEXT}" must be an object')
    arrived = [Arrived(_parse_id(text), signed) for text, signed in value[_TEXT].items()]
    return sorted(arrived, key=lambda item: item.origin_id)


def has_shape(signed: Any) -> TypeGuard[dict[str, Any]]:
    """Whether it has the six keys of an association, each of its type, and signatures."""
    return (
        isinstance(signed, dict)
        and isinstance(signed.get("signatures"), dict)
        and isinstance(signed.get("medium"), str)
        and isinstance(signed.get("address"), str)
        and isinstance(signed.get("mxid", 0), str | None)
        and _is_integer(signed.get("ts"))
        and all(
            key in signed and (signed[key] is None or _is_integer(signed[key]))
            for key in ("not_before", "not_after")
        )
    )


def names_of(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Whom a client's certificate names, as `ssl.SSLSocket.getpeercert` gives it.

    First the last CN of its subject, which is what a Sydent goes by; then its DNS names.
    """
    common = [
        value
        for relative_name in certificate.get("subject", ())
        for kind, value in relative_name
        if kind == "commonName"
    ]
    dns = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return tuple(dict.fromkeys([*common[-1:], *dns]))


def is_id(text: str) -> bool:
    """Whether it is the id of a statement, as text."""
    return _ID.fullmatch(text) is not None and int(text) <= _MAX_ID


def _parse_id(text: str) -> int:
    if not is_id(text):
        raise BadJson("An id must be a positive integer")
    return int(text)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
