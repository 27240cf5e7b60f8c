"""Every key by its place, read off the types: what the loader and its messages share."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, TypeAlias, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, PlainValidator, SecretStr
from pydantic.fields import FieldInfo

from identity.config.root import Config

# Where a key is, as ("sms", "twilio", "auth_token").
Location: TypeAlias = tuple[str, ...]

# A secret's name with this at its end takes the path of a file that holds the secret.
FILE_SUFFIX: Final = "_file"


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _walk(section: type[BaseModel], parents: Location = ()) -> Iterator[tuple[Location, FieldInfo]]:
    for attribute, field in section.model_fields.items():
        location = (*parents, field.alias or attribute)
        subsection = _section_of(field)
        if subsection is None:
            yield location, field
        else:
            yield from _walk(subsection, location)


FIELDS: Final[Mapping[Location, FieldInfo]] = dict(_walk(Config))


def is_table(field: FieldInfo) -> bool:
    """Whether the keys below are the operator's own, as names of headers."""
    return get_origin(field.annotation) is Mapping


def is_secret(field: FieldInfo) -> bool:
    """Whether the value, or each value of a table, must not be shown."""
    kind: Any = field.annotation
    if is_table(field):
        kind = get_args(kind)[1]
        kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return kind is SecretStr


def is_written_in_toml(field: FieldInfo, text: str) -> bool:
    """Whether `text` in the environment stands for something else than a string."""
    origin = get_origin(field.annotation)
    if any(isinstance(item, BeforeValidator | PlainValidator) for item in field.metadata):
        # Strings in the file, too; of these only sms.provider may also be a list.
        return origin is tuple and text.lstrip().startswith("[")
    return origin in (tuple, Mapping) or field.annotation in (bool, int, float)


def is_settable(location: Location) -> bool:
    """Whether it is a key, the file of a secret, or an entry of a table."""
    if location in FIELDS:
        return True
    *parents, last = location
    secret = FIELDS.get((*parents, last.removesuffix(FILE_SUFFIX)))
    if secret is not None:
        return is_secret(secret) and not is_table(secret)
    table = FIELDS.get(tuple(parents))
    return table is not None and is_table(table) and last != ""


def section_names() -> set[Location]:
    """The place of each section: ("sms",), ("sms", "twilio")."""
    return {location[:-1] for location in FIELDS}


def key_names(section: Location) -> list[str]:
    """What may stand in a section: its keys, and the sections below it."""
    depth = len(section)
    keys = {
        place[depth]: None for place in FIELDS if len(place) > depth and place[:depth] == section
    }
    files = [
        f"{key}{FILE_SUFFIX}"
        for key in keys
        if (*section, key) in FIELDS and FIELDS[*section, key].annotation is SecretStr
    ]
    return [*keys, *files]


def variable_name(location: Location) -> str:
    """The environment's name for a key."""
    return "IDENTITY_" + "__".join(location).upper()


def variable_names() -> list[str]:
    """The names of all variables, but for the entries of tables."""
    sections = section_names()
    places = [(*section, key) for section in sections for key in key_names(section)]
    return sorted(variable_name(place) for place in places if place not in sections)
