"""Peers, their keys and cursors, quarantine, alarms, milestones; statements known by leaf alone.

Revision: 0004, after 0003.
Locks: origins, statements. On PostgreSQL for a moment, nothing is rewritten. On SQLite statements
is copied, some seconds for a million of rows, while nothing else writes.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Compared by code point on every database.
SERVER_NAME = sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql")

TABLES = ["replacements", "milestones", "alarms", "quarantine", "cursors", "peer_keys", "peers"]


def upgrade() -> None:
    op.add_column(
        "origins",
        sa.Column("recovering", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    with op.batch_alter_table("statements") as batch:
        batch.alter_column("threepid", existing_type=sa.LargeBinary(32), nullable=True)
        batch.alter_column("ts_ms", existing_type=sa.BigInteger(), nullable=True)
    op.create_table(
        "peers",
        sa.Column("name", SERVER_NAME, nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("protocol", sa.String(16), nullable=False),
        sa.Column("supersede", sa.String(16), nullable=False),
        sa.Column("media", sa.Text(), nullable=False),
        sa.Column("domains", sa.Text(), nullable=False),
        sa.Column("prefixes", sa.Text(), nullable=False),
        sa.Column("added_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("suspended_at_ms", sa.BigInteger()),
        sa.Column("must_answer", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_peers"),
    )
    op.create_table(
        "peer_keys",
        sa.Column("peer", SERVER_NAME, nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("public_key", sa.LargeBinary(32), nullable=False),
        sa.ForeignKeyConstraint(
            ["peer"], ["peers.name"], name="fk_peer_keys_peer", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("peer", "key_id", name="pk_peer_keys"),
    )
    op.create_table(
        "cursors",
        sa.Column("peer", SERVER_NAME, nullable=False),
        sa.Column("acknowledged_id", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.LargeBinary(32)),
        sa.Column("lease_holder", sa.String(64)),
        sa.Column("leased_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("next_try_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_success_at_ms", sa.BigInteger()),
        sa.Column("last_error", sa.String(255)),
        sa.Column("last_error_at_ms", sa.BigInteger()),
        sa.Column("compared_at_ms", sa.BigInteger()),
        sa.ForeignKeyConstraint(
            ["peer"], ["peers.name"], name="fk_cursors_peer", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("peer", name="pk_cursors"),
    )
    op.create_table(
        "quarantine",
        sa.Column("origin", SERVER_NAME, nullable=False),
        sa.Column("origin_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("leaf", sa.LargeBinary(32), nullable=False),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("item", sa.LargeBinary()),
        sa.Column("received_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("due_at_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("origin", "origin_id", "leaf", name="pk_quarantine"),
    )
    op.create_index("ix_quarantine_due_at_ms", "quarantine", ["due_at_ms"])
    op.create_table(
        "alarms",
        sa.Column("peer", SERVER_NAME, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("last_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("peer", "kind", name="pk_alarms"),
    )
    op.create_table(
        "milestones",
        sa.Column("origin", SERVER_NAME, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("origin_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("origin", "at_ms", name="pk_milestones"),
    )
    op.create_table(
        "replacements",
        sa.Column("peer", SERVER_NAME, nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("peer", name="pk_replacements"),
    )


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
    # What is known by its leaf alone has no place in the older schema.
    op.execute("DELETE FROM statements WHERE threepid IS NULL OR ts_ms IS NULL")
    with op.batch_alter_table("statements") as batch:
        batch.alter_column("ts_ms", existing_type=sa.BigInteger(), nullable=False)
        batch.alter_column("threepid", existing_type=sa.LargeBinary(32), nullable=False)
    op.drop_column("origins", "recovering")
