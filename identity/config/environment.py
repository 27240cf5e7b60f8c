"""Settings from the environment: IDENTITY_<SECTION>__<KEY>, with a further "__" for each level.

A variable replaces what the file says under the same key, in either form of a secret. Strings
are taken as they are, so that a `%`, `"` or `#` in a password is just a character; everything
else is read as a TOML value. A variable that names no key is a fault, for it is a slip that
would otherwise go unnoticed.
"""

import tomllib
from collections.abc import Mapping
from typing import Any, Final

from identity.config.faults import Fault
from identity.config.fields import (
    FIELDS,
    FILE_SUFFIX,
    Location,
    is_settable,
    is_written_in_toml,
    variable_names,
)
from identity.config.values import Rejected, nearest

PREFIX: Final = "IDENTITY_"
CONFIG_VARIABLE: Final = "IDENTITY_CONFIG"
TEST_PREFIX: Final = "IDENTITY_TEST_"


def override(
    tree: dict[str, Any], environ: Mapping[str, str], faults: list[Fault]
) -> dict[Location, str]:
    """Put the environment's values into `tree`; returns which variable set which key."""
    variables: dict[Location, str] = {}
    found: dict[Location, Any] = {}
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE or name.startswith(TEST_PREFIX):
            continue
        location = tuple(name.removeprefix(PREFIX).lower().split("__"))
        try:
            found[location] = _read(location, text, name)
            variables[location] = name
        except Rejected as error:
            faults.append(Fault("", name, error.problem, error.allowed))
    for location in found:
        _forget(tree, location)
    for location, value in found.items():
        _put(tree, location, value)
    return variables


def _read(location: Location, text: str, name: str) -> Any:
    """The value of a variable. Raises: Rejected, which never quotes it."""
    if name != name.upper() or not is_settable(location):
        raise Rejected("unknown variable", nearest(name, variable_names()))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Rejected("is not UTF-8", "UTF-8") from None
    field = FIELDS.get(location)
    if field is None or not is_written_in_toml(field, text):
        return text
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        document = {}
    if document.keys() != {"value"}:
        raise Rejected("is not a TOML value", 'as in the file: 5, true, ["a", "b"]')
    return document["value"]


def _forget(tree: dict[str, Any], location: Location) -> None:
    """Drop what a variable replaces: the key in any case, and the other form of a secret."""
    *parents, last = location
    table = find_table(tree, tuple(parents))
    for key in list(table):
        if key.lower().removesuffix(FILE_SUFFIX) == last.removesuffix(FILE_SUFFIX):
            del table[key]


def _put(tree: dict[str, Any], location: Location, value: Any) -> None:
    """Set a value below tables that are made as needed; a parent of another type stays wrong."""
    *parents, last = location
    table = tree
    for parent in parents:
        child = table.setdefault(parent, {})
        if not isinstance(child, dict):
            return
        table = child
    table[last] = value


def find_table(tree: dict[str, Any], location: Location) -> dict[str, Any]:
    """The table at a place; an empty one where there is none, or something else."""
    table: Any = tree
    for part in location:
        table = table.get(part) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else {}
