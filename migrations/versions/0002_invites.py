"""Invitations, their ephemeral keys, unwanted mail, and notifications to homeservers.

Revision: 0002, after 0001.
Locks: none that matter; only new tables are made.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = ["deliveries", "unwanted_mail", "ephemeral_keys", "invites"]


def upgrade() -> None:
    op.create_table(
        "invites",
        sa.Column("token_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("token", sa.LargeBinary(), nullable=False),
        sa.Column("threepid", sa.LargeBinary(32), nullable=False),
        sa.Column("medium", sa.String(16), nullable=False),
        sa.Column("address", sa.LargeBinary(), nullable=False),
        sa.Column("room_id", sa.String(255), nullable=False),
        sa.Column("sender", sa.String(255), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("live", sa.Boolean(), nullable=False),
        sa.Column("delivered_at_ms", sa.BigInteger()),
        sa.Column("revoked_at_ms", sa.BigInteger()),
        sa.Column("signed_for", sa.String(255)),
        sa.PrimaryKeyConstraint("token_hash", name="pk_invites"),
    )
    op.create_index("ix_invites_threepid", "invites", ["threepid"])
    op.create_index("ix_invites_sender", "invites", ["sender"])
    op.create_index("ix_invites_expires_at_ms", "invites", ["expires_at_ms"])
    op.create_table(
        "ephemeral_keys",
        sa.Column("public_key", sa.LargeBinary(32), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("public_key", name="pk_ephemeral_keys"),
    )
    op.create_index("ix_ephemeral_keys_token_hash", "ephemeral_keys", ["token_hash"])
    op.create_table(
        "unwanted_mail",
        sa.Column("threepid", sa.LargeBinary(32), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("threepid", name="pk_unwanted_mail"),
    )
    op.create_table(
        "deliveries",
        sa.Column("delivery_id", sa.String(32), nullable=False),
        sa.Column("threepid", sa.LargeBinary(32), nullable=False),
        sa.Column("mxid", sa.String(255), nullable=False),
        sa.Column("signed", sa.LargeBinary(), nullable=False),
        sa.Column("invite", sa.LargeBinary(32)),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("next_try_at_ms", sa.BigInteger()),
        sa.Column("leased_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("last_error", sa.String(255)),
        sa.PrimaryKeyConstraint("delivery_id", name="pk_deliveries"),
    )
    op.create_index("ix_deliveries_threepid", "deliveries", ["threepid"])
    op.create_index("ix_deliveries_next_try_at_ms", "deliveries", ["next_try_at_ms"])


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
