"""What becomes of a Sydent's rows here: pure.

Rules:
- Its own associations keep their ids and, where they can, their text as it was signed. What it
  stated with more than the six keys, or with a signature that is not good any more, is signed anew
  by its key under the same id. An address that is not canonical is made so, and that statement
  gets a new id, for the old one stays what its peers hold under it.
- It keeps a row for what it has unbound, and signs that only when it sends it. So we sign it, with
  its key, its id and its time.
- What is bound in its own rows and is not among what it finds was revoked by a peer, and stays so.
- The statements of others are taken as they came.
"""

from dataclasses import dataclass
from typing import Any, Final

from identity.associations.statement import VALIDITY_MS, Logged, Statement, encode_signed
from identity.errors import IdentityError, InvalidRequest, NotJson
from identity.invites.invite import parse_room_id
from identity.mxid import ServerName, UserId
from identity.replication.peer import MAX_AHEAD_MS, Peer, Protocol, parse_name, parse_url
from identity.replication.sydent.wire import KEY_ID, has_shape
from identity.signing import PUBLIC_KEY_BYTES, SigningKey, is_signed_by, parse_public_key
from identity.strict_json import MAX_INTEGER, decode
from identity.sydent_import.rows import KnownPeer, Stated, StoredInvite
from identity.threepid import ThreePid

MAX_URL_CHARACTERS: Final = 2_048
_MAX_PEPPER_CHARACTERS: Final = 64
_MAX_TOKEN_CHARACTERS: Final = 255
_SECOND_MS: Final = 1_000


class LeftOut(Exception):
    """The row is of no use here. `reason`: a few fixed words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Own:
    """One of the server's own statements. `repaired`: what was changed, None if nothing.

    `moved`: it needs a new id.
    """

    statement: Statement
    signed: str
    repaired: str | None = None
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Foreign:
    """`checked`: by a key of its origin."""

    logged: Logged
    checked: bool


@dataclass(frozen=True, slots=True)
class ImportedInvite:
    """`key`: the public ephemeral key made with it; None if that is not known."""

    threepid: ThreePid
    room_id: str
    sender: UserId
    token: str
    created_at_ms: int
    delivered_at_ms: int | None
    key: bytes | None


def own(row: Stated, key: SigningKey) -> Own:
    """Raises: LeftOut."""
    threepid = _threepid(row.medium, row.address)
    ts_ms = _time(row.ts_ms)
    moved = threepid.address != row.address
    repaired = "address made canonical" if moved else None
    if row.mxid is None:
        return _sign(Statement(threepid, None, ts_ms, None, None), row, key, repaired, moved=moved)
    if row.signed is None:
        raise LeftOut("revoked by a peer")
    not_before_ms = ts_ms if row.not_before_ms is None else _time(row.not_before_ms)
    not_after_ms = ts_ms + VALIDITY_MS if row.not_after_ms is None else _time(row.not_after_ms)
    statement = Statement(threepid, _user_id(row.mxid), ts_ms, not_before_ms, not_after_ms)
    if not moved:
        signed = _find_object(row.signed)
        said = {name: signed[name] for name in signed if name != "signatures"}
        if said != statement.to_json():
            repaired = "signed with other keys than the six"
        elif not is_signed_by(signed, row.origin, {key.key_id: key.public_key}):
            repaired = "signature not good"
        else:
            return Own(statement, encode_signed(signed))
    return _sign(statement, row, key, repaired, moved=moved)


def foreign(row: Stated, peers: dict[str, Peer], now_ms: int) -> Foreign:
    """`peers`: by name. Raises: LeftOut."""
    signed = _find_object(row.signed)
    if not has_shape(signed) or signed["mxid"] is None or None in _validity(signed):
        raise LeftOut("no association")
    try:
        origin = str(ServerName.parse(row.origin))
    except InvalidRequest:
        raise LeftOut("origin is no server name") from None
    threepid = _threepid(signed["medium"], signed["address"])
    times = (_time(signed["ts"]), *map(_time, _validity(signed)))
    if times[0] > now_ms + MAX_AHEAD_MS:
        raise LeftOut("dated ahead")
    if not isinstance(row.origin_id, int) or row.origin_id < 1:
        raise LeftOut("no id")
    peer = peers.get(origin)
    if peer is not None and not is_signed_by(signed, origin, peer.keys):
        raise LeftOut("signature not good")
    statement = Statement(threepid, _user_id(signed["mxid"]), *times)
    try:
        logged = Logged(origin, row.origin_id, statement, encode_signed(signed))
    except ValueError:
        raise LeftOut("no association") from None
    return Foreign(logged, checked=peer is not None)


def invite(row: StoredInvite) -> ImportedInvite:
    """Raises: LeftOut."""
    if not isinstance(row.token, str) or not 1 <= len(row.token) <= _MAX_TOKEN_CHARACTERS:
        raise LeftOut("no token")
    try:
        room_id = parse_room_id(row.room_id if isinstance(row.room_id, str) else "")
    except InvalidRequest:
        raise LeftOut("room not valid") from None
    sent_s = row.sent_s
    return ImportedInvite(
        _threepid(row.medium, row.address),
        room_id,
        _user_id(row.sender),
        row.token,
        _time(row.received_s or 0) * _SECOND_MS,
        None if sent_s is None else _time(sent_s) * _SECOND_MS,
        None if row.key is None else ephemeral_key(row.key),
    )


def ephemeral_key(text: Any) -> bytes:
    """32 bytes. Raises: LeftOut."""
    key = parse_public_key(text) if isinstance(text, str) else None
    if key is None:
        raise LeftOut("no key")
    return key


def account(user_id: Any) -> UserId:
    """Raises: LeftOut."""
    return _user_id(user_id)


def token(token: Any, user_id: Any) -> tuple[str, UserId]:
    """(access token, whose it is); `user_id` None: nobody's. Raises: LeftOut."""
    if user_id is None:
        raise LeftOut("no such account")
    if not isinstance(token, str) or not token.isascii() or len(token) > _MAX_TOKEN_CHARACTERS:
        raise LeftOut("no token")
    return token, _user_id(user_id)


