"""The WSGI application: routes, and what holds for every answer."""

from typing import Any, Final

import orjson
import structlog
from flask import Blueprint, Flask, Response, request
from flask.json.provider import JSONProvider
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from identity.accounts import routes as accounts_routes
from identity.associations import routes as associations_routes
from identity.associations.unbinding import Unbinding
from identity.errors import BodyTooLarge, IdentityError
from identity.federation.requests import our_names
from identity.internal import routes as internal_routes
from identity.invites import pages as invites_pages
from identity.invites import routes as invites_routes
from identity.keys import routes as keys_routes
from identity.legacy import routes as legacy_routes
from identity.lookup import routes as lookup_routes
from identity.replication import routes as replication_routes
from identity.replication.copies import Copies
from identity.replication.receiving import Receiver
from identity.replication.sydent import routes as sydent_routes
from identity.replication.sydent.receiving import SydentReceiver
from identity.services import Services
from identity.terms import routes as terms_routes
from identity.threepid import Medium
from identity.validation import pages as validation_pages
from identity.validation import routes as validation_routes
from identity.web import probes
from identity.web.authentication import Authentication
from identity.web.errors import error_response, json_error
from identity.web.pages import Pages
from identity.web.surround import REQUEST_ID, route_of_request, surround

log = structlog.get_logger(__name__)

V1: Final = "/_matrix/identity/api/v1"
V2: Final = "/_matrix/identity/v2"

# On every answer, errors and pages too: a browser hides from a client what lacks them.
_CORS: Final = [
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, OPTIONS"),
    (
        "Access-Control-Allow-Headers",
        "Origin, X-Requested-With, Content-Type, Accept, Authorization",
    ),
    ("Access-Control-Max-Age", "86400"),
    ("Access-Control-Expose-Headers", "Retry-After"),
]


def create_app(services: Services) -> Flask:
    """The public API."""
    config = services.config
    legacy = config.legacy_api
    authentication = Authentication(
        services.accounts, services.terms, config.server.trusted_proxies
    )
    unbinding = Unbinding(
        services.validation,
        services.associations,
        services.signed_requests,
        services.limiter,
        authentication,
        our_names(config.server),
    )
    pages = Pages(services.brands, str(config.server.name))
    legacy_core = legacy_routes.core(
        services.validation, authentication, config.validation.next_link_hosts
    )
    return _application(
        config.server.request_body_limit,
        _CORS,
        probes.blueprint(
            services.database, services.clock, str(config.server.name), legacy=legacy.core
        ),
        accounts_routes.blueprint(services.accounts, authentication),
        terms_routes.blueprint(services.terms, authentication),
        *(
            keys_routes.blueprint(services.signing_keys, services.invites.is_valid_key, name, path)
            for name, path in (("keys_v2", V2), ("keys_v1", V1))
        ),
        lookup_routes.blueprint(
            services.lookups, authentication, services.limiter, services.lookup_budget
        ),
        validation_routes.blueprint(
            services.validation, authentication, config.validation.next_link_hosts
        ),
        *(
            validation_pages.blueprint(services.validation, authentication, pages, medium)
            for medium in Medium
        ),
        associations_routes.blueprint(services.validation, authentication),
        unbinding.blueprint("unbind_v2", V2),
        *([unbinding.blueprint("unbind_v1", V1)] if legacy.open else []),
        invites_routes.blueprint(services.invites, authentication, config.server.public_url),
        invites_pages.blueprint(services.invites, pages),
        replication_routes.blueprint(
            replication_routes.PeerRequests(services.peers, str(config.server.name)),
            services.receiver,
            Copies(services.database, services.associations),
        ),
        legacy_routes.lasting(services.invites),
        *([legacy_core] if legacy.core else []),
        *([legacy_routes.open_to_all(services, authentication)] if legacy.open else []),
    )


def create_internal_app(services: Services) -> Flask:
    """The operator's API, without the headers that would open it to web pages."""
    return _application(
        services.config.server.request_body_limit,
        [],
        internal_routes.blueprint(services.associations),
    )


def create_sydent_app(services: Services) -> Flask:
    """What Sydent peers push to, on a listener that asks for their certificates."""
    receiver = Receiver(services.database, services.associations, services.clock)
    return _application(
        sydent_routes.BODY_LIMIT_BYTES,
        [],
        sydent_routes.blueprint(SydentReceiver(services.database, receiver, services.clock)),
    )


def _application(body_limit: int, headers: list[tuple[str, str]], *blueprints: Blueprint) -> Flask:
    app = Flask("identity", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = body_limit
    app.json = _Json(app)
    # Else "//" is answered by a redirect to wherever the Host header says (GEN-17, GEN-22).
    app.url_map.merge_slashes = False
    for blueprint in blueprints:
        app.register_blueprint(blueprint)
    _answer_errors(app)
    app.wsgi_app = surround(app.wsgi_app, headers)  # type: ignore[assignment]
    return app


def _answer_errors(app: Flask) -> None:
    @app.errorhandler(IdentityError)
    def refused(error: IdentityError) -> Response:
        return error_response(error)

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(_error: RequestEntityTooLarge) -> Response:
        return error_response(BodyTooLarge())

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        if request.method == "OPTIONS" and isinstance(error, NotFound):
            # A browser asks this first, and lets a page see the 404 itself only after a 2xx.
            return Response(status=204)
        status = error.code or 500
        errcode = "M_UNRECOGNIZED" if status in (404, 405) else "M_UNKNOWN"
        response = json_error(status, errcode, error.name)
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
        return response

    @app.errorhandler(Exception)
    def fault(error: Exception) -> Response:
        log.error("request_failed", route=route_of_request(), exc_info=error)
        request_id = request.environ[REQUEST_ID]
        return json_error(500, "M_UNKNOWN", "Internal server error", request_id=request_id)


class _Json(JSONProvider):
    """Answers are encoded by orjson; request bodies never come this way."""

    def dumps(self, obj: Any, **_: Any) -> str:
        return orjson.dumps(obj).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        return orjson.loads(s)

    def response(self, *args: Any, **kwargs: Any) -> Response:
        body = orjson.dumps(self._prepare_response_obj(args, kwargs))
        return Response(body, mimetype="application/json")
