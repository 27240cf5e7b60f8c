"""Use cases of a receiver of Sydent's pushes: know the peer, take what it states.

Rules:
- The peer is whom its certificate names, and its statements are verified as they came. One with a
  wrong shape or without a good signature refuses the whole push, which says so in a way that a
  Sydent understands; it will send the same again.
- Whatever else is wrong with a statement must not hold up those behind it: it is quarantined, and
  the peer is told that all is well.
- A known id is passed over, whatever is said under it now. One that is new is taken, in whatever
  order they come: a Sydent has no chain, and leaves out what it has replaced.
- Which statement counts is decided by time, never by the order of arrival.

Source: docs/replication.md, "v1".
"""

from collections.abc import Iterable

from identity.associations import store as associations_store
from identity.associations.statement import encode_signed
from identity.clock import Clock
from identity.database import Database, Transaction
from identity.errors import UnknownPeer, VerificationFailed
from identity.replication import cursors, store
from identity.replication.batch import Batch, Item
from identity.replication.peer import Peer, Protocol
from identity.replication.receiving import Receiver
from identity.replication.sydent.wire import Arrived, decode_push, has_shape
from identity.signing import is_signed_by


class SydentReceiver:
    """Takes pushes of Sydent peers. One per process; thread-safe."""

    def __init__(self, database: Database, receiver: Receiver, clock: Clock) -> None:
        self._database = database
        self._receiver = receiver
        self._clock = clock

    def identify(self, names: Iterable[str]) -> Peer:
        """The first of a certificate's names that is a Sydent peer of ours. Raises: UnknownPeer."""
        for name in names:
            peer = self._database.read(lambda tx, name=name: store.find_peer(tx, name))  # type: ignore[misc]
            if peer is not None and peer.protocol is Protocol.SYDENT:
                return peer
        raise UnknownPeer("This peer is not known to this server")

    def receive(self, peer: Peer, body: bytes) -> None:
        """Take a push. Raises: BadJson; VerificationFailed. Then nothing of it is stored."""
        arrived = decode_push(body)
        texts = _verify(peer, arrived)
        now_ms = self._clock.now_ms()

        def read(tx: Transaction) -> set[int]:
            return set(associations_store.find_leaves(tx, peer.name, list(texts)))

        known = self._database.read(read)
        new = {origin_id: text for origin_id, text in texts.items() if origin_id not in known}
        if new:
            judged = {origin_id: peer.judge(text, now_ms) for origin_id, text in new.items()}
            items = tuple(Item.of(origin_id, text) for origin_id, text in new.items())
            self._receiver.take(peer, Batch(0, items, None), judged)
        # It is there, so what waits for it is sent at once.
        self._database.write(lambda tx: cursors.wake(tx, peer.name, now_ms))


def _verify(peer: Peer, arrived: Iterable[Arrived]) -> dict[int, str]:
    """The text of each by its id, in their order. Raises: VerificationFailed."""
    texts, failed = {}, []
    for item in arrived:
        text = _find_text(peer, item)
        if text is None:
            failed.append(str(item.origin_id))
        else:
            texts[item.origin_id] = text
    if failed:
        raise VerificationFailed(failed)
    return texts


def _find_text(peer: Peer, item: Arrived) -> str | None:
    """What is stored of it; None where its shape or signature is wrong."""
    if not has_shape(item.signed) or not is_signed_by(item.signed, peer.name, peer.keys):
        return None
    try:
        return encode_signed(item.signed)
    except ValueError:
        # What was not signed, and is no canonical JSON.
        return None
