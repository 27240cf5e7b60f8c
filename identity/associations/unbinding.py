"""`3pid/unbind`: who may revoke an association, and how they show it.

Either with sid and client secret of a validated session for that very 3PID, or by the signature
of the homeserver that the MXID belongs to. An access token alone authorises nothing.

A homeserver reads 400, 404 and 501 as "not supported" and forgets the binding, so a problem
with the credentials never gets one of these (UNB-07).

Source: Matrix Identity Service API, "Establishing associations".
"""

from typing import Any

from flask import Blueprint, Response, jsonify, request

from identity.associations.service import Associations
from identity.errors import (
    Forbidden,
    InvalidEmail,
    InvalidParameter,
    InvalidPhoneNumber,
    SessionError,
    Unauthorized,
    UnrecognizedMedium,
)
from identity.federation.requests import SignedRequests, uri_candidates
from identity.limits.service import Limiter
from identity.limits.subjects import ip_subjects
from identity.mxid import UserId
from identity.threepid import ThreePid
from identity.validation.service import Validation
from identity.validation.session import parse_client_secret
from identity.web.authentication import Authentication
from identity.web.errors import error_response
from identity.web.parameters import Parameters, json_object


class NamedThreePid(Parameters):
    medium: str
    address: str

    def parse_threepid(self) -> ThreePid:
        """Raises: InvalidParameter for a medium that is unknown (TPID-06), or an invalid address."""
        try:
            return ThreePid.parse(self.medium, self.address)
        except UnrecognizedMedium:
            raise InvalidParameter("threepid.medium is not valid") from None
        except (InvalidEmail, InvalidPhoneNumber):
            raise InvalidParameter("threepid.address is not valid") from None


class Unbind(Parameters):
    mxid: str
    threepid: NamedThreePid
    sid: str | None = None
    client_secret: str | None = None


class Unbinding:
    """The two ways, for every path under which the endpoint is served."""

    def __init__(
        self,
        validation: Validation,
        associations: Associations,
        signed_requests: SignedRequests,
        limiter: Limiter,
        authentication: Authentication,
        our_names: tuple[str, ...],
    ) -> None:
        self._validation = validation
        self._associations = associations
        self._signed_requests = signed_requests
        self._limiter = limiter
        self._authentication = authentication
        self._our_names = our_names

    def blueprint(self, name: str, prefix: str) -> Blueprint:
        routes = Blueprint(name, __name__)
        path = f"{prefix}/3pid/unbind"

        @routes.post(path)
        def unbind() -> Response:
            content = json_object()
            body = Unbind.parse(content)
            threepid = body.threepid.parse_threepid()
            try:
                if body.sid is not None and body.client_secret is not None:
                    secret = parse_client_secret(body.client_secret)
                    self._validation.unbind(body.sid, secret, threepid, UserId.parse(body.mxid))
                else:
                    mxid = self._parse_signed(path, content, body.mxid)
                    self._associations.unbind(threepid, mxid)
            except SessionError as error:
                return error_response(error, status=403)
            return jsonify({})

        return routes

    def _parse_signed(self, path: str, content: dict[str, Any], mxid: str) -> UserId:
        """The MXID of a request that its homeserver signed.

        Raises: Unauthorized without a signature, LimitExceeded, Forbidden for a bad one or that of
        another homeserver, HomeserverUnreachable, HomeserversBusy.
        """
        headers = request.headers.getlist("Authorization")
        if not any("x-matrix" in header.lower() for header in headers):
            raise Unauthorized("An unbind needs a validated session or a homeserver's signature")
        self._limiter.spend(*ip_subjects("signed_request_ip", self._authentication.client_ip()))
        uris = uri_candidates(request.environ, path)
        origin = self._signed_requests.verify("POST", uris, headers, content, self._our_names)
        try:
            user_id = UserId.parse(mxid)
        except InvalidParameter:
            # What is no MXID is no homeserver's.
            user_id = None
        if user_id is None or str(user_id.server) != str(origin):
            raise Forbidden("The request is signed by another homeserver than the user's")
        return user_id
