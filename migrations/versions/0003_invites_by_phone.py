"""Phone numbers: traffic of text messages, homeservers by age, the page of an invitation by SMS.

Revision: 0003, after 0002.
Locks: invites, for as long as it takes to add an empty column, which rewrites nothing. Accounts are
read once, in ten seconds or so for ten million; nobody waits for that.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COUNTERS = ["admitted", "sent", "converted", "day", "day_admitted", "day_sent", "day_converted"]


def upgrade() -> None:
    op.add_column("invites", sa.Column("page", sa.LargeBinary()))
    op.create_table(
        "sms_traffic",
        sa.Column("scope", sa.String(80), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in COUNTERS),
        sa.Column("paused_until_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", name="pk_sms_traffic"),
    )
    op.create_index("ix_sms_traffic_day", "sms_traffic", ["day"])
    homeservers = op.create_table(
        "homeservers",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("first_seen_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_homeservers"),
    )
    rows = [
        {"name": name, "first_seen_at_ms": at_ms} for name, at_ms in _first_seen_at_ms().items()
    ]
    if rows:
        op.bulk_insert(homeservers, rows)


def downgrade() -> None:
    op.drop_table("homeservers")
    op.drop_table("sms_traffic")
    op.drop_column("invites", "page")


def _first_seen_at_ms() -> dict[str, int]:
    """When the first account of each homeserver was made here; by host, without the port."""
    accounts = sa.table("accounts", sa.column("user_id"), sa.column("created_at_ms"))
    query = sa.select(accounts.c.user_id, accounts.c.created_at_ms)
    first: dict[str, int] = {}
    for user_id, at_ms in op.get_bind().execute(query.execution_options(yield_per=10_000)):
        server = user_id.partition(":")[2].lower()
        host = server[1:].partition("]")[0] if server.startswith("[") else server.partition(":")[0]
        if host:
            first[host] = min(at_ms, first.get(host, at_ms))
    return first
