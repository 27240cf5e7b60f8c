"""Turns what the types refuse into faults: where it is, what is wrong, what is allowed."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic_core import ErrorDetails

from identity.config.faults import Contradiction, Fault, shown
from identity.config.fields import FIELDS, Location, is_secret, is_table, key_names, section_names
from identity.config.values import Rejected, nearest

# By pydantic's name for an error; LIMIT is what the error itself says is allowed.
_WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "bool_type": ("is not a boolean", "true or false"),
    "int_type": ("is not a whole number", "a whole number without quotes"),
    "float_type": ("is not a number", "a number without quotes"),
    "finite_number": ("is not a number", "a finite number"),
    "string_type": ("is not a string", "a string, in quotes"),
    "tuple_type": ("is not a list", 'a list, as ["a", "b"]'),
    "dict_type": ("is not a table", 'a table, as { name = "value" }'),
    "model_type": ("is not a section", "keys with values"),
    "literal_error": ("is none of the choices", "LIMIT"),
    "greater_than": ("is too small", "more than LIMIT"),
    "greater_than_equal": ("is too small", "at least LIMIT"),
    "less_than_equal": ("is too large", "at most LIMIT"),
}
_ALLOWED_BY: Final = ("expected", "gt", "ge", "le")


def explain(details: ErrorDetails, variables: Mapping[Location, str]) -> Iterator[Fault]:
    """The faults in one error of pydantic's; `variables` set these keys, whatever the file says."""
    place = tuple(str(part) for part in details["loc"])
    context = details.get("ctx", {})
    reason = context.get("error")
    if isinstance(reason, Contradiction):
        for key, problem, allowed in reason.faults:
            yield fault_at((*place, *key.split(".")), problem, allowed, {})
    elif details["type"] == "extra_forbidden":
        yield _unknown(place)
    else:
        problem, allowed = _words(details["type"], context)
        if isinstance(reason, Rejected):
            problem, allowed = reason.problem, reason.allowed
        subject = "the value" if _hides(place) else shown(details["input"])
        yield fault_at(place, f"{subject} {problem}", allowed, variables)


def _words(kind: str, context: Mapping[str, Any]) -> tuple[str, str]:
    problem, allowed = _WORDS.get(kind, ("cannot be used", ""))
    limit = next((context[name] for name in _ALLOWED_BY if name in context), "")
    return problem, allowed.replace("LIMIT", str(limit).replace("'", '"'))


def _unknown(place: Location) -> Fault:
    *parents, last = place
    known = key_names(tuple(parents))
    if parents:
        return Fault(".".join(parents), last, "unknown key", nearest(last, known))
    return Fault(last, "", "unknown section", nearest(last, known))


def fault_at(
    place: Location, problem: str, allowed: str, variables: Mapping[Location, str]
) -> Fault:
    """The longest part of `place` that is a section is the section, the rest is the key."""
    sections = section_names() | {table for table in FIELDS if is_table(FIELDS[table])}
    # A table that is wrong as a whole is a key; what is in it has the table for its section.
    depths = (n for n in range(len(place) + 1) if place[:n] in sections)
    depth = max((n for n in depths if n < len(place) or place not in FIELDS), default=0)
    key = ""
    for part in place[depth:]:
        if part.isdigit() and key:
            key += f"[{part}]"
        elif part != "[key]":
            key += f".{part}" if key else part
    for location, variable in variables.items():
        if place[: len(location)] == location:
            problem += f" (set by {variable})"
    return Fault(".".join(place[:depth]), key, problem, allowed)


def _hides(place: Location) -> bool:
    """Whether the value at this place may be a secret; what is in no known place may be one."""
    field = next((FIELDS[place[:n]] for n in range(len(place) + 1) if place[:n] in FIELDS), None)
    return field is None or is_secret(field)
