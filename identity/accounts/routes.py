"""`account/*`. Source: Matrix Identity Service API, "Authentication"."""

from typing import Annotated, Any

from flask import Blueprint, Response, jsonify
from pydantic import Field

from identity.accounts.service import Accounts
from identity.errors import UnknownAccessToken
from identity.web.authentication import Authentication, bearer_token
from identity.web.errors import error_response
from identity.web.parameters import Parameters


class Register(Parameters):
    """Of the OpenID object only these two are needed; the others may be absent (AUTH-03)."""

    # It goes into the URL of a call; those that homeservers give out are far shorter.
    access_token: Annotated[str, Field(min_length=1, max_length=4_096)]
    matrix_server_name: str


def blueprint(accounts: Accounts, authentication: Authentication) -> Blueprint:
    routes = Blueprint("accounts", __name__, url_prefix="/_matrix/identity/v2/account")

    @routes.post("/register")
    def register() -> dict[str, Any]:
        body = Register.from_json()
        token = accounts.register(
            body.matrix_server_name, body.access_token, authentication.client_ip()
        )
        # Older clients read access_token (AUTH-02).
        return {"token": token, "access_token": token}

    @routes.get("")
    def account() -> dict[str, Any]:
        return {"user_id": str(authentication.require())}

    @routes.post("/logout")
    def logout() -> Response:
        # Pending terms block nobody from leaving (AUTH-15).
        try:
            accounts.log_out(bearer_token())
        except UnknownAccessToken as error:
            return error_response(error, errcode="M_UNKNOWN_TOKEN")
        return jsonify({})

    return routes
