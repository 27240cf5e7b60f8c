"""Requests that a homeserver signed: who signed, and whether it was meant for us.

X-Matrix has no nonce and no time, so a request can be sent again by whoever saw it; what it asks
for must do no harm the second time.

Source: Matrix server-server API, "Request Authentication".
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import structlog

from identity.config import Server
from identity.errors import Forbidden, Unauthorized
from identity.federation import xmatrix
from identity.federation.keys import HomeserverKeys, Keys
from identity.mxid import ServerName
from identity.signing import is_signature
from identity.strict_json import encode_canonical

log = structlog.get_logger(__name__)


class SignedRequests:
    """Checks signed requests. One per process; thread-safe."""

    def __init__(self, keys: HomeserverKeys) -> None:
        self._keys = keys

    def verify(
        self,
        method: str,
        uris: Sequence[str],
        authorization: Iterable[str],
        content: dict[str, Any],
        our_names: Sequence[str],
    ) -> ServerName:
        """The homeserver that signed this request for us; one good signature suffices.

        `uris`: what may stand in for the request's target, see `uri_candidates`. `authorization`:
        the values of all headers of that name. `content`: the decoded body. `our_names`: see there.

        Raises: Unauthorized, before anyone is asked, when the request has no X-Matrix
        authorization or a malformed one, or is for another server; Forbidden when no signature is
        good; HomeserverUnreachable or HomeserversBusy when that cannot be known.
        """
        claimed = xmatrix.parse(authorization)
        origin, destination = claimed.origin, claimed.destination
        if destination is not None and not _is_ours(destination, our_names):
            log.info("signed_request_for_another", origin=str(origin), destination=destination)
            raise Unauthorized("The request is signed for another server")
        destinations = our_names if destination is None else [destination]
        keys = self._keys.get(origin)
        try:
            body = encode_canonical(content)
        except ValueError:
            raise Forbidden("The body cannot have been signed") from None

        def is_signed_by(keys: Keys) -> bool:
            messages = xmatrix.signed_messages(method, uris, str(origin), destinations, body)
            return any(
                is_signature(message, signature, keys[key_id])
                for message in messages
                for key_id, signature in claimed.signatures
                if key_id in keys
            )

        if is_signed_by(keys):
            return origin
        # Perhaps by a key that is newer than what we know.
        if any(key_id not in keys for key_id, _ in claimed.signatures) and is_signed_by(
            self._keys.refresh(origin)
        ):
            return origin
        log.info("signed_request_refused", origin=str(origin))
        raise Forbidden("The signature of the homeserver is not valid")


def our_names(server: Server) -> tuple[str, ...]:
    """What homeservers may call us: they sign for whatever a client gave them as `id_server`.

    The server's name, host and port of its public URL, these with the URL's path, the aliases.
    """
    url = urlsplit(server.public_url)
    names = (str(server.name), url.netloc, url.netloc + url.path, *map(str, server.aliases))
    return tuple(dict.fromkeys(names))


def uri_candidates(environ: Mapping[str, Any], path: str) -> tuple[str, ...]:
    """The request's target as it was sent, and `path`, that of the endpoint in the specification.

    A proxy may have changed what was sent; and Synapse always signs the specification's path,
    even where `id_server` has one of its own.
    """
    sent = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    return tuple(dict.fromkeys((sent, path) if sent else (path,)))


def _is_ours(destination: str, our_names: Sequence[str]) -> bool:
    # Clients pass on what people typed: DNS does not mind upper case, nor a proxy a slash more.
    return destination.rstrip("/").lower() in {name.lower() for name in our_names}
