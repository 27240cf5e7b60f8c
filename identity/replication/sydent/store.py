"""Statements for what Sydent peers get of us, one a function."""

import sqlalchemy as sa

from identity.associations.models import associations, statements
from identity.database import Transaction


def own_winners(
    tx: Transaction, our_name: str, after: int, last_id: int, limit: int
) -> list[tuple[int, str]]:
    """(id, signed JSON) of our statements above `after`, up to `last_id`, in order.

    Only those that count at this moment, bindings and revocations: a Sydent that is told of an old
    revocation removes what was bound since.
    """
    counts = (
        (associations.c.threepid == statements.c.threepid)
        & (associations.c.origin == statements.c.origin)
        & (associations.c.origin_id == statements.c.origin_id)
    )
    query = (
        sa.select(statements.c.origin_id, statements.c.signed)
        .select_from(statements.join(associations, counts))
        .where(
            statements.c.origin == our_name,
            statements.c.origin_id > after,
            statements.c.origin_id <= last_id,
            statements.c.signed.is_not(None),
        )
        .order_by(statements.c.origin_id)
        .limit(limit)
    )
    return [(row.origin_id, row.signed) for row in tx.execute(query)]
