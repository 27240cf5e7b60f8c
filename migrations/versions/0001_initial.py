"""Keys, statements, the current view, the lookup index, accounts, terms, sessions, limits.

Revision: 0001, the first.
Locks: none that matter; the database is new.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Compared by code point on every database.
SERVER_NAME = sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql")

TABLES = [
    "validation_tokens",
    "access_tokens",
    "accepted_terms",
    "validation_sessions",
    "storage_keys",
    "statements",
    "signing_keys",
    "peppers",
    "origins",
    "lookup_index",
    "hosts",
    "associations",
    "accounts",
]


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_accounts"),
    )
    op.create_table(
        "associations",
        sa.Column("threepid", sa.LargeBinary(32), nullable=False),
        sa.Column("ts_ms", sa.BigInteger(), nullable=False),
        sa.Column("origin", SERVER_NAME, nullable=False),
        sa.Column("origin_id", sa.BigInteger(), nullable=False),
        sa.Column("mxid", sa.String(255)),
        sa.Column("not_before_ms", sa.BigInteger()),
        sa.Column("not_after_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("threepid", name="pk_associations"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_associations_mxid", "associations", ["mxid"])
    op.create_table(
        "hosts",
        sa.Column("host_id", sa.String(32), nullable=False),
        sa.Column("key_names", sa.Text(), nullable=False),
        sa.Column("seen_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("host_id", name="pk_hosts"),
    )
    op.create_table(
        "lookup_index",
        sa.Column("pepper_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tag", sa.LargeBinary(32), nullable=False),
        sa.Column("threepid", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("pepper_id", "tag", name="pk_lookup_index"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "origins",
        sa.Column("origin", SERVER_NAME, nullable=False),
        sa.Column("last_id", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("origin", name="pk_origins"),
    )
    op.create_table(
        "peppers",
        sa.Column("pepper_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("pepper", sa.String(64), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("ready_at_ms", sa.BigInteger()),
        sa.Column("retires_at_ms", sa.BigInteger()),
        sa.Column("indexed_to", sa.LargeBinary(32)),
        sa.PrimaryKeyConstraint("pepper_id", name="pk_peppers"),
        sa.UniqueConstraint("pepper", name="uq_peppers_pepper"),
    )
    op.create_table(
        "signing_keys",
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("public_key", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("active_at_ms", sa.BigInteger()),
        sa.Column("revoked_at_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("key_id", name="pk_signing_keys"),
        sa.UniqueConstraint("public_key", name="uq_signing_keys_public_key"),
    )
    op.create_table(
        "statements",
        sa.Column("origin", SERVER_NAME, nullable=False),
        sa.Column("origin_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("threepid", sa.LargeBinary(32), nullable=False),
        sa.Column("ts_ms", sa.BigInteger(), nullable=False),
        sa.Column("leaf", sa.LargeBinary(32), nullable=False),
        sa.Column("signed", sa.LargeBinary()),
        sa.Column("lowered", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("origin", "origin_id", name="pk_statements"),
    )
    op.create_index("ix_statements_threepid", "statements", ["threepid"])
    op.create_table(
        "storage_keys",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(16), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_storage_keys"),
    )
    op.create_table(
        "validation_sessions",
        sa.Column("sid", sa.String(32), nullable=False),
        sa.Column("scope", sa.LargeBinary(32)),
        sa.Column("owner", sa.String(255)),
        sa.Column("medium", sa.String(16), nullable=False),
        sa.Column("threepid", sa.LargeBinary(32), nullable=False),
        sa.Column("address", sa.LargeBinary(), nullable=False),
        sa.Column("lowered", sa.LargeBinary()),
        sa.Column("client_secret_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("next_link", sa.LargeBinary()),
        sa.Column("brand", sa.String(64)),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("validated_at_ms", sa.BigInteger()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("sid", name="pk_validation_sessions"),
        sa.UniqueConstraint("scope", name="uq_validation_sessions_scope"),
    )
    op.create_index(
        "ix_validation_sessions_created_at_ms", "validation_sessions", ["created_at_ms"]
    )
    op.create_index("ix_validation_sessions_owner", "validation_sessions", ["owner"])
    op.create_index("ix_validation_sessions_threepid", "validation_sessions", ["threepid"])
    op.create_table(
        "accepted_terms",
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("accepted_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["accounts.user_id"], name="fk_accepted_terms_user_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "url", name="pk_accepted_terms"),
    )
    op.create_table(
        "access_tokens",
        sa.Column("token_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("used_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["accounts.user_id"], name="fk_access_tokens_user_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("token_hash", name="pk_access_tokens"),
    )
    op.create_index("ix_access_tokens_used_at_ms", "access_tokens", ["used_at_ms"])
    op.create_index("ix_access_tokens_user_id", "access_tokens", ["user_id"])
    op.create_table(
        "validation_tokens",
        sa.Column("token_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("sid", sa.String(32), nullable=False),
        sa.Column("send_attempt", sa.BigInteger(), nullable=False),
        sa.Column("prepared_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("live", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["sid"],
            ["validation_sessions.sid"],
            name="fk_validation_tokens_sid",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("token_hash", name="pk_validation_tokens"),
    )
    op.create_index("ix_validation_tokens_sid", "validation_tokens", ["sid"])
    # With SQLite the limits lie in a file of their own, without migrations.
    if op.get_bind().dialect.name == "postgresql":
        op.create_table(
            "limits",
            sa.Column("key", sa.LargeBinary(32), nullable=False),
            sa.Column("tat_us", sa.BigInteger(), nullable=False),
            sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
            sa.PrimaryKeyConstraint("key"),
            sqlite_with_rowid=False,
        )
        op.create_index("ix_limits_expires_at_ms", "limits", ["expires_at_ms"])


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.drop_table("limits")
