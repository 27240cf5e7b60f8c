"""The web processes: gunicorn with threads, over the one WSGI application.

The application is made in gunicorn's master and shared by the workers, which start with what
it has loaded; connections to databases are opened by each worker for itself. A reload makes a
new one before the old workers go.
"""

import gc
import logging
import signal
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from socket import socket
from typing import Any, Final

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from identity.app import create_app, create_internal_app, create_sydent_app
from identity.clock import SystemClock
from identity.config import Config
from identity.opening import open_database
from identity.processes.configuration import ConfigSource
from identity.processes.worker import TlsSocket, Worker
from identity.replication.sydent.tls import server_context
from identity.services import Services, assemble

_HEADER_FIELDS: Final = 50
_KEEPALIVE_SECONDS: Final = 5
# A worker whose main thread hangs is killed; requests are bounded by time-outs of their own.
_WORKER_TIMEOUT_SECONDS: Final = 30
_GRACE_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Site:
    """What one gunicorn serves, by how many workers."""

    create: Callable[[Services], Flask]
    workers: Callable[[Config], int]
    # Made anew at each reload, so a renewed certificate is shown. None: no TLS.
    tls: Callable[[Config], ssl.SSLContext] | None = None


PUBLIC: Final = Site(create_app, lambda config: config.worker_count)
INTERNAL: Final = Site(create_internal_app, lambda _config: 1)
SYDENT: Final = Site(
    create_sydent_app, lambda _config: 1, lambda config: server_context(config.replication)
)


def load_app(config: Config, site: Site = PUBLIC) -> Flask:
    """Read everything that the configuration names. Raises: SetupError, StorageUnavailable."""
    clock = SystemClock()
    services = assemble(config, open_database(config, clock, migrate=False).database, clock)
    try:
        return site.create(services)
    finally:
        # A connection may not be shared by two processes; what follows is a fork.
        services.close()


class WebServer(BaseApplication):
    """gunicorn, configured from our configuration alone. `listener` is its to keep."""

    def __init__(self, source: ConfigSource, listener: socket, site: Site) -> None:
        self._source = source
        self._site = site
        self._listener_fd = listener.detach()
        super().__init__()

    def load_config(self) -> None:
        config = self._source.load()
        settings: dict[str, Any] = {
            "bind": f"fd://{self._listener_fd}",
            "workers": self._site.workers(config),
            "threads": config.server.threads,
            "worker_class": Worker,
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
            # Until now it would have ended the process.
            "when_ready": lambda _arbiter: signal.pthread_sigmask(
                signal.SIG_UNBLOCK, {signal.SIGHUP}
            ),
        }
        if self._site.tls is not None:
            settings |= _tls_settings(config, self._site.tls(config))
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        app = load_app(self._source.load(), self._site)
        # What is loaded stays: no collection need walk it again, and the workers go on sharing it.
        gc.collect()
        gc.freeze()
        return app

    def reload(self) -> None:
        gc.unfreeze()
        self.callable = None
        super().reload()


def _tls_settings(config: Config, context: ssl.SSLContext) -> dict[str, Any]:
    context.sslsocket_class = TlsSocket
    return {
        # That there is one is what switches TLS on; the context is what counts.
        "certfile": str(config.replication.certificate),
        "ssl_context": lambda _config, _default: context,
        "do_handshake_on_connect": False,
        "keepalive": 0,
    }


class _Logger(Logger):
    """gunicorn's messages go where ours go; requests are logged by the application."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log.handlers = []
        self.error_log.propagate = True
        # Its news are for whoever debugs gunicorn; ours say what an operator wants to know.
        self.error_log.setLevel(logging.WARNING)


def run_web(source: ConfigSource, listener: socket, site: Site = PUBLIC) -> None:
    """Serve on a listening socket until SIGTERM; ends the process. SIGHUP waits until it can be
    obeyed, if it is blocked."""
    WebServer(source, listener, site).run()
