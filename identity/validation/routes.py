"""`validate/email/requestToken` and `submitToken`, for programs.

Source: Matrix Identity Service API, "Email associations".
"""

from typing import Any

from flask import Blueprint, Response, request

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
        body = RequestEmailToken.from_json_or_form()
        token_request = TokenRequest(
            threepid=ThreePid.email(body.email),
            client_secret=parse_client_secret(body.client_secret),
            send_attempt=parse_send_attempt(body.send_attempt),
            next_link=parse_next_link(body.next_link, next_link_hosts) if body.next_link else None,
            brand=find_brand_name(request.args.get("brand")),
        )
        return {"sid": validation.request_email_token(caller, token_request)}

    @routes.post("/submitToken")
    def submit_token() -> dict[str, Any] | Response:
        caller = authentication.caller()
        body = SubmitToken.from_json_or_form()
        secret = parse_client_secret(body.client_secret)
        # Older clients look at `success` (AMB-06).
        try:
            validation.submit_token(caller, Medium.EMAIL, body.sid, secret, body.token)
        except SessionUnknown as error:
            return error_response(error, status=400, errcode="M_INVALID_PARAM", success=False)
        except SessionError as error:
            return error_response(error, success=False)
        return {"success": True}

    return routes
