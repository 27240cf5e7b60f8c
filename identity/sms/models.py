"""How much is sent where, and how many of the codes are proved to have arrived."""

from typing import Final

import sqlalchemy as sa

from identity.database import metadata

# One row a scope (see `identity.sms.traffic`). No number is in it: a block is a keyed hash.
sms_traffic: Final = sa.Table(
    "sms_traffic",
    metadata,
    sa.Column("scope", sa.String(80), primary_key=True),
    # The window at hand.
    sa.Column("admitted", sa.Integer, nullable=False),
    sa.Column("sent", sa.Integer, nullable=False),
    sa.Column("converted", sa.Integer, nullable=False),
    # The UTC day at hand, in days since the epoch.
    sa.Column("day", sa.Integer, nullable=False, index=True),
    sa.Column("day_admitted", sa.Integer, nullable=False),
    sa.Column("day_sent", sa.Integer, nullable=False),
    sa.Column("day_converted", sa.Integer, nullable=False),
    # 0: never paused, or well since.
    sa.Column("paused_until_ms", sa.BigInteger, nullable=False),
)
