"""`validate/email` and `validate/msisdn`, `requestToken` and `submitToken`, for programs.

Source: Matrix Identity Service API, "Email associations" and "Phone number associations".
"""

from typing import Any, Final

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

PREFIX: Final = "/_matrix/identity/v2/validate"


class RequestToken(Parameters):
    """What the media have in common."""

    client_secret: str
    send_attempt: int | str
    next_link: str | None = None


class RequestEmailToken(RequestToken):
    email: str


class RequestPhoneToken(RequestToken):
    country: str
    phone_number: str


class SubmitToken(Parameters):
    sid: str
    client_secret: str
    token: str


def blueprint(
    validation: Validation, authentication: Authentication, next_link_hosts: tuple[str, ...]
) -> Blueprint:
    routes = Blueprint("validation", __name__, url_prefix=PREFIX)

    @routes.post("/email/requestToken")
    def request_email_token() -> dict[str, Any]:
        caller = authentication.caller()
        body = RequestEmailToken.from_json_or_form()
        return send_to_email(validation, caller, body, next_link_hosts)

    @routes.post("/msisdn/requestToken")
    def request_phone_token() -> dict[str, Any]:
        caller = authentication.caller()
        body = RequestPhoneToken.from_json_or_form()
        return send_to_phone(validation, caller, body, next_link_hosts)

    @routes.post("/email/submitToken")
    def submit_email_token() -> Response:
        caller = authentication.caller()
        return submit(validation, caller, Medium.EMAIL, SubmitToken.from_json_or_form())

    @routes.post("/msisdn/submitToken")
    def submit_phone_token() -> Response:
        caller = authentication.caller()
        return submit(validation, caller, Medium.MSISDN, SubmitToken.from_json_or_form())

    return routes


def send_to_email(
    validation: Validation,
    caller: Caller,
    body: RequestEmailToken,
    next_link_hosts: tuple[str, ...],
) -> dict[str, Any]:
    """The answer to `validate/email/requestToken`."""
    asked = _token_request(ThreePid.email(body.email), body, next_link_hosts)
    return {"sid": validation.request_token(caller, asked)}


def send_to_phone(
    validation: Validation,
    caller: Caller,
    body: RequestPhoneToken,
    next_link_hosts: tuple[str, ...],
) -> dict[str, Any]:
    """The answer to `validate/msisdn/requestToken`, with what clients have come to read in it."""
    number = ThreePid.phone(body.phone_number, body.country)
    asked = _token_request(number, body, next_link_hosts)
    return {
        "sid": validation.request_token(caller, asked),
        "msisdn": number.address,
        "intl_fmt": number.shown(),
        "success": True,
    }


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


def _token_request(
    threepid: ThreePid, body: RequestToken, next_link_hosts: tuple[str, ...]
) -> TokenRequest:
    """Raises: InvalidParameter."""
    return TokenRequest(
        threepid=threepid,
        client_secret=parse_client_secret(body.client_secret),
        send_attempt=parse_send_attempt(body.send_attempt),
        next_link=parse_next_link(body.next_link, next_link_hosts) if body.next_link else None,
        brand=find_brand_name(request.args.get("brand")),
    )
