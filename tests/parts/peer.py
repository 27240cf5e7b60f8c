"""A v2 peer that states, signs and pushes, made independently of the code that judges it.

    peer = FakePeer("peer.test")
    peer.join(server)
    peer.state("alice@example.com", "@alice:hs.test", 1_800_000_000_000)
    assert peer.push(server).json == {"last_id": 1, "refused": []}

It lies where it is told to: everything that is sent can be given in other words.
"""

import gzip
import hashlib
import json
from typing import Any

import canonicaljson
from parts.server import Server
from signedjson.key import decode_signing_key_base64
from signedjson.sign import sign_json
from unpaddedbase64 import encode_base64
from werkzeug.test import TestResponse

from identity.replication.peer import Peer, Protocol, Scope, Supersede

PREFIX = "/_matrix/identity/replicate/v2"
YEARS_100_MS = 3_153_600_000_000


def signing_key(seed: str, version: str = "0") -> Any:
    """The same for the same words."""
    digest = hashlib.sha256(seed.encode()).digest()
    return decode_signing_key_base64("ed25519", version, encode_base64(digest))


def leaf_of(signed: dict[str, Any]) -> bytes:
    return hashlib.sha256(canonicaljson.encode_canonical_json(signed)).digest()


class FakePeer:
    """`log`: id to the signed statement, or to the leaf of one that it has forgotten."""

    def __init__(self, name: str = "peer.test", key: Any = None) -> None:
        self.name = name
        self.key = key or signing_key(name)
        self.log: dict[int, dict[str, Any] | bytes] = {}

    @property
    def key_id(self) -> str:
        return f"{self.key.alg}:{self.key.version}"

    def join(
        self,
        server: Server,
        *,
        scope: Scope | None = None,
        supersede: str = "all",
        keys: dict[str, bytes] | None = None,
        protocol: str = "v2",
        url: str | None = None,
    ) -> Peer:
        """Become a peer of `server`."""
        peer = Peer(
            self.name,
            url or f"https://{self.name}",
            Protocol(protocol),
            keys or {self.key_id: bytes(self.key.verify_key)},
            Supersede(supersede),
            scope or Scope(),
        )
        server.services.peers.add(peer)
        return peer

    def sign(self, statement: dict[str, Any], key: Any = None) -> dict[str, Any]:
        return sign_json(statement, self.name, key or self.key)

    def statement(
        self, address: str, mxid: str | None, ts_ms: int, medium: str = "email"
    ) -> dict[str, Any]:
        """Unsigned; without an MXID a revocation."""
        return {
            "address": address,
            "medium": medium,
            "mxid": mxid,
            "not_after": None if mxid is None else ts_ms + YEARS_100_MS,
            "not_before": None if mxid is None else ts_ms,
            "ts": ts_ms,
        }

    def state(
        self,
        address: str,
        mxid: str | None,
        ts_ms: int,
        *,
        medium: str = "email",
        origin_id: int | None = None,
    ) -> int:
        """Add a statement to the log; returns its id."""
        return self.add(self.sign(self.statement(address, mxid, ts_ms, medium)), origin_id)

    def add(self, signed: dict[str, Any], origin_id: int | None = None) -> int:
        """Add whatever this is to the log; returns its id."""
        origin_id = origin_id or max(self.log, default=0) + 1
        self.log[origin_id] = signed
        return origin_id

    def forget(self, origin_id: int) -> None:
        self.log[origin_id] = self.leaf(origin_id)

    def leaf(self, origin_id: int) -> bytes:
        said = self.log[origin_id]
        return said if isinstance(said, bytes) else leaf_of(said)

    def head(self, up_to: int | None = None) -> bytes:
        """Of the chain, behind an id."""
        head = bytes(32)
        for origin_id in sorted(self.log):
            if up_to is None or origin_id <= up_to:
                head = hashlib.sha256(
                    head + origin_id.to_bytes(8, "big") + self.leaf(origin_id)
                ).digest()
        return head

    def batch(self, after: int = 0, ids: list[int] | None = None, **others: Any) -> dict[str, Any]:
        """The body of a push: all behind `after`, or `ids` alone. `others`: in place of what is
        right."""
        ids = [one for one in sorted(self.log) if one > after] if ids is None else ids
        return {
            "after": after,
            "head": encode_base64(self.head(max(ids, default=after))),
            "statements": [self._item(one) for one in ids],
            **others,
        }

    def push(
        self,
        server: Server,
        after: int = 0,
        ids: list[int] | None = None,
        **others: Any,
    ) -> TestResponse:
        return self.ask(server, "push", self.batch(after, ids, **others))

    def ask(
        self,
        server: Server,
        name: str,
        body: Any,
        *,
        compressed: bool = False,
        headers: dict[str, str] | None = None,
        environ: dict[str, str] | None = None,
        **signed: Any,
    ) -> TestResponse:
        """`body`: an object, or the bytes as they are sent. `signed`: see `authorization`."""
        path = f"{PREFIX}/{name}"
        data = body if isinstance(body, bytes) else canonicaljson.encode_canonical_json(body)
        sent = {
            "Authorization": self.authorization(
                path, data, str(server.config.server.name), **signed
            ),
            "Content-Type": "application/json",
        }
        if compressed:
            sent["Content-Encoding"] = "gzip"
        return server.client.post(
            path,
            data=gzip.compress(data) if compressed else data,
            headers={**sent, **(headers or {})},
            environ_base=environ or {},
        )

    def authorization(
        self,
        uri: str,
        body: bytes,
        destination: str,
        *,
        method: str = "POST",
        key: Any = None,
        key_id: str | None = None,
        signed_uri: str | None = None,
        signed_destination: str | None = None,
    ) -> str:
        rest = {
            "destination": signed_destination or destination,
            "method": method,
            "origin": self.name,
            "uri": signed_uri or uri,
        }
        message = (
            b'{"content":'
            + body
            + b","
            + json.dumps(rest, separators=(",", ":"), sort_keys=True).encode()[1:]
        )
        signature = encode_base64((key or self.key).sign(message).signature)
        return (
            f'X-Matrix origin="{self.name}",destination="{destination}",'
            f'key="{key_id or self.key_id}",sig="{signature}"'
        )

    def _item(self, origin_id: int) -> dict[str, Any]:
        said = self.log[origin_id]
        if isinstance(said, bytes):
            return {"id": origin_id, "leaf": encode_base64(said)}
        return {"id": origin_id, "signed": said}
