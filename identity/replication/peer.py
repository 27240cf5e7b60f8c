"""Who a peer is, and what it may state: pure.

Rules:
- A peer states in its own name only: each statement carries a signature by one of the keys that
  are pinned for it.
- It speaks within its scope, about canonical addresses, and never from the future. A Sydent's
  addresses are made canonical, and what else it signed is no part of its statement.
- A statement is judged alone; what is refused has no effect and stands in nobody's way.

Source: docs/replication.md, "push".
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self
from urllib.parse import urlsplit

import orjson

from identity.associations.statement import Statement, Version
from identity.clock import MINUTE_MS
from identity.errors import InvalidParameter, InvalidRequest
from identity.mxid import ServerName, UserId
from identity.signing import ALGORITHM, is_signed_by
from identity.strict_json import MAX_INTEGER, encode_canonical, encode_decoded
from identity.threepid import Medium, ThreePid

# How far ahead of ours another server's clock may be.
MAX_AHEAD_MS: Final = 10 * MINUTE_MS
# Six fields of bounded length and some signatures; what is longer is no statement.
MAX_SIGNED_CHARACTERS: Final = 4_096
# A Sydent may have signed more than that: all invitations that waited for a binding, for example.
MAX_SYDENT_CHARACTERS: Final = 64 * 1_024
MAX_URL_CHARACTERS: Final = 2_048

_KEYS: Final = frozenset(
    {"address", "medium", "mxid", "not_after", "not_before", "signatures", "ts"}
)
_TEXTS: Final = ("address", "medium")
_KEY_ID: Final = re.compile(rf"{ALGORITHM}:[0-9A-Za-z_]{{1,32}}", re.ASCII)
_DOMAIN: Final = re.compile(r"[^\s@]{1,253}")
_PREFIX: Final = re.compile(r"[1-9][0-9]{0,14}", re.ASCII)


class Protocol(StrEnum):
    """How a peer is spoken with."""

    V2 = "v2"
    SYDENT = "sydent"


class Supersede(StrEnum):
    """Whose statements a peer may replace by newer ones."""

    ALL = "all"
    OWN = "own"


class Reason(StrEnum):
    """Why a statement is refused; the words are those of the protocol."""

    SHAPE = "shape"
    ADDRESS = "address"
    SIGNATURE = "signature"
    SCOPE = "scope"
    FUTURE = "future"
    SUPERSEDE = "supersede"
    FORK = "fork"


@dataclass(frozen=True, slots=True)
class Refusal:
    """`due_at_ms`: when it is to be judged again, of a statement from the future."""

    reason: Reason
    due_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """What a peer may speak for. Empty: no limit of that kind.

    `domains`: of e-mail addresses, exactly. `prefixes`: of phone numbers, digits without "+".
    """

    media: frozenset[Medium] = frozenset()
    domains: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls, media: Iterable[str] = (), domains: Iterable[str] = (), prefixes: Iterable[str] = ()
    ) -> Self:
        """Domains or prefixes without media limit the media, too: who named an e-mail domain did
        not mean every phone number.

        Raises: UnrecognizedMedium, InvalidParameter.
        """
        chosen = frozenset(Medium.parse(medium) for medium in media)
        names = frozenset(domain.lower().removeprefix("@") for domain in domains)
        numbers = tuple(sorted({prefix.removeprefix("+") for prefix in prefixes}))
        if not all(map(_DOMAIN.fullmatch, names)):
            raise InvalidParameter("A domain is not valid")
        if not all(map(_PREFIX.fullmatch, numbers)):
            raise InvalidParameter("A prefix is not valid: it has up to 15 digits")
        limited = {Medium.EMAIL} if names else set()
        limited |= {Medium.MSISDN} if numbers else set()
        return cls(chosen or frozenset(limited), names, numbers)

    def allows(self, threepid: ThreePid) -> bool:
        if self.media and threepid.medium not in self.media:
            return False
        if threepid.medium is Medium.EMAIL:
            return not self.domains or threepid.address.rpartition("@")[2] in self.domains
        return not self.prefixes or threepid.address.startswith(self.prefixes)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that we replicate with. `url`: without a final slash. `keys`: key id to 32 bytes."""

    name: str
    url: str
    protocol: Protocol
    keys: dict[str, bytes]
    supersede: Supersede = Supersede.ALL
    scope: Scope = Scope()

    def judge(self, signed: str, now_ms: int) -> Statement | Refusal:
        """What a statement of this peer says, or why it is refused; `signed`: canonical JSON."""
        sydent = self.protocol is Protocol.SYDENT
        most = MAX_SYDENT_CHARACTERS if sydent else MAX_SIGNED_CHARACTERS
        value = orjson.loads(signed) if len(signed) <= most else {}
        said = _said_by_sydent(value) if sydent else value
        try:
            medium, mxid = parse_shape(said)
        except InvalidRequest:
            return Refusal(Reason.SHAPE)
        try:
            threepid = ThreePid.parse(medium, said["address"])
        except InvalidRequest:
            return Refusal(Reason.ADDRESS)
        if threepid.address != said["address"] and not sydent:
            return Refusal(Reason.ADDRESS)
        encode = encode_canonical if sydent else encode_decoded
        if not is_signed_by(value, self.name, self.keys, encode):
            return Refusal(Reason.SIGNATURE)
        statement = Statement(threepid, mxid, said["ts"], said["not_before"], said["not_after"])
        return self.find_refusal(statement, now_ms) or statement

    def find_refusal(self, statement: Statement, now_ms: int) -> Refusal | None:
        """What is wrong with a statement that is well-formed and signed."""
        if not self.scope.allows(statement.threepid):
            return Refusal(Reason.SCOPE)
        if statement.ts_ms > now_ms + MAX_AHEAD_MS:
            return Refusal(Reason.FUTURE, due_at_ms=statement.ts_ms - MAX_AHEAD_MS)
        return None

    @property
    def replaces_all(self) -> bool:
        """Whether nothing that others stated stands in its way."""
        return self.supersede is Supersede.ALL

    def may_supersede(self, version: Version, current: Version | None) -> bool:
        """Whether a statement of this version may stand beside the one that counts now.

        One that is older has no effect, so it may always.
        """
        return (
            self.replaces_all or current is None or current.origin == self.name or version < current
        )


