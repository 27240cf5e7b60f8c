"""What a server asks its database, in order: a measure of work that does not depend on time."""

from collections.abc import Iterator
from contextlib import contextmanager

from parts.server import Server
from sqlalchemy import event


@contextmanager
def recorded(server: Server) -> Iterator[list[str]]:
    """The statements, without their parameters, that run while the block does."""
    statements: list[str] = []

    def note(_connection, _cursor, statement, *_):
        statements.append(statement)

    event.listen(server.database.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(server.database.engine, "before_cursor_execute", note)