def accepted(user_id: Any, url: Any) -> tuple[UserId, str]:
    """Raises: LeftOut."""
    if user_id is None:
        raise LeftOut("no such account")
    if not isinstance(url, str) or not 1 <= len(url) <= MAX_URL_CHARACTERS:
        raise LeftOut("no URL")
    return _user_id(user_id), url


def peer(row: KnownPeer, url: str) -> Peer:
    """Raises: LeftOut."""
    if not row.active:
        raise LeftOut("not active")
    keys = [key for text in row.keys if (key := _find_public_key(text)) is not None]
    if not keys:
        raise LeftOut("no key")
    try:
        return Peer(parse_name(row.name), parse_url(url), Protocol.SYDENT, {KEY_ID: keys[0]})
    except IdentityError:
        raise LeftOut("name or URL not valid") from None


def pepper(text: Any) -> str | None:
    """None where it cannot be used here."""
    usable = isinstance(text, str) and text.isprintable() and " " not in text
    return text if usable and 1 <= len(text) <= _MAX_PEPPER_CHARACTERS else None


def _sign(
    statement: Statement, row: Stated, key: SigningKey, repaired: str | None, *, moved: bool
) -> Own:
    signed = encode_signed(key.sign(statement.to_json(), row.origin))
    return Own(statement, signed, repaired, moved)


def _threepid(medium: Any, address: Any) -> ThreePid:
    try:
        return ThreePid.parse(medium, address if isinstance(address, str) else "")
    except InvalidRequest:
        raise LeftOut("address not valid") from None


def _user_id(text: Any) -> UserId:
    try:
        return UserId.parse(text if isinstance(text, str) else "")
    except InvalidRequest:
        raise LeftOut("Matrix ID not valid") from None


def _time(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value <= MAX_INTEGER:
        raise LeftOut("time not valid")
    return value


def _validity(signed: dict[str, Any]) -> tuple[Any, Any]:
    return signed["not_before"], signed["not_after"]


def _find_object(text: Any) -> dict[str, Any]:
    """Empty for what is no JSON object."""
    try:
        value = decode(text.encode()) if isinstance(text, str) else None
    except (NotJson, UnicodeEncodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _find_public_key(text: Any) -> bytes | None:
    """Base64 in any form, or hexadecimal."""
    if not isinstance(text, str):
        return None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    return key if len(key) == PUBLIC_KEY_BYTES else parse_public_key(text)
