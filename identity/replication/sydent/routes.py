"""Sydent's push, on a listener of its own that asks for certificates; see docs/replication.md, "v1".

Content-Type and errors are as a Sydent has them, which differs from the rest of the API.
"""

from typing import Any, Final

from flask import Blueprint, request
from werkzeug.exceptions import HTTPException

from identity.errors import NotJson
from identity.replication.peer import Peer
from identity.replication.sydent.receiving import SydentReceiver
from identity.replication.sydent.wire import CONTENT_TYPE, PATH, names_of
from identity.web.parameters import read_body

# As much as any replication request may hold.
BODY_LIMIT_BYTES: Final = 4 * 1024 * 1024
# What the server has put there: the connection that the request came by.
SOCKET: Final = "gunicorn.socket"
_PIECE_BYTES: Final = 64 * 1024


def blueprint(receiver: SydentReceiver) -> Blueprint:
    routes = Blueprint("sydent", __name__)

    @routes.post(PATH)
    def push() -> dict[str, Any]:
        try:
            peer = _sender(receiver)
        except Exception:
            _throw_body_away()
            raise
        receiver.receive(peer, read_body())
        return {"success": True}

    return routes


def _sender(receiver: SydentReceiver) -> Peer:
    """Raises: UnknownPeer, NotJson."""
    peer = receiver.identify(names_of(request.environ[SOCKET].getpeercert()))
    if request.headers.get("Content-Type") != CONTENT_TYPE:
        raise NotJson("This endpoint expects JSON")
    return peer


def _throw_body_away() -> None:
    """Unread bytes would end the connection before the answer has arrived."""
    try:
        while request.stream.read(_PIECE_BYTES):
            pass
    except (HTTPException, OSError):
        # It is too large, or the peer has gone.
        return
