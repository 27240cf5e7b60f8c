"""`replicate/v2/*`: what peers ask, each request signed by one of their pinned keys.

Who is no peer, or cannot sign, is refused before the body is decoded. The body is canonical JSON, so
the bytes that arrive are those that were signed.

Source: docs/replication.md, "v2: requests"; Matrix server-server API, "Request Authentication".
"""

import zlib
from typing import Any, Final

from flask import Blueprint, Response, request
from unpaddedbase64 import encode_base64

from identity.errors import BadJson, BodyTooLarge, Forbidden, NotJson, Unauthorized, UnknownPeer
from identity.federation import xmatrix
from identity.federation.requests import uri_candidates
from identity.replication.batch import Batch, parse_id
from identity.replication.copies import Copies
from identity.replication.digest import Comparison, Named
from identity.replication.peer import Peer, Protocol
from identity.replication.peers import Peers
from identity.replication.receiving import Receiver
from identity.signing import is_signature
from identity.strict_json import decode_canonical
from identity.web.parameters import read_body

PREFIX: Final = "/_matrix/identity/replicate/v2"
# A batch is 900 KiB at most; room for those of other programs.
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS


class PeerRequests:
    """Reads a request of a peer."""

    def __init__(self, peers: Peers, our_name: str) -> None:
        self._peers = peers
        self._our_name = our_name

    def parse(self) -> tuple[Peer, dict[str, Any]]:
        """Who asks, and the decoded body.

        Raises: Unauthorized, UnknownPeer, Forbidden, BodyTooLarge, BodyTooSlow, NotJson, BadJson.
        """
        claimed = xmatrix.parse(request.headers.getlist("Authorization"))
        if claimed.destination != self._our_name:
            raise Unauthorized("The request is signed for another server")
        peer = self._peers.find(str(claimed.origin))
        if peer is None or peer.protocol is not Protocol.V2:
            raise UnknownPeer
        request.max_content_length = MAX_BODY_BYTES
        body = _inflated(read_body())
        if not any(
            is_signature(message, signature, peer.keys[key_id])
            for message in self._messages(peer, body)
            for key_id, signature in claimed.signatures
            if key_id in peer.keys
        ):
            raise Forbidden("The signature of the peer is not valid")
        self._peers.heard_from(peer.name)
        value = decode_canonical(body)
        if not isinstance(value, dict):
            raise BadJson
        return peer, value

    def _messages(self, peer: Peer, body: bytes) -> list[bytes]:
        return [
            xmatrix.signed_message(request.method, uri, peer.name, self._our_name, body)
            for uri in uri_candidates(request.environ, request.path)
        ]


def blueprint(requests: PeerRequests, receiver: Receiver, copies: Copies) -> Blueprint:
    routes = Blueprint("replication", __name__, url_prefix=PREFIX)

    @routes.post("/push")
    def push() -> dict[str, Any]:
        peer, body = requests.parse()
        received = receiver.receive(peer, Batch.decode(body))
        return {
            "last_id": received.last_id,
            "refused": [
                {"id": origin_id, "reason": reason}
                for origin_id, reason in received.refused.items()
            ],
        }

    @routes.post("/state")
    def state() -> dict[str, Any]:
        peer, _ = requests.parse()
        held = copies.state(peer)
        return {"last_id": held.last_id, "head": encode_base64(held.head)}

    @routes.post("/pull")
    def pull() -> Response:
        peer, body = requests.parse()
        batch = copies.pull(peer, parse_id(body.get("after"), "after", least=0))
        return Response(batch.encode(), mimetype="application/json")

    @routes.post("/compare")
    def compare() -> dict[str, Any]:
        peer, body = requests.parse()
        last_id, differ = copies.compare(peer, Comparison.decode(body))
        return {"last_id": last_id, "differ": differ}

    @routes.post("/repair")
    def repair() -> dict[str, Any]:
        peer, body = requests.parse()
        return {"wanted": copies.repair(peer, Named.decode(body))}

    return routes


def _inflated(body: bytes) -> bytes:
    """Raises: BodyTooLarge, NotJson."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding != "gzip":
        raise NotJson("The encoding of the body is not supported")
    inflater = zlib.decompressobj(_GZIP)
    try:
        inflated = inflater.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error:
        raise NotJson("The body is not valid gzip") from None
    if len(inflated) > MAX_BODY_BYTES:
        raise BodyTooLarge
    if not inflater.eof or inflater.unused_data:
        raise NotJson("The body is not valid gzip")
    return inflated
