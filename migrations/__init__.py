"""Alembic migrations of the database; run by `identity.schema`."""
