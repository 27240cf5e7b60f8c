"""The pages behind links that prove an address, of one medium.

A mailed link opens a page with one button; only its POST validates, so that programs which
open the links of a mail validate nothing. The GET of the specification validates for those who
hold all three values; a mail carries it only where `validation.confirm_page` is off. Our text
messages carry a code and no link, but those who make a link of it find the same pages.

Source: Matrix Identity Service API, "Email associations", "Phone number associations";
security.md, "Mail scanners".
"""

from typing import Final

from flask import Blueprint, request
from flask import redirect as flask_redirect
from werkzeug.wrappers import Response

from identity.errors import (
    IdentityError,
    InvalidParameter,
    LimitExceeded,
    MissingParameters,
    SessionExpired,
    SessionUnknown,
    WrongValidationToken,
)
from identity.threepid import Medium
from identity.validation.routes import PREFIX, SubmitToken
from identity.validation.service import Validation
from identity.validation.session import parse_client_secret
from identity.web.authentication import Authentication
from identity.web.errors import set_retry_after, status_and_errcode
from identity.web.pages import Pages

V1_PREFIX: Final = "/_matrix/identity/api/v1/validate"


def blueprint(
    validation: Validation, authentication: Authentication, pages: Pages, medium: Medium
) -> Blueprint:
    routes = Blueprint(f"{medium}_validation_pages", __name__)

    @routes.get(f"{PREFIX}/{medium}/confirm")
    def show() -> Response:
        query = SubmitToken.from_query()
        secret = parse_client_secret(query.client_secret)
        session = validation.get_session(query.sid, secret, medium)
        return pages.render(
            "confirm",
            brand=session.brand,
            form_targets=[session.next_link] if session.next_link else [],
            address=session.threepid.shown(),
            requested_by=session.owner or "",
            sid=query.sid,
            client_secret=query.client_secret,
            token=query.token,
        )

    @routes.post(f"{PREFIX}/{medium}/confirm")
    def confirm() -> Response:
        return submit(SubmitToken.from_json_or_form())

    # On v1 too: mails that were sent long ago point there.
    @routes.get(f"{V1_PREFIX}/{medium}/submitToken")
    @routes.get(f"{PREFIX}/{medium}/submitToken")
    def submit_token() -> Response:
        query = SubmitToken.from_query()
        if request.method == "HEAD":
            # Whoever only asks for the headers has not read the mail.
            return pages.harden(Response(mimetype="text/html"))
        return submit(query)

    def submit(values: SubmitToken) -> Response:
        secret = parse_client_secret(values.client_secret)
        session = validation.submit_token(
            authentication.anonymous(), medium, values.sid, secret, values.token
        )
        if session.next_link:
            return pages.harden(flask_redirect(session.next_link, 303))
        return pages.render("verified", brand=session.brand, address=session.threepid.shown())

    @routes.errorhandler(IdentityError)
    def failed(error: IdentityError) -> Response:
        status, _ = status_and_errcode(error)
        reason = _reason(error)
        if reason is None:
            page = pages.render("error", status=status, title="", message=str(error))
        else:
            page = pages.render("failed", status=status, reason=reason)
        return set_retry_after(page, error)

    return routes


def _reason(error: IdentityError) -> str | None:
    """What the page says; None for a fault that has nothing to do with the link."""
    match error:
        case SessionExpired():
            return "expired"
        case LimitExceeded():
            return "attempts"
        case SessionUnknown() | InvalidParameter() | MissingParameters() | WrongValidationToken():
            return "wrong"
        case _:
            return None
