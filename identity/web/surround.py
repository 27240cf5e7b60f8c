"""What surrounds every request: its id, its headers, its line in the log.

At the level of WSGI, so that it holds for answers that no route of ours made, and costs little.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from flask import request

REQUEST_ID: Final = "identity.request_id"

Headers = list[tuple[str, str]]
Application = Callable[[dict[str, Any], Any], Any]


def surround(application: Application, added: Headers) -> Application:
    """`application`, with the headers `added` and `X-Request-Id` on every answer.

    Every path may end in a slash and is answered directly: a redirect would break signed URIs
    and preflights (GEN-17).
    """
    log = structlog.get_logger(__name__).bind()
    # What went well is told by metrics and by the proxy's log.
    tells_all = log.is_enabled_for(logging.DEBUG)

    def surrounded(environ: dict[str, Any], start_response: Any) -> Any:
        began = time.perf_counter()
        # Only to find a request in the log: it need not be unpredictable.
        request_id = environ[REQUEST_ID] = random.randbytes(8).hex()  # noqa: S311
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        environ["PATH_INFO"] = _without_slash(environ.get("PATH_INFO", ""))
        always = [*added, ("X-Request-Id", request_id)]

        def start(status: str, headers: Headers, exc_info: Any = None) -> Any:
            code = int(status[:3])
            if tells_all or code >= 400:
                (log.debug if code < 400 else log.info)(
                    "request",
                    method=environ["REQUEST_METHOD"],
                    route=route_of_request(),
                    status=code,
                    ms=round((time.perf_counter() - began) * 1000, 1),
                )
            return start_response(status, headers + always, exc_info)

        return application(environ, start)

    return surrounded


def route_of_request() -> str:
    """The rule that matched, not the path or the query: those may hold tokens and addresses."""
    return request.url_rule.rule if request.url_rule else "unknown"


def _without_slash(path: str) -> str:
    if "\0" in path:
        # No path of ours holds one, and not every database takes it for a character.
        return "/"
    return path[:-1] if len(path) > 1 and path.endswith("/") else path
