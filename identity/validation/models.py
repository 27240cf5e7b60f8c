"""Validation sessions and their tokens."""

from typing import Final

import sqlalchemy as sa

from identity.accounts.models import USER_ID
from identity.associations.models import THREEPID
from identity.database import Sealed, metadata

sessions: Final = sa.Table(
    "validation_sessions",
    metadata,
    sa.Column("sid", sa.String(32), primary_key=True),
    # Keyed hash of owner, address and client secret; null once a newer session took its place.
    sa.Column("scope", sa.LargeBinary(32), unique=True),
    sa.Column("owner", USER_ID, index=True),
    sa.Column("medium", sa.String(16), nullable=False),
    sa.Column("threepid", THREEPID, nullable=False, index=True),
    sa.Column("address", Sealed("validation_sessions.address"), nullable=False),
    sa.Column("lowered", Sealed("validation_sessions.lowered")),
    sa.Column("client_secret_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("next_link", Sealed("validation_sessions.next_link")),
    sa.Column("brand", sa.String(64)),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("validated_at_ms", sa.BigInteger),
    # Tokens that were submitted and not found right; counted before they are compared.
    sa.Column("attempts", sa.Integer, nullable=False),
)

# A token is prepared, then sent, then live. A prepared one that is presented did arrive, so it
# counts; but after a while its attempt is free again, since the process may have died.
tokens: Final = sa.Table(
    "validation_tokens",
    metadata,
    sa.Column("token_hash", sa.LargeBinary(32), primary_key=True),
    sa.Column(
        "sid",
        sa.String(32),
        sa.ForeignKey("validation_sessions.sid", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("send_attempt", sa.BigInteger, nullable=False),
    sa.Column("prepared_at_ms", sa.BigInteger, nullable=False),
    sa.Column("live", sa.Boolean, nullable=False),
)
