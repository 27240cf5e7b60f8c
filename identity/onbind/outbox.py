"""Writing notifications, in the transaction of whatever makes them due."""

import secrets

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
    """The view of a 3PID has a new winner: what was still to be told about it is out of date.

    Every invitation that waits for the 3PID is told to the homeserver of the new MXID, one a
    notification. Without any, a binding of our own is told bare, unless it changes nothing; one
    that came from a peer is not: that peer tells it.
    """
    store.end_open(tx, threepid, "stale")
    if winner.statement.mxid is None:
        return
    mxid = str(winner.statement.mxid)
    waiting = invites_store.waiting_invites(tx, threepid, now_ms)
    for invite in waiting:
        add(tx, threepid, mxid, winner.signed, invite.token_hash, now_ms)
    if not waiting and ours and mxid != previous_mxid:
        add(tx, threepid, mxid, winner.signed, None, now_ms)


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
            outcome=None,
            last_error=None,
        ),
    )
