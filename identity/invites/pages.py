"""The page behind "do not mail me again", for people who have no account.

Opening it does nothing; its button does.
"""

from flask import Blueprint
from werkzeug.wrappers import Response

from identity.errors import IdentityError, InvalidParameter, InviteUnknown, MissingParameters
from identity.invites.service import REFUSE_PATH, Invites
from identity.web.errors import set_retry_after, status_and_errcode
from identity.web.pages import Pages
from identity.web.parameters import Parameters


class RefuseMail(Parameters):
    token: str
    code: str


def blueprint(invites: Invites, pages: Pages) -> Blueprint:
    routes = Blueprint("invite_pages", __name__)

    @routes.get(REFUSE_PATH)
    def show() -> Response:
        query = RefuseMail.from_query()
        address = invites.find_recipient(query.token, query.code)
        return pages.render("refuse", address=address, token=query.token, code=query.code)

    @routes.post(REFUSE_PATH)
    def refuse() -> Response:
        values = RefuseMail.from_json_or_form()
        return pages.render("refused", address=invites.refuse_mail(values.token, values.code))

    @routes.errorhandler(IdentityError)
    def failed(error: IdentityError) -> Response:
        status, _ = status_and_errcode(error)
        final = isinstance(error, InviteUnknown | InvalidParameter | MissingParameters)
        message = "This link is not that of an invitation that was mailed." if final else str(error)
        page = pages.render("error", status=status, title="", message=message, final=final)
        return set_retry_after(page, error)

    return routes
