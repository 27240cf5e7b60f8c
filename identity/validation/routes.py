"""`validate/email/requestToken` and `submitToken`, for programs.

Source: Matrix Identity Service API, "Email associations".
"""

from typing import Any

from flask import Blueprint, Response, jsonify, request

from identity.accounts.caller import Caller
from identity.errors import SessionError, SessionUnknown
from identity.messaging.brands import find_brand_name
from identity.threepid import Medium, ThreePid
from identity.validation.service import TokenRequest, Validation
from identity.validation.session import parse_client_secret, parse_next_link, parse_send_attempt
from identity.web.authentication import Authentication
from identity.web.errors import error_response
from identity.web.parameters import Parameters

EMAIL_PREFIX = "/_matrix/identity/v2/validate/email"


class RequestEmailToken(Parameters):
    client_secret: str
    email: str
    send_attempt: int | str
    next_link: str | None = None


class SubmitToken(Parameters):
    sid: str
    client_secret: str
    token: str


def blueprint(
    validation: Validation, authentication: Authentication, next_link_hosts: tuple[str, ...]
) -> Blueprint:
    routes = Blueprint("validation", __name__, url_prefix=EMAIL_PREFIX)

    @routes.post("/requestToken")
    def request_token() -> dict[str, Any]:
        caller = authentication.caller()
        asked = email_token_request(RequestEmailToken.from_json_or_form(), next_link_hosts)
        return {"sid": validation.request_email_token(caller, asked)}

    @routes.post("/submitToken")
    def submit_token() -> Response:
        caller = authentication.caller()
        return submit(validation, caller, Medium.EMAIL, SubmitToken.from_json_or_form())

    return routes


def email_token_request(body: RequestEmailToken, next_link_hosts: tuple[str, ...]) -> TokenRequest:
    """Raises: InvalidEmail, InvalidParameter."""
    return TokenRequest(
        threepid=ThreePid.email(body.email),
        client_secret=parse_client_secret(body.client_secret),
        send_attempt=parse_send_attempt(body.send_attempt),
        next_link=parse_next_link(body.next_link, next_link_hosts) if body.next_link else None,
        brand=find_brand_name(request.args.get("brand")),
    )


def submit(validation: Validation, caller: Caller, medium: Medium, values: SubmitToken) -> Response:
    """The answer to a submitted token. Older clients look at `success` (AMB-06)."""
    secret = parse_client_secret(values.client_secret)
    try:
        validation.submit_token(caller, medium, values.sid, secret, values.token)
    except SessionUnknown as error:
        return error_response(error, status=400, errcode="M_INVALID_PARAM", success=False)
    except SessionError as error:
        return error_response(error, success=False)
    return jsonify({"success": True})
