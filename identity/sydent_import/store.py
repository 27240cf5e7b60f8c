"""Statements that only an import needs, one a function."""

from typing import Final

import sqlalchemy as sa

from identity.accounts.models import accounts
from identity.associations.models import statements
from identity.database import Transaction
from identity.invites.models import ephemeral_keys, invites
from identity.lookup.models import peppers
from identity.replication.models import cursors, peers
from identity.sydent_import.conversion import ImportedInvite

_FILLED: Final = (statements, accounts, invites, ephemeral_keys, peers)


def is_empty(tx: Transaction) -> bool:
    """Whether nobody has used the database yet."""
    return not any(
        tx.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).scalar()
        for table in _FILLED
    )


def set_first_pepper(tx: Transaction, pepper: str) -> None:
    """Of a database in which nothing is indexed."""
    tx.execute(peppers.update().values(pepper=pepper))


def insert_invite(
    tx: Transaction,
    invite: ImportedInvite,
    *,
    token_hash: bytes,
    threepid: bytes,
    key_id: str,
    expires_at_ms: int,
) -> None:
    """It has gone out, and waits for the 3PID to be bound, unless it was delivered."""
    tx.execute(
        invites.insert().values(
            token_hash=token_hash,
            token=invite.token,
            threepid=threepid,
            medium=invite.threepid.medium,
            address=invite.threepid.address,
            room_id=invite.room_id,
            sender=str(invite.sender),
            key_id=key_id,
            created_at_ms=invite.created_at_ms,
            expires_at_ms=expires_at_ms,
            live=True,
            delivered_at_ms=invite.delivered_at_ms,
        )
    )


def insert_ephemeral_key(
    tx: Transaction, public_key: bytes, token_hash: bytes, created_at_ms: int
) -> None:
    tx.execute(
        ephemeral_keys.insert().values(
            public_key=public_key, token_hash=token_hash, created_at_ms=created_at_ms
        )
    )


def set_cursor(tx: Transaction, peer: str, acknowledged_id: int) -> None:
    tx.execute(
        cursors.update().where(cursors.c.peer == peer).values(acknowledged_id=acknowledged_id)
    )
