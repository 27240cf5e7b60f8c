"""Pages for people who were invited and have no account.

Behind the short link of a text message: who invites, and the way into a web client. Behind "do
not mail me again": opening it does nothing, its button does.
"""

from typing import Any

from flask import Blueprint
from werkzeug.wrappers import Response

from identity.errors import IdentityError, InvalidParameter, InviteUnknown, MissingParameters
from identity.invites.invite import SHORT_PATH, SPACE, TEXTS
from identity.invites.service import REFUSE_PATH, Invites
from identity.web.errors import set_retry_after, status_and_errcode
from identity.web.pages import Pages
from identity.web.parameters import Parameters


class RefuseMail(Parameters):
    token: str
    code: str


def blueprint(invites: Invites, pages: Pages) -> Blueprint:
    routes = Blueprint("invite_pages", __name__)

    @routes.get(f"{SHORT_PATH}/<seed>")
    def open_invitation(seed: str) -> Response:
        opened = invites.open(seed)
        request = opened.request
        texts: dict[str, Any] = {name: request.texts.get(name, "") for name in TEXTS}
        return pages.render(
            "invitation",
            brand=request.brand,
            **texts,
            is_space=request.texts.get("room_type") == SPACE,
            sender=str(request.sender),
            address=request.threepid.shown(),
            link=opened.link,
            refuse_link=opened.refuse_link,
        )

    @routes.get(REFUSE_PATH)
    def show() -> Response:
        query = RefuseMail.from_query()
        recipient = invites.find_recipient(query.token, query.code)
        return pages.render(
            "refuse",
            medium=recipient.medium,
            address=recipient.shown(),
            token=query.token,
            code=query.code,
        )

    @routes.post(REFUSE_PATH)
    def refuse() -> Response:
        values = RefuseMail.from_json_or_form()
        recipient = invites.refuse_mail(values.token, values.code)
        return pages.render("refused", medium=recipient.medium, address=recipient.shown())

    @routes.errorhandler(IdentityError)
    def failed(error: IdentityError) -> Response:
        status, _ = status_and_errcode(error)
        final = isinstance(error, InviteUnknown | InvalidParameter | MissingParameters)
        message = (
            "This link is not, or not any more, that of an invitation." if final else str(error)
        )
        page = pages.render("error", status=status, title="", message=message, final=final)
        return set_retry_after(page, error)

    return routes
