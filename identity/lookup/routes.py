"""`hash_details` and `lookup`. Source: Matrix Identity Service API, "Association lookup"."""

from typing import Any

from flask import Blueprint

from identity.limits.lookup_budget import LookupBudget
from identity.limits.service import Limiter
from identity.lookup.service import Lookups
from identity.web.authentication import Authentication
from identity.web.parameters import Parameters


class Lookup(Parameters):
    algorithm: str
    pepper: str
    addresses: list[str]


def blueprint(
    lookups: Lookups, authentication: Authentication, limiter: Limiter, budget: LookupBudget
) -> Blueprint:
    routes = Blueprint("lookup", __name__, url_prefix="/_matrix/identity/v2")

    @routes.get("/hash_details")
    def hash_details() -> dict[str, Any]:
        user_id = authentication.require_also_by_query()
        limiter.spend(("hash_details_account", str(user_id)))
        pepper, algorithms = lookups.hash_details()
        return {"lookup_pepper": pepper, "algorithms": algorithms}

    @routes.post("/lookup")
    def lookup() -> dict[str, Any]:
        user_id = authentication.require()
        body = Lookup.from_json()
        pepper = lookups.check(body.algorithm, body.pepper, body.addresses)
        budget.spend(len(body.addresses), ("lookup_account", str(user_id)))
        return {"mappings": lookups.find(body.algorithm, pepper, body.addresses)}

    return routes
