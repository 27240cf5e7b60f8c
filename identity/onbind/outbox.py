"""Writing notifications, in the transaction of whatever makes them due."""

import secrets
from collections.abc import Iterable

from identity.associations.statement import Logged
from identity.database import Transaction
from identity.invites import store as invites_store
from identity.onbind import store
from identity.onbind.store import Delivery


def follow(
    tx: Transaction,
    threepid: bytes,
    winner: Logged,
    *,
    previous_mxid: str | None,
    ours: bool,
    now_ms: int,
) -> None:
    """The view of a 3PID has a new winner: what was to be told of another is out of date.

    Every invitation that waits for the 3PID is told to the homeserver of the new MXID, one a
    notification. Without any, a binding of our own is told bare, unless it changes nothing; one
    that came from a peer is not: that peer tells it. What is on its way there already stays: a
    homeserver that is told twice of an invitation may throw the invitee out of the room.

    An invitation that was signed for that MXID is not told: its user has joined by the link in
    the mail, and Synapse would make a member an invited person again.
    """
    mxid = None if winner.statement.mxid is None else str(winner.statement.mxid)
    store.end_out_of_date(tx, threepid, mxid)
    if mxid is None:
        return
    on_their_way = store.open_invites(tx, threepid)
    told = False
    for invite in invites_store.waiting_invites(tx, threepid, now_ms):
        if invite.signed_for == mxid:
            invites_store.set_delivered(tx, invite.token_hash, now_ms)
            continue
        if invite.token_hash not in on_their_way:
            add(tx, threepid, mxid, winner.signed, invite.token_hash, now_ms)
        told = True
    if not told and ours and mxid != previous_mxid:
        add(tx, threepid, mxid, winner.signed, None, now_ms)


def find_concerned(tx: Transaction, threepids: Iterable[bytes], now_ms: int) -> set[bytes]:
    """Those for which `follow` has something to do where the winner is a peer's."""
    return store.concerned(tx, list(threepids), now_ms)


def end(tx: Transaction, threepid: bytes) -> None:
    """Nobody is bound any more: nobody is told that somebody is."""
    store.end_out_of_date(tx, threepid, None)


def add(
    tx: Transaction, threepid: bytes, mxid: str, signed: str, invite: bytes | None, now_ms: int
) -> None:
    """One notification, due at once. `signed`: the association, as it stands in the log."""
    store.insert_delivery(
        tx,
        Delivery(
            delivery_id=secrets.token_hex(16),
            threepid=threepid,
            mxid=mxid,
            signed=signed,
            invite=invite,
            created_at_ms=now_ms,
            tries=0,
            next_try_at_ms=now_ms,
            leased_until_ms=0,
            outcome=None,
            last_error=None,
        ),
    )
