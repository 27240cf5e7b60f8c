"""The table of rate limits.

It has a MetaData of its own: with SQLite it lies in a file of its own, `limits.db`, so that
counting neither waits for the database's writer nor asks for its durability; with PostgreSQL
it lies beside the other tables and a migration creates it.
"""

from typing import Final

import sqlalchemy as sa

metadata: Final = sa.MetaData()

# One row is one bucket. It may be deleted when `expires_at_ms` is past: it has been full since
# long. That is a coarse value, so that most spends leave the index as it is.
limits: Final = sa.Table(
    "limits",
    metadata,
    # A keyed hash of limit and subject: whoever reads the table learns no address, IP or MXID.
    sa.Column("key", sa.LargeBinary(32), primary_key=True),
    sa.Column("tat_us", sa.BigInteger, nullable=False),
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False, index=True),
    sqlite_with_rowid=False,
)
