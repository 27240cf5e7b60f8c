"""One POST to a provider: what a bounded call to an endpoint means for a message.

Until the request leaves nothing was accepted; from then on it is unclear, unless there is an
answer. Each message has a connection of its own, so that no request is ever sent twice.

Source: security.md, experiment E23.
"""

import contextlib
import ssl
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from identity.federation.endpoint import Answer, Endpoint
from identity.federation.resolver import Resolver, SystemResolver
from identity.federation.transport import CallError, ConnectError, Deadline
from identity.sms.outcome import NotAccepted, Unclear

# An answer of Twilio's has 1 KB.
MAX_BODY_BYTES: Final = 64 * 1024


class Transport:
    """Makes requests. One per process; thread-safe."""

    def __init__(self, resolver: Resolver | None = None, tls: ssl.SSLContext | None = None) -> None:
        """`resolver` and `tls`: others than the system's, for tests."""
        self._resolver = resolver or SystemResolver()
        self._tls = tls or _tls_context()

    def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        deadline: Deadline,
        *,
        reads_body: bool = False,
    ) -> Answer:
        """The answer, whatever its status; only its head is waited for, unless `reads_body`.

        Raises: NotAccepted; Unclear.
        """
        parts = urlsplit(url)
        target = parts._replace(scheme="", netloc="", path=parts.path or "/").geturl()
        server = Endpoint(f"{parts.scheme}://{parts.netloc}", self._tls, self._resolver)
        with contextlib.closing(server):
            try:
                return server.post(
                    target, headers, body, MAX_BODY_BYTES if reads_body else 0, deadline
                )
            except ConnectError as error:
                raise NotAccepted(error.reason, timed_out=error.timed_out) from None
            except CallError as error:
                raise Unclear(error.reason, timed_out=error.timed_out) from None


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
