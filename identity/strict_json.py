"""The one JSON decoder for everything that comes from outside, and canonical encoding.

Refused although Python's own decoder takes them: duplicate keys, NaN and Infinity,
integers beyond 2^53-1, nesting deeper than 32, NUL characters, lone surrogates and
bytes that are not UTF-8. Fractions are decoded (a typed field refuses them later), since
an unknown key may hold one without doing harm.

Source: RFC 8259; RFC 7493 (I-JSON); Matrix appendices, "Canonical JSON".
"""

import json
import re
from typing import Any, Final

import canonicaljson
import orjson

from identity.errors import NotJson

MAX_DEPTH: Final = 32
MAX_INTEGER: Final = 2**53 - 1

_CANONICAL: Final = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER
_MAX_INTEGER_CHARACTERS: Final = len(str(-MAX_INTEGER))
# Possessive, and ending with the text where a string does: nothing is ever read twice.
_STRING: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def decode(data: bytes) -> Any:
    """Decode one JSON text.

    Raises: NotJson for anything that the module docstring refuses.
    """
    try:
        text = data.decode("utf-8")
        _check_depth(text)
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        raise NotJson from None
    # Only an escape can smuggle these in: raw ones are refused by UTF-8 and the decoder.
    if "\\u" in text:
        _check_strings(value)
    return value


def decode_canonical(data: bytes) -> Any:
    """The same as `decode`; where `data` is canonical JSON, at a tenth of its time.

    Raises: NotJson.
    """
    try:
        value = orjson.loads(data)
        # What comes out as it went in has no duplicate keys and no integers out of range.
        if (
            orjson.dumps(value, option=_CANONICAL) == data
            and b"\\u0000" not in data
            and not _is_deep(value)
        ):
            return value
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
        pass
    return decode(data)


def encode_decoded(value: Any) -> bytes:
    """Canonical JSON of what `decode` made of strings and integers, at a tenth of the time.

    Raises: ValueError, as `canonical`.
    """
    try:
        return orjson.dumps(value, option=_CANONICAL)
    except orjson.JSONEncodeError:
        raise ValueError("not a value of canonical JSON") from None


def encode_canonical(value: Any) -> bytes:
    """Canonical JSON: UTF-8, sorted keys, no spaces. Raises: ValueError, as `canonical`."""
    return canonicaljson.encode_canonical_json(canonical(value))


def canonical(value: Any) -> Any:
    """A copy with the numbers that canonical JSON has: 1e10 is an integer there, -0.0 is 0.

    Raises: ValueError for a fraction, and an integer beyond 2^53-1.
    """
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, float) or (isinstance(value, int) and abs(value) > MAX_INTEGER):
        raise ValueError("not a number of canonical JSON")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for parent in level
            if type(parent) is dict or type(parent) is list
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for character in _STRING.sub("", text):
        if character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError("nested too deeply")
        elif character in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _integer(text: str) -> int:
    if len(text) > _MAX_INTEGER_CHARACTERS or abs(value := int(text)) > MAX_INTEGER:
        raise ValueError("integer out of range")
    return value


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _fraction(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("number out of range")
    return value


def _check_strings(value: Any) -> None:
    if isinstance(value, str):
        if "\0" in value or _SURROGATE.search(value):
            raise NotJson
    elif isinstance(value, list):
        for item in value:
            _check_strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_strings(key)
            _check_strings(item)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_fraction, parse_constant=_constant
)
