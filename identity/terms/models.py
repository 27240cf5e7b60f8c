"""Accepted terms."""

from typing import Final

import sqlalchemy as sa

from identity.accounts.models import USER_ID
from identity.database import metadata

accepted_terms: Final = sa.Table(
    "accepted_terms",
    metadata,
    sa.Column(
        "user_id",
        USER_ID,
        sa.ForeignKey("accounts.user_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("url", sa.String(2048), primary_key=True),
    sa.Column("accepted_at_ms", sa.BigInteger, nullable=False),
)
