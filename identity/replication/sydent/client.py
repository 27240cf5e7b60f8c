"""Asking a Sydent: one push over mutual TLS, and what it says to it.

A connection is for one push, as a Sydent keeps none. Of the answer only the status counts, and
with 400 the ids that it found fault with.
"""

import ssl
from typing import Final

from identity.config import Replication
from identity.errors import NotJson, SetupError
from identity.federation.endpoint import Endpoint
from identity.federation.resolver import Resolver
from identity.federation.transport import CallError, Deadline
from identity.replication.client import PUSH_S, PeerError
from identity.replication.sydent.tls import client_context
from identity.replication.sydent.wire import CONTENT_TYPE, PATH, is_id
from identity.strict_json import decode

_HEADERS: Final = {"Content-Type": CONTENT_TYPE, "Connection": "close"}
# A list of 100 ids, and room.
_MAX_ANSWER_BYTES: Final = 64 * 1024


class SydentClient:
    """Pushes to one peer. For one thread at a time."""

    def __init__(self, url: str, tls: ssl.SSLContext, resolver: Resolver) -> None:
        self._endpoint = Endpoint(url, tls, resolver)

    def push(self, body: bytes) -> frozenset[int]:
        """The ids that it found fault with, and then it took nothing; empty: it took all.

        Raises: PeerError.
        """
        try:
            answer = self._endpoint.post(
                PATH, _HEADERS, body, _MAX_ANSWER_BYTES, Deadline.after(PUSH_S)
            )
        except CallError as error:
            raise PeerError(error.reason) from error
        finally:
            self._endpoint.close()
        if 200 <= answer.status < 300:
            return frozenset()
        failed = _find_failed(answer.body) if answer.status == 400 else frozenset()
        if not failed:
            raise PeerError(f"answered {answer.status}")
        return failed


class SydentClients:
    """Makes clients. One per process."""

    def __init__(self, settings: Replication, resolver: Resolver) -> None:
        self._settings = settings
        self._resolver = resolver
        self._tls: ssl.SSLContext | None = None

    def open(self, url: str) -> SydentClient:
        """Raises: PeerError where the configuration names no certificate that can be shown."""
        if self._tls is None:
            # Only now: most servers have no such peers, and need no certificate.
            try:
                self._tls = client_context(self._settings)
            except SetupError as error:
                raise PeerError("no certificate of ours that can be used") from error
        return SydentClient(url, self._tls, self._resolver)


def _find_failed(body: bytes) -> frozenset[int]:
    """The ids of an answer M_VERIFICATION_FAILED; of another none."""
    try:
        value = decode(body)
    except NotJson:
        return frozenset()
    if not isinstance(value, dict) or value.get("errcode") != "M_VERIFICATION_FAILED":
        return frozenset()
    failed = value.get("failed_ids")
    listed = failed if isinstance(failed, list) else []
    return frozenset(int(text) for text in listed if isinstance(text, str) and is_id(text))
