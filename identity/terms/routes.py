"""`terms`. Source: Matrix Identity Service API, "Terms of service"."""

from typing import Any

from flask import Blueprint

from identity.terms.service import Terms
from identity.web.authentication import Authentication
from identity.web.parameters import Parameters


class Accept(Parameters):
    user_accepts: list[str]


def blueprint(terms: Terms, authentication: Authentication) -> Blueprint:
    routes = Blueprint("terms", __name__, url_prefix="/_matrix/identity/v2/terms")

    @routes.get("")
    def policies() -> dict[str, Any]:
        return {"policies": terms.documents()}

    @routes.post("")
    def accept() -> dict[str, Any]:
        user_id = authentication.require_account()
        terms.accept(user_id, Accept.from_json().user_accepts)
        return {}

    return routes
