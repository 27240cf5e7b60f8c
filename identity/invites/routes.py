"""`store-invite` and `sign-ed25519` on v2, and one's own invitations.

Source: Matrix Identity Service API, "Invitation storage" and "Ephemeral invitation signing".
"""

from collections.abc import Collection
from typing import Any, Final

from flask import Blueprint, request

from identity.errors import UnrecognizedMedium
from identity.invites.invite import InviteRequest, parse_room_id, texts_of
from identity.invites.service import Invites, StoredInvite
from identity.messaging.brands import find_brand_name
from identity.mxid import UserId
from identity.threepid import Medium, ThreePid
from identity.web.authentication import Authentication
from identity.web.parameters import Parameters, json_object

V2: Final = "/_matrix/identity/v2"
OWN: Final = "/_matrix/identity/unstable/org.identity/invites"


class StoreInvite(Parameters):
    medium: str
    address: str
    room_id: str
    sender: str


class SignInvite(Parameters):
    mxid: str
    token: str
    private_key: str


def blueprint(invites: Invites, authentication: Authentication, public_url: str) -> Blueprint:
    routes = Blueprint("invites", __name__)

    @routes.post(f"{V2}/store-invite")
    def store_invite() -> dict[str, Any]:
        caller = authentication.caller()
        stored = invites.store(caller, invite_request(json_object(), invites.media))
        return stored_json(stored, public_url)

    @routes.post(f"{V2}/sign-ed25519")
    def sign() -> dict[str, Any]:
        user_id = authentication.require()
        body = SignInvite.from_json()
        mxid = UserId.parse(body.mxid)
        return invites.sign_for(user_id, mxid, body.token, body.private_key)

    @routes.get(OWN)
    def own() -> dict[str, Any]:
        return {
            "invites": [
                {
                    "token": invite.token,
                    "medium": invite.medium,
                    "address": invite.address,
                    "room_id": invite.room_id,
                    "created_at": invite.created_at_ms,
                    "expires_at": invite.expires_at_ms,
                    "delivered_at": invite.delivered_at_ms,
                    "revoked_at": invite.revoked_at_ms,
                }
                for invite in invites.list(authentication.require())
            ]
        }

    @routes.delete(f"{OWN}/<token>")
    def revoke(token: str) -> dict[str, Any]:
        invites.revoke(token, authentication.require())
        return {}

    return routes


def invite_request(values: dict[str, Any], media: Collection[Medium]) -> InviteRequest:
    """Raises: MissingParameters, InvalidParameter, UnrecognizedMedium, InvalidEmail,
    InvalidPhoneNumber."""
    named = StoreInvite.parse(values)
    medium = Medium.parse(named.medium)
    # Before the address is looked at: whatever it is, nobody is invited by another medium.
    if medium not in media:
        raise UnrecognizedMedium
    return InviteRequest(
        threepid=_recipient(medium, named.address),
        room_id=parse_room_id(named.room_id),
        sender=UserId.parse(named.sender),
        texts=texts_of(values),
        brand=find_brand_name(request.args.get("brand")),
    )


def _recipient(medium: Medium, address: str) -> ThreePid:
    """A phone number is one that could be dialled, for a message will be sent to it."""
    if medium is Medium.EMAIL:
        return ThreePid.email(address)
    return ThreePid.phone(f"+{address.removeprefix('+')}", "")


def stored_json(stored: StoredInvite, public_url: str) -> dict[str, Any]:
    validity = f"{public_url}{V2}/pubkey"
    return {
        "token": stored.token,
        # Dendrite reads this one, Synapse falls back to it (INV-04).
        "public_key": stored.public_key,
        "public_keys": [
            {"public_key": stored.public_key, "key_validity_url": f"{validity}/isvalid"},
            {
                "public_key": stored.ephemeral_public_key,
                "key_validity_url": f"{validity}/ephemeral/isvalid",
            },
        ],
        "display_name": stored.display_name,
    }
