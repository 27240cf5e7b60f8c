"""Statements over invitations and ephemeral keys, one a function."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from identity.database import insert
from identity.invites.models import ephemeral_keys, invites, unwanted_mail
from identity.threepid import Medium, ThreePid


@dataclass(frozen=True, slots=True)
class Invite:
    """One row. Times in ms since the epoch; `delivered_at_ms`, `revoked_at_ms`, `signed_for` None:
    not yet; `threepid`: its blind index; `page` None: the message had no short link."""

    token_hash: bytes
    token: str
    threepid: bytes
    medium: str
    address: str
    room_id: str
    sender: str
    page: str | None
    key_id: str
    created_at_ms: int
    expires_at_ms: int
    delivered_at_ms: int | None
    revoked_at_ms: int | None
    signed_for: str | None

    def recipient(self) -> ThreePid:
        return ThreePid(Medium(self.medium), self.address)


def prepare_invite(tx: sa.Connection, invite: Invite, ephemeral_public_key: bytes) -> None:
    """The key is valid from now on; the invitation waits for its message to be accepted."""
    tx.execute(
        invites.insert().values(
            token_hash=invite.token_hash,
            token=invite.token,
            threepid=invite.threepid,
            medium=invite.medium,
            address=invite.address,
            room_id=invite.room_id,
            sender=invite.sender,
            page=invite.page,
            key_id=invite.key_id,
            created_at_ms=invite.created_at_ms,
            expires_at_ms=invite.expires_at_ms,
            live=False,
        )
    )
    tx.execute(
        ephemeral_keys.insert().values(
            public_key=ephemeral_public_key,
            token_hash=invite.token_hash,
            created_at_ms=invite.created_at_ms,
        )
    )


def make_invite_live(tx: sa.Connection, token_hash: bytes) -> None:
    tx.execute(invites.update().where(invites.c.token_hash == token_hash).values(live=True))


def delete_invite(tx: sa.Connection, token_hash: bytes) -> None:
    """Of a message that was not sent."""
    tx.execute(ephemeral_keys.delete().where(ephemeral_keys.c.token_hash == token_hash))
    tx.execute(invites.delete().where(invites.c.token_hash == token_hash))


def find_invite(tx: sa.Connection, token_hash: bytes) -> Invite | None:
    """A live one, whatever has become of it."""
    query = sa.select(invites).where(invites.c.token_hash == token_hash, invites.c.live)
    row = tx.execute(query).first()
    return None if row is None else _invite(row)


def find_invite_by_key(tx: sa.Connection, public_key: bytes) -> Invite | None:
    """The live one with this ephemeral key, unless the key is revoked."""
    query = (
        sa.select(invites)
        .join(ephemeral_keys, ephemeral_keys.c.token_hash == invites.c.token_hash)
        .where(
            ephemeral_keys.c.public_key == public_key,
            ephemeral_keys.c.revoked_at_ms.is_(None),
            invites.c.live,
        )
    )
    row = tx.execute(query).first()
    return None if row is None else _invite(row)


def find_ephemeral_key(tx: sa.Connection, token_hash: bytes) -> bytes | None:
    query = sa.select(ephemeral_keys.c.public_key).where(ephemeral_keys.c.token_hash == token_hash)
    key = tx.execute(query).scalar()
    return None if key is None else bytes(key)


def is_valid_ephemeral_key(tx: sa.Connection, public_key: bytes) -> bool:
    query = sa.select(sa.literal(1)).where(
        ephemeral_keys.c.public_key == public_key, ephemeral_keys.c.revoked_at_ms.is_(None)
    )
    return tx.execute(query).scalar() is not None


def waiting_invites(tx: sa.Connection, threepid: bytes, now_ms: int) -> list[Invite]:
    """Those that a binding of the 3PID fulfils, oldest first."""
    query = (
        sa.select(invites)
        .where(
            invites.c.threepid == threepid,
            invites.c.live,
            invites.c.delivered_at_ms.is_(None),
            invites.c.revoked_at_ms.is_(None),
            invites.c.expires_at_ms > now_ms,
        )
        .order_by(invites.c.created_at_ms)
    )
    return [_invite(row) for row in tx.execute(query)]


def invites_of(tx: sa.Connection, sender: str | None, limit: int) -> list[Invite]:
    """Live invitations, newest first; of one sender, or of all."""
    query = sa.select(invites).where(invites.c.live).order_by(invites.c.created_at_ms.desc())
    if sender is not None:
        query = query.where(invites.c.sender == sender)
    return [_invite(row) for row in tx.execute(query.limit(limit))]


def set_delivered(tx: sa.Connection, token_hash: bytes, now_ms: int) -> None:
    tx.execute(
        invites.update().where(invites.c.token_hash == token_hash).values(delivered_at_ms=now_ms)
    )


def set_signed_for(tx: sa.Connection, token_hash: bytes, mxid: str) -> None:
    tx.execute(invites.update().where(invites.c.token_hash == token_hash).values(signed_for=mxid))


def revoke_invite(tx: sa.Connection, token_hash: bytes, now_ms: int) -> None:
    """With its key: a room that asks is told that it is not valid."""
    for table in (invites, ephemeral_keys):
        tx.execute(
            table.update()
            .where(table.c.token_hash == token_hash, table.c.revoked_at_ms.is_(None))
            .values(revoked_at_ms=now_ms)
        )


def delete_expired(tx: sa.Connection, now_ms: int, prepared_before_ms: int, limit: int) -> int:
    """Those past their time, and those whose message was never accepted; returns how many.

    The key of one that was never delivered stops being valid.
    """
    never_sent = ~invites.c.live & (invites.c.created_at_ms < prepared_before_ms)
    query = (
        sa.select(invites.c.token_hash, invites.c.delivered_at_ms)
        .where((invites.c.expires_at_ms <= now_ms) | never_sent)
        .limit(limit)
    )
    rows = tx.execute(query).all()
    for row in rows:
        if row.delivered_at_ms is None:
            revoke_invite(tx, row.token_hash, now_ms)
        tx.execute(invites.delete().where(invites.c.token_hash == row.token_hash))
    return len(rows)


def refuse_mail(tx: sa.Connection, threepid: bytes, now_ms: int) -> None:
    tx.execute(
        insert(tx, unwanted_mail)
        .values(threepid=threepid, since_ms=now_ms)
        .on_conflict_do_nothing()
    )


def is_mail_refused(tx: sa.Connection, threepid: bytes) -> bool:
    query = sa.select(sa.literal(1)).where(unwanted_mail.c.threepid == threepid)
    return tx.execute(query).scalar() is not None


def _invite(row: Any) -> Invite:
    return Invite(
        token_hash=bytes(row.token_hash),
        token=row.token,
        threepid=bytes(row.threepid),
        medium=row.medium,
        address=row.address,
        room_id=row.room_id,
        sender=row.sender,
        page=row.page,
        key_id=row.key_id,
        created_at_ms=row.created_at_ms,
        expires_at_ms=row.expires_at_ms,
        delivered_at_ms=row.delivered_at_ms,
        revoked_at_ms=row.revoked_at_ms,
        signed_for=row.signed_for,
    )
