"""Parameters of requests, parsed into types at the door.

`json_body` reads what the specification calls the request body; `json_or_form_body` also takes
the form bodies that it keeps for older clients. Types are strict: a number is no string.
"""

from typing import Any, Final, Self
from urllib.parse import parse_qsl

from flask import request
from gunicorn.http.errors import ParseException
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from identity import strict_json
from identity.errors import (
    BadJson,
    BodyTooLarge,
    BodyTooSlow,
    InvalidParameter,
    InvalidRequest,
    MissingParameters,
    NotJson,
)

_FORM: Final = "application/x-www-form-urlencoded"
_MAX_FORM_FIELDS: Final = 100

_NO_NAMES: Final = frozenset({"int", "str"})


class Parameters(BaseModel):
    """The parameters of one endpoint. Unknown ones are ignored (GEN-19)."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Raises: MissingParameters, InvalidParameter."""
        for name in cls.model_fields:
            # What may be absent may still not be null (GEN-08).
            if values.get(name, "") is None:
                raise InvalidParameter(f"{name} is not valid")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _fault(error.errors(include_url=False, include_input=False)) from None

    @classmethod
    def from_json(cls) -> Self:
        """From the JSON body, whatever its Content-Type says (GEN-03)."""
        return cls.parse(json_object())

    @classmethod
    def from_json_or_form(cls) -> Self:
        """From a JSON body, or a form body where the Content-Type says so (GEN-18)."""
        return cls.parse(_form() if request.mimetype == _FORM else json_object())

    @classmethod
    def from_query(cls) -> Self:
        return cls.parse(query())


def query() -> dict[str, str]:
    """The first value of each parameter of the query string."""
    return {name: _checked(value) for name, value in request.args.items()}


def json_object() -> dict[str, Any]:
    """Raises: NotJson, BadJson, BodyTooLarge, BodyTooSlow."""
    value = strict_json.decode(read_body())
    if not isinstance(value, dict):
        raise BadJson
    return value


def legacy_parameters() -> dict[str, Any]:
    """What v1 takes: JSON or a form, as the Content-Type says, else the query string.

    Raises: NotJson, BadJson, InvalidParameter, BodyTooLarge, BodyTooSlow.
    """
    if not request.content_length and not request.headers.get("Transfer-Encoding"):
        return {**query()}
    if request.mimetype == "application/json":
        value = strict_json.decode(read_body())
        if value is None:
            return {**query()}
        if not isinstance(value, dict):
            raise BadJson
        return value
    form = _form()
    # A body such as "null" is read as one name without a value.
    return form if any(form.values()) else {**query()}


def read_body() -> bytes:
    """The whole body. Raises: BodyTooLarge, BodyTooSlow, NotJson for broken framing.

    How long it may take is up to whoever holds the connection.
    """
    try:
        body = request.get_data(cache=False)
    except RequestEntityTooLarge:
        raise BodyTooLarge from None
    except ClientDisconnected:
        # Or it has gone, and reads no answer at all.
        raise BodyTooSlow from None
    except ParseException:
        raise NotJson("The chunks of the body are malformed") from None
    # Of a body whose length nobody announced, no more than the limit is read.
    if request.content_length is None and len(body) >= (request.max_content_length or 0):
        raise BodyTooLarge
    return body


def _form() -> dict[str, Any]:
    body = read_body()
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise NotJson("The body is not valid UTF-8") from None
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, max_num_fields=_MAX_FORM_FIELDS, errors="strict"
        )
    except (ValueError, UnicodeDecodeError):
        raise InvalidParameter("The form body is not valid") from None
    return {name: _checked(value) for name, value in reversed(pairs)}


def _checked(value: str) -> str:
    # The strict decoder refuses these in JSON; a percent-encoded one comes in here.
    if "\0" in value or "\ufffd" in value:
        raise InvalidParameter
    return value


def _fault(faults: list[ErrorDetails]) -> InvalidRequest:
    missing = [".".join(map(str, fault["loc"])) for fault in faults if fault["type"] == "missing"]
    if missing:
        return MissingParameters(missing)
    # Numbers of list items and names of types are of no use to whoever sent it.
    place = ".".join(
        part for part in faults[0]["loc"] if part not in _NO_NAMES and isinstance(part, str)
    )
    return InvalidParameter(f"{place} is not valid")
