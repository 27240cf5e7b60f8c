"""`/_matrix/identity/internal/*`: nobody is asked for a token or a proof.

Whoever reaches the port may bind anything, so it listens on loopback or a private network only,
and never beside the public API. Paths and bodies are those that Sydent has.
"""

from typing import Any

from flask import Blueprint, request

from identity.associations.service import Associations
from identity.errors import Forbidden
from identity.mxid import UserId
from identity.threepid import ThreePid
from identity.web.parameters import Parameters


class NamedAssociation(Parameters):
    medium: str
    address: str
    mxid: str


def blueprint(associations: Associations) -> Blueprint:
    routes = Blueprint("internal", __name__, url_prefix="/_matrix/identity/internal")

    @routes.before_request
    def refuse_web_pages() -> None:
        # A browser on this machine reaches loopback too, for whatever page it shows.
        if "Origin" in request.headers:
            raise Forbidden("Web pages may not use the internal API")

    @routes.post("/bind")
    def bind() -> dict[str, Any]:
        body = NamedAssociation.from_json()
        return associations.bind(ThreePid.parse(body.medium, body.address), UserId.parse(body.mxid))

    @routes.post("/unbind")
    def unbind() -> dict[str, Any]:
        """The same answer whether or not it was bound to that MXID."""
        body = NamedAssociation.from_json()
        associations.unbind(ThreePid.parse(body.medium, body.address), UserId.parse(body.mxid))
        return {}

    return routes
