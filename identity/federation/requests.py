"""Requests that a homeserver signed: who signed, and whether it was meant for us.

X-Matrix has no nonce and no time, so a request can be sent again by whoever saw it; what it asks
for must do no harm the second time.

Source: Matrix server-server API, "Request Authentication".
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import structlog

from identity.federation import xmatrix
from identity.federation.keys import HomeserverKeys
from identity.mxid import ServerName

_MAX_LOGGED_CHARACTERS: Final = 255

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
        """The homeserver that signed this request for us: one good signature suffices.

        `uris`: what it may have signed as `uri`, see `uri_candidates`. `authorization`: the values
        of all headers of that name. `content`: the decoded body. `our_names`: see there.

        Raises: Unauthorized, before anyone is asked, when there is no X-Matrix authorization or a
        malformed one, or it is for another server; Forbidden when no signature is good;
        HomeserverUnreachable or HomeserversBusy when that cannot be known.
        """
        signatures = xmatrix.parse(authorization)
        origin = signatures[0].origin
        _require_destination(signatures, our_names)
        keys = self._keys.get(origin)
        request = _Request(method, uris, origin, content, our_names)
