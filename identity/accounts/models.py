"""Accounts, the access tokens that act for them, and the homeservers that they come from."""

from typing import Final

import sqlalchemy as sa

from identity.database import metadata

USER_ID: Final = sa.String(255)

accounts: Final = sa.Table(
    "accounts",
    metadata,
    sa.Column("user_id", USER_ID, primary_key=True),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
)

# Only the keyed hash of a token is stored.
access_tokens: Final = sa.Table(
    "access_tokens",
    metadata,
    sa.Column("token_hash", sa.LargeBinary(32), primary_key=True),
    sa.Column(
        "user_id",
        USER_ID,
        sa.ForeignKey("accounts.user_id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    # Refreshed at most once an hour, so that reading stays reading.
    sa.Column("used_at_ms", sa.BigInteger, nullable=False, index=True),
)

# By host, in lower case. How long a homeserver has been known says what its accounts may do.
homeservers: Final = sa.Table(
    "homeservers",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("first_seen_at_ms", sa.BigInteger, nullable=False),
)
