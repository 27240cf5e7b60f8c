"""`3pid/*`: what a validated session is good for.

Source: Matrix Identity Service API, "Establishing associations".
"""

from typing import Any

from flask import Blueprint, Response, jsonify

from identity.errors import (
    InvalidEmail,
    InvalidParameter,
    InvalidPhoneNumber,
    SessionError,
    Unauthorized,
    UnrecognizedMedium,
)
from identity.mxid import UserId
from identity.threepid import ThreePid
from identity.validation.service import Validation
from identity.validation.session import parse_client_secret
from identity.web.authentication import Authentication
from identity.web.errors import error_response
from identity.web.parameters import Parameters


class GetValidated(Parameters):
    sid: str
    client_secret: str


class Bind(Parameters):
    sid: str
    client_secret: str
    mxid: str


class NamedThreePid(Parameters):
    medium: str
    address: str

    def parse_threepid(self) -> ThreePid:
        """Raises: InvalidParameter for a medium that is unknown (TPID-06), or an invalid address."""
        try:
            return ThreePid.parse(self.medium, self.address)
        except UnrecognizedMedium:
            raise InvalidParameter("threepid.medium is not valid") from None
        except (InvalidEmail, InvalidPhoneNumber):
            raise InvalidParameter("threepid.address is not valid") from None


class Unbind(Parameters):
    mxid: str
    threepid: NamedThreePid
    sid: str | None = None
    client_secret: str | None = None


def blueprint(validation: Validation, authentication: Authentication) -> Blueprint:
    routes = Blueprint("associations", __name__, url_prefix="/_matrix/identity/v2/3pid")

    @routes.get("/getValidated3pid")
    def get_validated() -> dict[str, Any]:
        caller = authentication.caller()
        query = GetValidated.from_query()
        secret = parse_client_secret(query.client_secret)
        threepid, validated_at_ms = validation.get_validated(caller, query.sid, secret)
        return {
            "medium": threepid.medium,
            "address": threepid.address,
            "validated_at": validated_at_ms,
        }

    @routes.post("/bind")
    def bind() -> dict[str, Any]:
        caller = authentication.caller()
        body = Bind.from_json_or_form()
        secret = parse_client_secret(body.client_secret)
        return validation.bind(caller, body.sid, secret, UserId.parse(body.mxid))

    @routes.post("/unbind")
    def unbind() -> Response:
        # No access token is asked for: what authorises is the session (UNB-04).
        body = Unbind.from_json()
        mxid, threepid = UserId.parse(body.mxid), body.threepid.parse_threepid()
        if body.sid is None or body.client_secret is None:
            raise Unauthorized("An unbind needs sid and client_secret of a validated session")
        try:
            secret = parse_client_secret(body.client_secret)
            validation.unbind(body.sid, secret, threepid, mxid)
        except SessionError as error:
            # Synapse reads 400 and 404 as "not supported" and forgets the binding (UNB-07).
            return error_response(error, status=403)
        return jsonify({})

    return routes
