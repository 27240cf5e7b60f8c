"""Invitations, their ephemeral keys, and addresses that want none."""

from typing import Final

import sqlalchemy as sa

from identity.accounts.models import USER_ID
from identity.associations.models import THREEPID
from identity.database import Sealed, metadata

# An invitation is prepared, then sent, then live; it ends delivered, revoked or expired.
invites: Final = sa.Table(
    "invites",
    metadata,
    # Keyed hash of the token, by which it is found.
    sa.Column("token_hash", sa.LargeBinary(32), primary_key=True),
    sa.Column("token", Sealed("invites.token"), nullable=False),
    sa.Column("threepid", THREEPID, nullable=False, index=True),
    sa.Column("medium", sa.String(16), nullable=False),
    sa.Column("address", Sealed("invites.address"), nullable=False),
    sa.Column("room_id", sa.String(255), nullable=False),
    sa.Column("sender", USER_ID, nullable=False, index=True),
    # What the page behind a short link shows, as JSON; null where the message itself says it.
    sa.Column("page", Sealed("invites.page")),
    # The key id that was handed out with it: its homeserver's room refers to that key.
    sa.Column("key_id", sa.String(64), nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("live", sa.Boolean, nullable=False),
    sa.Column("delivered_at_ms", sa.BigInteger),
    sa.Column("revoked_at_ms", sa.BigInteger),
    # The last MXID that sign-ed25519 signed it for, by which that user joins.
    sa.Column("signed_for", USER_ID),
)

# Kept for as long as rooms may ask whether they are valid, which is longer than the invitation.
ephemeral_keys: Final = sa.Table(
    "ephemeral_keys",
    metadata,
    sa.Column("public_key", sa.LargeBinary(32), primary_key=True),
    sa.Column("token_hash", sa.LargeBinary(32), nullable=False, index=True),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("revoked_at_ms", sa.BigInteger),
)

# Of phone numbers too. Only the blind index of an address: enough to keep the promise, and nothing more.
unwanted_mail: Final = sa.Table(
    "unwanted_mail",
    metadata,
    sa.Column("threepid", THREEPID, primary_key=True),
    sa.Column("since_ms", sa.BigInteger, nullable=False),
)
