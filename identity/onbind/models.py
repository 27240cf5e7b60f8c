"""The outbox of notifications to homeservers."""

from typing import Final

import sqlalchemy as sa

from identity.accounts.models import USER_ID
from identity.associations.models import THREEPID
from identity.database import Sealed, metadata

# One row for each notification: of one invitation, or of the bare binding. Written in the
# transaction of the bind; a courier holds a lease while it delivers.
deliveries: Final = sa.Table(
    "deliveries",
    metadata,
    sa.Column("delivery_id", sa.String(32), primary_key=True),
    sa.Column("threepid", THREEPID, nullable=False, index=True),
    sa.Column("mxid", USER_ID, nullable=False),
    # The signed association that is told, as it stands in the statement log.
    sa.Column("signed", Sealed("deliveries.signed"), nullable=False),
    sa.Column("invite", sa.LargeBinary(32)),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    # Null once it is over: delivered, dead, or out of date.
    sa.Column("next_try_at_ms", sa.BigInteger, index=True),
    sa.Column("leased_until_ms", sa.BigInteger, nullable=False),
    sa.Column("outcome", sa.String(16)),
    sa.Column("last_error", sa.String(255)),
)
