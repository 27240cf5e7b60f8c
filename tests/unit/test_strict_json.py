"""The decoder of everything that comes from outside."""

import json
import math
import time
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from identity.errors import NotJson
from identity.strict_json import MAX_DEPTH, MAX_INTEGER, decode

KIB = 1024

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
numbers = st.integers(-MAX_INTEGER, MAX_INTEGER) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)

REFUSED = {
    "nothing": b"",
    "spaces": b"  ",
    "not UTF-8": b'"\xff\xfe"',
    "cut UTF-8": b'"\xe2\x82"',
    "overlong UTF-8": b'"\xc0\x80"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "UTF-16": "{}".encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "NaN": b"NaN",
    "Infinity": b'{"a":Infinity}',
    "-Infinity": b"[-Infinity]",
    "too large a fraction": b"[1e999]",
    "too small a fraction": b"[-1e999]",
    "duplicate key": b'{"a":1,"a":1}',
    "duplicate key, escaped": b'{"a":1,"\\u0061":1}',
    "duplicate key, deep": b'[{"x":{"a":1,"b":2,"a":3}}]',
    "integer above 2^53-1": b"9007199254740992",
    "integer below -2^53+1": b"-9007199254740992",
    "integer of 10,000 digits": b"[" + b"9" * 10_000 + b"]",
    "depth 33 of lists": b"[" * 33 + b"]" * 33,
    "depth 33 of objects": b'{"a":' * 33 + b"1" + b"}" * 33,
    "depth 33 of both": b'[{"a":' * 16 + b"[]" + b"}]" * 16,
    "depth 100,000": b"[" * 100_000,
    "NUL": b'"\0"',
    "NUL, escaped": b'"a\\u0000"',
    "NUL in a key": b'{"a\\u0000":1}',
    "NUL, deep": b'[[{"a":["\\u0000"]}]]',
    "lone high surrogate": b'"\\ud800"',
    "lone low surrogate": b'"\\udc00"',
    "surrogates in the wrong order": b'"\\udc00\\ud800"',
    "lone surrogate in a key": b'{"\\ud800":1}',
    "control character": b'"\n"',
    "unknown escape": b'"\\x41"',
    "comment": b"/**/{}",
    "comma at the end": b"[1,]",
    "two values": b"1 2",
    "single quotes": b"{'a':1}",
    "leading zero": b"01",
    "plus": b"+1",
    "bare fraction": b".5",
    "hexadecimal": b"0x10",
    "digits of another script": "[\u0661]".encode(),
    "space of another kind": "\u00a01".encode(),
}


@given(values)
def test_value_survives_the_journey(value):
    assert decode(json.dumps(value).encode()) == value
    assert decode(json.dumps(value, ensure_ascii=False, indent=1).encode()) == value


@pytest.mark.requirement("GEN-04", "GEN-05")
@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(data):
    with pytest.raises(NotJson):
        decode(data)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"9007199254740991", MAX_INTEGER),
        (b"-9007199254740991", -MAX_INTEGER),
        (b"-0", 0),
        (b"1.5e3", 1500.0),
        (b'"\\ud83d\\ude00"', "😀"),
        (b'"\\\\u0000"', "\\u0000"),
        (b'{"a":1,"A":2,"\\u00e4":3,"a\\u0308":4}', {"a": 1, "A": 2, "ä": 3, "a\u0308": 4}),
        (b" [ ] \r\n\t", []),
    ],
    ids=ascii,
)
def test_what_is_just_within_the_bounds(data, value):
    assert decode(data) == value


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_of_32_is_decoded(opening, closing):
    assert decode(opening * (MAX_DEPTH - 1) + b"[]" + closing * (MAX_DEPTH - 1))


def test_brackets_in_strings_are_no_depth():
    assert decode(json.dumps(["[{" * 100, '"[' * 50, "\\" * 3 + "[" * 50]).encode())


def test_siblings_are_no_depth():
    assert len(decode(b"[" + b",".join([b"[[{}]]"] * 100) + b"]")) == 100


# Pieces that mean something to a parser are more likely than others.
_PIECES = r'[ ] { } " \ , : \u0000 \ud800 a 1 - . e9 true null NaN é'.encode().split()
bodies = st.binary() | st.lists(st.sampled_from([*_PIECES, b"\0", b"\xff", b" "]), max_size=60).map(
    b"".join
)


@given(bodies)
@example(b"[" * 1_000_000)
@example(b'"' * 100_000)
@example(b"-" * 100_000)
@example(b'{"a":' * 100_000)
def test_no_body_raises_anything_but_not_json(data):
    try:
        value = decode(data)
    except NotJson:
        return
    assert _is_clean(value, MAX_DEPTH)


def _is_clean(value, depth):
    if isinstance(value, str):
        return "\0" not in value and value.encode().decode() == value
    if isinstance(value, int | float):
        return math.isfinite(value) and (isinstance(value, float) or abs(value) <= MAX_INTEGER)
    if isinstance(value, list | dict):
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return depth > 0 and all(_is_clean(item, depth - 1) for item in inner)
    return value is None


_DEEP = b"[" * 33
WORST = {
    "string without an end": _DEEP + b'"' + b'\\"' * (256 * KIB),
    "many strings without an end": _DEEP + b'\\"' * (256 * KIB),
    "backslashes": _DEEP + b'"' + b"\\" * (512 * KIB),
    "one long string": _DEEP + b'"' + b"a" * (512 * KIB),
    "quotes": _DEEP + b'"' * (512 * KIB),
    "opening brackets": b"[" * (512 * KIB),
    "closing brackets": _DEEP + b"]" * (512 * KIB),
    "digits": b"[" + b"1" * (512 * KIB) + b"]",
    "digits of a fraction": b"[0." + b"1" * (512 * KIB) + b"]",
    "digits of an exponent": b"[1e" + b"1" * (512 * KIB) + b"]",
    "escapes": b'"' + b"\\u0041" * (85 * KIB) + b'"',
    "surrogates": b'"' + b"\\ud83d\\ude00" * (42 * KIB) + b'"',
    "short lists": b"[" + b"[]," * (170 * KIB) + b"[]]",
    "keys": b"{" + b",".join(b'"%d":1' % number for number in range(45 * KIB)) + b"}",
    "spaces": b" " * (512 * KIB),
}


def _cpu_ms(data: bytes) -> float:
    """The least of three runs; others may have the processor in between."""
    runs = []
    for _ in range(3):
        began = time.thread_time()
        with suppress(NotJson):
            decode(data)
        runs.append((time.thread_time() - began) * 1_000)
    return min(runs)


@pytest.mark.parametrize("data", WORST.values(), ids=WORST.keys())
def test_worst_body_takes_time_in_proportion_to_its_size(data):
    """Row 39 of the threats: 512 KiB in 50 ms. A machine that does other things gets far more.

    First a small part, so that a decoder that is not linear fails here and does not hang.
    """
    assert _cpu_ms(data[: 16 * KIB]) < 100
    assert _cpu_ms(data) < 1_000
