"""`pubkey/*`, on v2 and v1 alike: the room state of old invites points to the v1 paths.

Source: Matrix Identity Service API, "Key management".
"""

from collections.abc import Callable
from typing import Any

from flask import Blueprint

from identity.keys.service import SigningKeys
from identity.web.parameters import Parameters


class IsValid(Parameters):
    public_key: str


def blueprint(
    signing_keys: SigningKeys,
    is_valid_ephemeral_key: Callable[[str], bool],
    name: str,
    prefix: str,
) -> Blueprint:
    routes = Blueprint(name, __name__, url_prefix=f"{prefix}/pubkey")

    @routes.get("/<key_id>")
    def public_key(key_id: str) -> dict[str, Any]:
        return {"public_key": signing_keys.get_public_key(key_id)}

    @routes.get("/isvalid")
    def is_valid() -> dict[str, Any]:
        return {"valid": signing_keys.is_valid(IsValid.from_query().public_key)}

    @routes.get("/ephemeral/isvalid")
    def is_valid_ephemeral() -> dict[str, Any]:
        # Ephemeral keys come with invitations; a long-term key is never one.
        return {"valid": is_valid_ephemeral_key(IsValid.from_query().public_key)}

    return routes
