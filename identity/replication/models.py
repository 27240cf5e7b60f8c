"""Peers, how far they are, and what of theirs was refused."""

from typing import Final

import sqlalchemy as sa

from identity.associations.models import SERVER_NAME
from identity.database import Sealed, metadata

# `url`: where we push to. `protocol`: "v2" or "sydent". `supersede`: "all" or "own".
# `media`, `domains`, `prefixes`: what the peer may speak for, space-separated; empty: anything.
peers: Final = sa.Table(
    "peers",
    metadata,
    sa.Column("name", SERVER_NAME, primary_key=True),
    sa.Column("url", sa.String(2048), nullable=False),
    sa.Column("protocol", sa.String(16), nullable=False),
    sa.Column("supersede", sa.String(16), nullable=False),
    sa.Column("media", sa.Text, nullable=False),
    sa.Column("domains", sa.Text, nullable=False),
    sa.Column("prefixes", sa.Text, nullable=False),
    sa.Column("added_at_ms", sa.BigInteger, nullable=False),
    # Silent for 90 days: nothing waits for it any more, and it comes back as new.
    sa.Column("suspended_at_ms", sa.BigInteger),
    # After a restore nothing is stated before this peer has said how far it is.
    sa.Column("must_answer", sa.Boolean, nullable=False),
)

# Pinned: several may be valid at once. `key_id` is "ed25519:<version>".
peer_keys: Final = sa.Table(
    "peer_keys",
    metadata,
    sa.Column(
        "peer",
        SERVER_NAME,
        sa.ForeignKey("peers.name", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("key_id", sa.String(64), primary_key=True),
    sa.Column("public_key", sa.LargeBinary(32), nullable=False),
)

# One row a peer, written often: how far it has taken our statements. Whoever holds the lease
# sends; there is one sender a peer, on whatever host.
cursors: Final = sa.Table(
    "cursors",
    metadata,
    sa.Column(
        "peer",
        SERVER_NAME,
        sa.ForeignKey("peers.name", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("acknowledged_id", sa.BigInteger, nullable=False),
    # Our chain's head there; null after a rewind, when it is reckoned anew from the start.
    sa.Column("head", sa.LargeBinary(32)),
    sa.Column("lease_holder", sa.String(64)),
    sa.Column("leased_until_ms", sa.BigInteger, nullable=False),
    # Failures in a row, and when to try again after them.
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("next_try_at_ms", sa.BigInteger, nullable=False),
    sa.Column("last_success_at_ms", sa.BigInteger),
    sa.Column("last_error", sa.String(255)),
    sa.Column("last_error_at_ms", sa.BigInteger),
    sa.Column("compared_at_ms", sa.BigInteger),
)

# Statements of peers that were refused. `item`: what arrived, as JSON; null where it is known
# by its leaf alone. `due_at_ms`: when a statement from the future is taken by itself.
quarantine: Final = sa.Table(
    "quarantine",
    metadata,
    sa.Column("origin", SERVER_NAME, primary_key=True),
    sa.Column("origin_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("leaf", sa.LargeBinary(32), primary_key=True),
    sa.Column("reason", sa.String(16), nullable=False),
    sa.Column("item", Sealed("quarantine.item")),
    sa.Column("received_at_ms", sa.BigInteger, nullable=False),
    sa.Column("due_at_ms", sa.BigInteger, index=True),
)

# What an operator should know of: how often it happened, and when last.
alarms: Final = sa.Table(
    "alarms",
    metadata,
    sa.Column("peer", SERVER_NAME, primary_key=True),
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("last_at_ms", sa.BigInteger, nullable=False),
)

# Now and then: up to which id everyone who must had an origin's statements at that time. For our
# own that is what every peer has acknowledged; for another's, what we hold.
milestones: Final = sa.Table(
    "milestones",
    metadata,
    sa.Column("origin", SERVER_NAME, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("origin_id", sa.BigInteger, nullable=False),
)

# How many bindings of others a peer has replaced in the minute that began then.
replacements: Final = sa.Table(
    "replacements",
    metadata,
    sa.Column("peer", SERVER_NAME, primary_key=True),
    sa.Column("since_ms", sa.BigInteger, nullable=False),
    sa.Column("count", sa.BigInteger, nullable=False),
)
