"""What an invitation is: pure.

Rules:
- The ephemeral key pair is made for one invitation. Its private half goes into the message and
  is never stored; whoever presents it with the token has read the message.
- The display name shows neither the whole local part nor the whole domain, of any length.
- What the inviter's homeserver sends is text: it is shown shortened, never followed, and only
  web clients that the operator lists are linked to.
- A text message has no room for the link into a web client. It carries a short one, to a page of
  ours, which ends in the private half itself: so that half is stored nowhere for the page either.

Source: Matrix Identity Service API, "Invitation storage"; MSC3288 for room types.
"""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode

from unpaddedbase64 import decode_base64, encode_base64

from identity.errors import Forbidden, InvalidParameter
from identity.mxid import UserId
from identity.threepid import Medium, ThreePid

MAX_ROOM_ID_BYTES: Final = 255
MAX_TEXT_CHARACTERS: Final = 2_048
SPACE: Final = "m.space"
_TOKEN_BYTES: Final = 24
_LINKED_CHARACTERS: Final = 60
_MXC: Final = re.compile(r"mxc://[0-9A-Za-z.:\[\]-]{1,200}/[0-9A-Za-z_-]{1,50}", re.ASCII)
_SEED: Final = re.compile(r"[0-9A-Za-z_-]{43}", re.ASCII)
# The path of the page behind a short link, before the private half.
SHORT_PATH: Final = "/_matrix/identity/i"
# By what name homeservers ask for a web client other than the configured one.
WEB_CLIENT: Final = "org.matrix.web_client_location"
# The names under which templates and mailed links find what was sent.
TEXTS: Final = (
    "room_alias",
    "room_avatar_url",
    "room_join_rules",
    "room_name",
    "room_type",
    "sender_display_name",
    "sender_avatar_url",
)


@dataclass(frozen=True, slots=True)
class InviteRequest:
    """`store-invite`, parsed. `texts`: every other parameter that is a string, by its name."""

    threepid: ThreePid
    room_id: str
    sender: UserId
    texts: Mapping[str, str] = field(repr=False)
    brand: str | None = None


@dataclass(frozen=True, slots=True)
class BlockList:
    """Whose invitations, into which rooms and with which words are not sent."""

    homeservers: frozenset[str] = frozenset()
    rooms: frozenset[str] = frozenset()
    keywords: tuple[str, ...] = ()

    def check(self, request: InviteRequest) -> None:
        """Raises: Forbidden."""
        if str(request.sender.server).lower() in self.homeservers or request.room_id in self.rooms:
            raise Forbidden("Invitations like this are not sent")
        shown = " ".join(request.texts.values()).casefold()
        if any(keyword.casefold() in shown for keyword in self.keywords):
            raise Forbidden("Invitations like this are not sent")


def new_token() -> str:
    """32 URL-safe characters, 192 random bits: it becomes the key of a state event."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def parse_room_id(text: str) -> str:
    """Any non-empty text of at most 255 bytes: the grammar has changed with room versions.

    Raises: InvalidParameter.
    """
    if not text or not text.isprintable() or len(text.encode()) > MAX_ROOM_ID_BYTES:
        raise InvalidParameter("room_id is not valid")
    return text


def texts_of(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that are text and not too long; what is something else is passed over."""
    return {
        name: value
        for name, value in parameters.items()
        if isinstance(value, str) and len(value) <= MAX_TEXT_CHARACTERS
    }


def redact(threepid: ThreePid) -> str:
    """A display name that does not give the address away: `f...@b...`."""
    local, at, domain = threepid.address.partition("@")
    return f"{_start(local)}...{at}{_start(domain)}..." if at else f"...{local[-2:]}"


def web_client_link(web_client: str, sign_url: str, request: InviteRequest) -> str:
    """The link that Element Web and Element Android parse (INV-10).

    What they call `email` they take for one, so a phone number is not put there.
    """
    texts = request.texts
    avatar = texts.get("room_avatar_url", "")
    email = request.threepid.medium is Medium.EMAIL
    # The mail shows the link, so what others wrote must not make a letter of it.
    query = {
        **({"email": request.threepid.address} if email else {}),
        "signurl": sign_url,
        "room_name": texts.get("room_name", "")[:_LINKED_CHARACTERS],
        "room_avatar_url": avatar if _MXC.fullmatch(avatar) else "",
        "inviter_name": texts.get("sender_display_name", "")[:_LINKED_CHARACTERS],
        "room_type": texts.get("room_type", "")[:_LINKED_CHARACTERS],
        # Guests were given out by servers long gone; clients still expect the names.
        "guest_access_token": "",
        "guest_user_id": "",
    }
    room = quote(request.room_id, safe="!:")
    return f"{web_client}/#/room/{room}?{urlencode(query, quote_via=quote)}"


def short_link(public_url: str, seed: bytes) -> str:
    """To our page about the invitation whose ephemeral key has this seed."""
    return f"{public_url}{SHORT_PATH}/{encode_base64(seed, urlsafe=True)}"


def find_seed(text: str) -> bytes | None:
    """The end of a short link as 32 bytes, if it is one: 43 characters of URL-safe base64."""
    return decode_base64(text) if _SEED.fullmatch(text) else None


def encode_page(request: InviteRequest) -> str:
    """What the page behind a short link shows, as far as nothing else that is kept says it."""
    names = (*TEXTS, WEB_CLIENT)
    texts = {name: request.texts[name] for name in names if request.texts.get(name)}
    return json.dumps({"brand": request.brand, "texts": texts})


def decode_page(page: str, threepid: ThreePid, room_id: str, sender: UserId) -> InviteRequest:
    """The request of which `encode_page` made the page."""
    return InviteRequest(threepid, room_id, sender, **json.loads(page))


def sign_url(public_url: str, token: str, private_key_b64: str) -> str:
    """Where a client lets the invitation be signed. On v1, as Android builds it anyway."""
    query = urlencode({"token": token, "private_key": private_key_b64})
    return f"{public_url}/_matrix/identity/api/v1/sign-ed25519?{query}"


def _start(text: str) -> str:
    """The first characters: never the whole, and at most a third of it."""
    return text[: min(3, len(text) // 3)]
