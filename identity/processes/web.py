"""The web processes: gunicorn with threads, over the one WSGI application.

The application is made in gunicorn's master and shared by the workers, which start with what
it has loaded; connections to databases are opened by each worker for itself. A reload makes a
new one before the old workers go.
"""

import logging
from typing import Any, Final

import structlog
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from identity.app import create_app
from identity.clock import SystemClock
from identity.opening import open_database
from identity.processes.configuration import ConfigSource
from identity.services import assemble

log = structlog.get_logger(__name__)

_HEADER_FIELDS: Final = 50
_KEEPALIVE_SECONDS: Final = 5
# A worker whose main thread hangs is killed; requests are bounded by time-outs of their own.
_WORKER_TIMEOUT_SECONDS: Final = 30
_GRACE_SECONDS: Final = 30


class WebServer(BaseApplication):
    """gunicorn, configured from our configuration alone."""

    def __init__(self, source: ConfigSource) -> None:
        self._source = source
        super().__init__()

    def load_config(self) -> None:
        config = self._source.load()
        settings: dict[str, Any] = {
            "bind": str(config.server.listen),
            "workers": config.worker_count,
            "threads": config.server.threads,
            "worker_class": "gthread",
            "preload_app": True,
            "timeout": _WORKER_TIMEOUT_SECONDS,
            "graceful_timeout": _GRACE_SECONDS,
            "keepalive": _KEEPALIVE_SECONDS,
            "limit_request_fields": _HEADER_FIELDS,
            "logger_class": _Logger,
            "proc_name": "identity",
            # Whom to believe about addresses is [server] trusted_proxies and nothing else.
            "forwarded_allow_ips": "",
            "forwarder_headers": "",
            "control_socket_disable": True,
            "when_ready": lambda _arbiter: log.info("listening", address=str(config.server.listen)),
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        config = self._source.load()
        clock = SystemClock()
        services = assemble(config, open_database(config, clock, migrate=False).database, clock)
        app = create_app(services)
        # A connection may not be shared by two processes; what follows is a fork.
        services.close()
        return app

    def reload(self) -> None:
        self.callable = None
        super().reload()


class _Logger(Logger):
    """gunicorn's messages go where ours go; requests are logged by the application."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log.handlers = []
        self.error_log.propagate = True
        # Its news are for whoever debugs gunicorn; ours say what an operator wants to know.
        self.error_log.setLevel(logging.WARNING)


def run_web(source: ConfigSource) -> None:
    """Serve until SIGTERM; ends the process."""
    WebServer(source).run()
