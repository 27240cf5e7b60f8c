"""What the database knows of the keys: never a secret."""

from typing import Final

import sqlalchemy as sa

from identity.database import metadata

# A host that lacks a key named here refuses to start: it would seal or sign wrongly.
signing_keys: Final = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("key_id", sa.String(64), primary_key=True),
    sa.Column("public_key", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    # Set once every live host has the key; the newest active key signs.
    sa.Column("active_at_ms", sa.BigInteger),
    sa.Column("revoked_at_ms", sa.BigInteger),
)

storage_keys: Final = sa.Table(
    "storage_keys",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("fingerprint", sa.LargeBinary(16), nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
)

# One row for each running `identity serve`, refreshed by its courier.
hosts: Final = sa.Table(
    "hosts",
    metadata,
    sa.Column("host_id", sa.String(32), primary_key=True),
    sa.Column("key_names", sa.Text, nullable=False),
    sa.Column("seen_at_ms", sa.BigInteger, nullable=False),
)
