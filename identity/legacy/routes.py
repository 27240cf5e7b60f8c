"""`/_matrix/identity/api/v1`.

It knows no accounts and no terms. What rooms and mails point to for ever is always on; what
homeservers and clients still call is `legacy_api.core`; what tells strangers who is bound, or
binds without an account, is `legacy_api.open`.

Parameters come as JSON where the Content-Type says so, else as a form; with neither, from the
query string. Numbers may be strings.

Source: Matrix Identity Service API r0.3.0.
"""

from typing import Any, Final

from flask import Blueprint, Response

from identity.associations.routes import Bind, GetValidated
from identity.errors import InvalidParameter, TooManyAddresses
from identity.invites.routes import SignInvite, invite_request, stored_json
from identity.invites.service import Invites
from identity.limits.subjects import ip_subjects
from identity.mxid import UserId
from identity.services import Services
from identity.threepid import Medium, ThreePid
from identity.validation.routes import (
    RequestEmailToken,
    RequestPhoneToken,
    SubmitToken,
    send_to_email,
    send_to_phone,
    submit,
)
from identity.validation.service import Validation
from identity.validation.session import parse_client_secret
from identity.web.authentication import Authentication
from identity.web.parameters import Parameters, legacy_parameters

V1: Final = "/_matrix/identity/api/v1"


class Lookup(Parameters):
    medium: str
    address: str


def lasting(invites: Invites) -> Blueprint:
    """What mails and the state of rooms point to: it outlives every switch."""
    routes = Blueprint("legacy_lasting", __name__, url_prefix=V1)

    @routes.post("/sign-ed25519")
    def sign() -> dict[str, Any]:
        values = SignInvite.parse(legacy_parameters())
        return invites.sign(UserId.parse(values.mxid), values.token, values.private_key)

    return routes


def core(
    validation: Validation, authentication: Authentication, next_link_hosts: tuple[str, ...]
) -> Blueprint:
    """What homeservers ask, with parameters as JSON or as a form."""
    routes = Blueprint("legacy_core", __name__, url_prefix=V1)

    @routes.get("")
    def ping() -> dict[str, Any]:
        return {}

    @routes.get("/3pid/getValidated3pid")
    def get_validated() -> dict[str, Any]:
        query = GetValidated.from_query()
        secret = parse_client_secret(query.client_secret)
        threepid, at_ms = validation.get_validated(authentication.anonymous(), query.sid, secret)
        return {"medium": threepid.medium, "address": threepid.address, "validated_at": at_ms}

    @routes.post("/validate/msisdn/requestToken")
    def request_phone_token() -> dict[str, Any]:
        body = RequestPhoneToken.parse(legacy_parameters())
        return send_to_phone(validation, authentication.anonymous(), body, next_link_hosts)

    @routes.post("/validate/msisdn/submitToken")
    def submit_phone_token() -> Response:
        values = SubmitToken.parse(legacy_parameters())
        return submit(validation, authentication.anonymous(), Medium.MSISDN, values)

    return routes


def open_to_all(services: Services, authentication: Authentication) -> Blueprint:
    config = services.config
    associations, validation, invites = (
        services.associations,
        services.validation,
        services.invites,
    )
    public_url = config.server.public_url
    routes = Blueprint("legacy_open", __name__, url_prefix=V1)

    def spend(permits: int) -> None:
        subjects = ip_subjects("legacy_lookup_ip", authentication.client_ip())
        services.lookup_budget.spend(permits, *subjects)

    @routes.get("/lookup")
    def lookup() -> dict[str, Any]:
        query = Lookup.from_query()
        threepid = ThreePid.parse(query.medium, query.address)
        spend(1)
        return associations.find_signed(threepid) or {}

    @routes.post("/bulk_lookup")
    def bulk_lookup() -> dict[str, Any]:
        asked = _pairs(legacy_parameters())
        if len(asked) > config.lookup.max_addresses:
            raise TooManyAddresses(config.lookup.max_addresses)
        spend(max(1, len(asked)))
        return {"threepids": associations.find_mxids(asked)}

    @routes.post("/store-invite")
    def store_invite() -> dict[str, Any]:
        asked = invite_request(legacy_parameters(), invites.media)
        stored = invites.store(authentication.anonymous(), asked)
        return stored_json(stored, public_url)

    @routes.post("/validate/email/requestToken")
    def request_token() -> dict[str, Any]:
        body = RequestEmailToken.parse(legacy_parameters())
        caller = authentication.anonymous()
        return send_to_email(validation, caller, body, config.validation.next_link_hosts)

    @routes.post("/validate/email/submitToken")
    def submit_token() -> Response:
        values = SubmitToken.parse(legacy_parameters())
        return submit(validation, authentication.anonymous(), Medium.EMAIL, values)

    @routes.post("/3pid/bind")
    def bind() -> dict[str, Any]:
        body = Bind.parse(legacy_parameters())
        secret = parse_client_secret(body.client_secret)
        mxid = UserId.parse(body.mxid)
        return validation.bind(authentication.anonymous(), body.sid, secret, mxid)

    return routes


def _pairs(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of medium and address, as they were sent. Raises: InvalidParameter."""
    asked = values.get("threepids")
    if not isinstance(asked, list):
        raise InvalidParameter("threepids must be a list of pairs")
    pairs = []
    for item in asked:
        if not isinstance(item, list) or [type(part) for part in item] != [str, str]:
            raise InvalidParameter("threepids must be a list of pairs")
        pairs.append((item[0], item[1]))
    return pairs
