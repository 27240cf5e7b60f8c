"""Peppers and the lookup index."""

from typing import Final

import sqlalchemy as sa

from identity.associations.models import THREEPID
from identity.database import metadata

# A pepper is indexed in the background, then becomes ready; the newest ready one is current.
# The one before it is answered until it retires.
peppers: Final = sa.Table(
    "peppers",
    metadata,
    sa.Column("pepper_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("pepper", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("ready_at_ms", sa.BigInteger),
    sa.Column("retires_at_ms", sa.BigInteger),
    # How far the background indexing is: every association up to this one is in the index.
    sa.Column("indexed_to", THREEPID),
)

lookup_index: Final = sa.Table(
    "lookup_index",
    metadata,
    sa.Column("pepper_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("tag", sa.LargeBinary(32), primary_key=True),
    sa.Column("threepid", THREEPID, nullable=False),
    sqlite_with_rowid=False,
)
