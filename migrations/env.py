"""Runs migrations on the connection that `identity.schema` has locked."""

from alembic import context

from identity.limits.models import metadata as limits_metadata
from identity.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=[metadata, limits_metadata],
    # The caller commits all migrations at once, or none.
    transaction_per_migration=False,
    transactional_ddl=False,
)
context.run_migrations()
