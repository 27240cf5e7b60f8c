"""What is asked without an account: versions, the ping, and the probes of the operator."""

from typing import Any, Final

from flask import Blueprint, Response, jsonify

from identity import schema
from identity.clock import Clock
from identity.database import Database
from identity.errors import StorageUnavailable
from identity.replication.cursors import lagging_peers
from identity.replication.schedule import LAG_MS

_SPECIFICATIONS: Final = [f"v1.{minor}" for minor in range(1, 20)]
# Advertised while the legacy API is on: it is what these versions described.
_LEGACY_SPECIFICATIONS: Final = ["r0.1.0", "r0.2.0", "r0.2.1", "r0.3.0"]


def blueprint(database: Database, clock: Clock, server_name: str, *, legacy: bool) -> Blueprint:
    routes = Blueprint("probes", __name__)
    wanted_revision = schema.head()
    versions = [*(_LEGACY_SPECIFICATIONS if legacy else []), *_SPECIFICATIONS]

    @routes.get("/_matrix/identity/versions")
    def supported_versions() -> dict[str, Any]:
        return {"versions": versions}

    @routes.get("/_matrix/identity/v2")
    def ping() -> dict[str, Any]:
        return {}

    @routes.get("/health")
    def health() -> dict[str, Any]:
        """The process answers."""
        return {"status": "ok"}

    @routes.get("/ready")
    def ready() -> Response:
        """The database answers, and has the schema that this code works with.

        A peer that lags keeps nobody from being served.
        """
        try:
            if database.read(schema.current) != wanted_revision:
                return _not_ready("migrations")
            before_ms = clock.now_ms() - LAG_MS
            lagging = database.read(lambda tx: lagging_peers(tx, server_name, before_ms))
        except StorageUnavailable:
            return _not_ready("database")
        return jsonify({"status": "ok", "degraded": [f"peer:{peer}" for peer in lagging]})

    return routes


def _not_ready(reason: str) -> Response:
    response = jsonify({"status": "unavailable", "reasons": [reason]})
    response.status_code = 503
    return response