def parse_shape(value: dict[str, Any]) -> tuple[Medium, UserId | None]:
    """Medium and MXID of what has the form of a statement; its address is any text.

    Raises: InvalidRequest.
    """
    if value.keys() != _KEYS or not all(isinstance(value[name], str) for name in _TEXTS):
        raise InvalidParameter
    signatures = value["signatures"]
    if not isinstance(signatures, dict) or not all(
        isinstance(of_server, dict) and all(isinstance(text, str) for text in of_server.values())
        for of_server in signatures.values()
    ):
        raise InvalidParameter
    validity = (value["not_before"], value["not_after"])
    if value["mxid"] is None:
        mxid, is_timed = None, validity == (None, None)
    elif not isinstance(value["mxid"], str):
        raise InvalidParameter
    else:
        mxid, is_timed = UserId.parse(value["mxid"]), all(map(_is_time, validity))
    if not is_timed or not _is_time(value["ts"]):
        raise InvalidParameter
    return Medium.parse(value["medium"]), mxid


def _said_by_sydent(value: dict[str, Any]) -> dict[str, Any]:
    """What counts of a Sydent's statement: not other keys, not the validity of a revocation, and
    of the signatures only its own, which is checked apart."""
    said = {key: value[key] for key in _KEYS if key in value}
    if isinstance(said.get("signatures"), dict):
        said["signatures"] = {}
    return said | {"not_before": None, "not_after": None} if said.get("mxid") is None else said


def parse_name(text: str) -> str:
    """The name of a server. Raises: InvalidParameter."""
    return str(ServerName.parse(text))


def parse_url(text: str) -> str:
    """Where a peer is reached: https, or http on a network of one's own; no final slash.

    Raises: InvalidParameter.
    """
    try:
        url = urlsplit(text)
        valid = url.scheme in ("https", "http") and bool(url.hostname) and url.port != 0
    except ValueError:
        valid = False
    if (
        not valid
        or not text.isascii()
        or not text.isprintable()
        or " " in text
        or len(text) > MAX_URL_CHARACTERS
        or url.query
        or url.fragment
        or url.username is not None
    ):
        raise InvalidParameter("The URL is not valid")
    return text.rstrip("/")


def parse_key_id(text: str) -> str:
    """`ed25519:<version>`. Raises: InvalidParameter."""
    if not _KEY_ID.fullmatch(text):
        raise InvalidParameter("A key id reads ed25519:<version>")
    return text


def _is_time(value: object) -> bool:
    """Of milliseconds since the epoch; a boolean is none."""
    return type(value) is int and 0 <= value <= MAX_INTEGER
