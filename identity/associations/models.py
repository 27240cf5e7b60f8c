"""The statement log, the state of each origin, and the current view."""

from typing import Final

import sqlalchemy as sa

from identity.database import Sealed, metadata

# Compared by code point everywhere, as the conflict rule does: PostgreSQL would use its locale.
SERVER_NAME: Final = sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql")
THREEPID: Final = sa.LargeBinary(32)  # the blind index of medium and address

# One row for each server whose statements we hold, ourselves included. The row of an origin is
# locked while a statement is appended, so ids become visible in the order of their numbers.
origins: Final = sa.Table(
    "origins",
    metadata,
    sa.Column("origin", SERVER_NAME, primary_key=True),
    sa.Column("last_id", sa.BigInteger, nullable=False),
    sa.Column("head", sa.LargeBinary(32), nullable=False),
    # We were restored from a backup, and fetch our own statements back from our peers: until it
    # is done nothing is stated, for its id may be taken.
    sa.Column("recovering", sa.Boolean, nullable=False, server_default=sa.false()),
)

# Append-only: a copy of each origin's log. Two columns of a forgotten statement become null: what
# it said. One that was forgotten before it came here, or was refused, is its leaf alone.
statements: Final = sa.Table(
    "statements",
    metadata,
    sa.Column("origin", SERVER_NAME, primary_key=True),
    sa.Column("origin_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("threepid", THREEPID, index=True),
    sa.Column("ts_ms", sa.BigInteger),
    sa.Column("leaf", sa.LargeBinary(32), nullable=False),
    # Canonical JSON of the six keys and the origin's signatures, exactly as it was signed.
    sa.Column("signed", Sealed("statements.signed")),
    # The lower-cased form of the address, where clients hash that one too.
    sa.Column("lowered", Sealed("statements.lowered")),
)

# The newest statement about each 3PID; null mxid: it was revoked.
associations: Final = sa.Table(
    "associations",
    metadata,
    sa.Column("threepid", THREEPID, primary_key=True),
    sa.Column("ts_ms", sa.BigInteger, nullable=False),
    sa.Column("origin", SERVER_NAME, nullable=False),
    sa.Column("origin_id", sa.BigInteger, nullable=False),
    sa.Column("mxid", sa.String(255), index=True),
    sa.Column("not_before_ms", sa.BigInteger),
    sa.Column("not_after_ms", sa.BigInteger),
    sqlite_with_rowid=False,
)
