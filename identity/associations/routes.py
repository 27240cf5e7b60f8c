"""`3pid/*`: what a validated session is good for.

Source: Matrix Identity Service API, "Establishing associations".
"""

from typing import Any

from flask import Blueprint

from identity.mxid import UserId
from identity.validation.service import Validation
from identity.validation.session import parse_client_secret
from identity.web.authentication import Authentication
from identity.web.parameters import Parameters


class GetValidated(Parameters):
    sid: str
    client_secret: str


class Bind(Parameters):
    sid: str
    client_secret: str
    mxid: str


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

    return routes
