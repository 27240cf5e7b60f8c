"""Canonical JSON, and signatures over it."""

import base64
import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import vectors

from identity.config import load
from identity.signing import (
    SigningKey,
    encode_public_key,
    is_signed_by,
    next_key_id,
    parse_public_key,
)
from identity.strict_json import MAX_INTEGER, decode, encode_canonical

SIGNED = vectors.load("signed_json")
CANONICAL = vectors.load("canonical_json")["texts"]

NAME = SIGNED["server_name"]
KEY = SigningKey.from_seed(SIGNED["key_id"], base64.b64decode(SIGNED["seed"] + "="))
KEYS = {KEY.key_id: KEY.public_key}

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
objects = st.dictionaries(
    texts.filter(lambda name: name not in ("signatures", "unsigned")), values, max_size=4
)


@pytest.mark.requirement("SIGN-01", "SIGN-02")
@pytest.mark.parametrize("vector", CANONICAL, ids=lambda vector: ascii(vector["canonical"])[:40])
def test_canonical_json_is_as_published(vector):
    assert encode_canonical(decode(vector["json"].encode())) == vector["canonical"].encode()


@pytest.mark.requirement("SIGN-01")
def test_keys_are_sorted_by_code_point_not_by_utf16_unit():
    # U+10000 is written with units from U+D800 on, which sort before U+FB33.
    assert (
        encode_canonical({"\U00010000": 1, "\ufb33": 2}) == '{"\ufb33":2,"\U00010000":1}'.encode()
    )


@pytest.mark.requirement("SIGN-01")
@pytest.mark.parametrize(
    ("number", "text"), [(-0.0, b"0"), (1e10, b"10000000000"), (-(2**53) + 1, b"-9007199254740991")]
)
def test_integers_have_one_form(number, text):
    assert encode_canonical({"n": [number]}) == b'{"n":[' + text + b"]}"


@pytest.mark.requirement("SIGN-01")
@pytest.mark.parametrize(
    "number", [0.5, 2**53, -(2**53), 1e300, float("nan"), float("inf"), -float("inf")]
)
def test_numbers_without_a_canonical_form_are_neither_signed_nor_verified(number):
    value = {"a": [{"b": number}]}
    with pytest.raises(ValueError, match="canonical JSON"):
        encode_canonical(value)
    with pytest.raises(ValueError, match="canonical JSON"):
        KEY.sign(value, NAME)
    signatures = KEY.sign({}, NAME)["signatures"]
    assert not is_signed_by({**value, "signatures": signatures}, NAME, KEYS)


@given(values)
def test_canonical_json_decodes_to_what_it_was_made_from(value):
    encoded = encode_canonical(value)
    assert decode(encoded) == value
    assert encode_canonical(decode(encoded)) == encoded


@pytest.mark.requirement("SIGN-04")
@pytest.mark.parametrize("vector", SIGNED["objects"], ids=["empty", "two keys"])
def test_signature_is_as_published(vector):
    signed = KEY.sign(vector["value"], NAME)
    signatures = {NAME: {KEY.key_id: vector["signature"]}}
    assert signed == {**vector["value"], "signatures": signatures}
    assert encode_public_key(KEY.public_key) == SIGNED["public_key"]
    assert is_signed_by(signed, NAME, {KEY.key_id: parse_public_key(SIGNED["public_key"])})


@pytest.mark.requirement("SIGN-03")
def test_signatures_and_unsigned_are_left_out_when_signing_and_kept_after():
    bare = {"one": 1, "two": "Two"}
    others = {"other": {"ed25519:x": "abc"}, NAME: {"ed25519:0": "def"}}
    full = {**bare, "signatures": others, "unsigned": {"age": 5}}
    before = copy.deepcopy(full)

    signed = KEY.sign(full, NAME)

    ours = KEY.sign(bare, NAME)["signatures"][NAME][KEY.key_id]
    assert ours == SIGNED["objects"][1]["signature"]
    assert signed["signatures"] == {
        "other": {"ed25519:x": "abc"},
        NAME: {"ed25519:0": "def", KEY.key_id: ours},
    }
    assert signed["unsigned"] == {"age": 5}
    # What was passed in is not changed, at any depth.
    assert full == before
    assert is_signed_by({**signed, "unsigned": "anything"}, NAME, KEYS)


@pytest.mark.requirement("SIGN-05")
class TestCheck:
    signed = KEY.sign({"one": 1}, NAME)
    signature = signed["signatures"][NAME][KEY.key_id]

    def is_good(self, signatures, keys=KEYS, name=NAME):
        return is_signed_by({"one": 1, "signatures": signatures}, name, keys)

    def test_good_signature_verifies(self):
        assert self.is_good({NAME: {KEY.key_id: self.signature}})

    def test_signature_of_another_name_fails(self):
        assert not self.is_good({"other": {KEY.key_id: self.signature}})
        assert not self.is_good({NAME: {KEY.key_id: self.signature}}, name="other")

    def test_signature_by_an_unknown_key_fails(self):
        assert not self.is_good({NAME: {KEY.key_id: self.signature}}, keys={})
        assert not self.is_good({NAME: {"ed25519:2": self.signature}})

    @pytest.mark.parametrize(
        "signature",
        ["", "?", "a", "é" * 86, "A" * 85, "A" * 86, "A" * 90, None, 1, ["x"], {"a": "b"}],
        ids=ascii,
    )
    def test_undecodable_or_wrong_signature_fails(self, signature):
        assert not self.is_good({NAME: {KEY.key_id: signature}})

    def test_unknown_algorithm_is_passed_over(self):
        more = {"foo:1": self.signature, KEY.key_id: self.signature}
        keys = {**KEYS, "foo:1": KEY.public_key}
        assert self.is_good({NAME: more}, keys)
        assert not self.is_good({NAME: {"foo:1": self.signature}}, keys)

    @pytest.mark.parametrize(
        "signatures", [None, [], "x", {}, {NAME: None}, {NAME: []}, {NAME: {}}]
    )
    def test_signatures_of_another_shape_fail(self, signatures):
        assert not self.is_good(signatures)

    def test_object_without_signatures_fails(self):
        assert not is_signed_by({"one": 1}, NAME, KEYS)

    def test_changed_object_fails(self):
        assert not is_signed_by({**self.signed, "one": 2}, NAME, KEYS)
        assert not is_signed_by({**self.signed, "two": 2}, NAME, KEYS)

    def test_padded_signature_verifies(self):
        assert self.is_good({NAME: {KEY.key_id: self.signature + "=="}})


@settings(max_examples=50)
@given(objects)
def test_what_is_signed_verifies_after_a_journey_as_text(value):
    signed = KEY.sign(value, NAME)
    assert is_signed_by(decode(encode_canonical(signed)), NAME, KEYS)
    other = SigningKey.generate(KEY.key_id)
    assert not is_signed_by(signed, NAME, {KEY.key_id: other.public_key})


@pytest.mark.requirement("SIGN-06")
@pytest.mark.parametrize(
    ("name", "url", "warns"),
    [
        ("id.example", "https://id.example", False),
        ("id.example", "https://other.example", True),
        ("id.example", "https://id.example:8448", False),
        ("id.example:8448", "https://id.example", True),
    ],
)
def test_public_url_on_another_host_than_the_signing_name_is_warned_of(name, url, warns):
    config = load(None, {"IDENTITY_SERVER__NAME": name, "IDENTITY_SERVER__PUBLIC_URL": url})
    assert any("expect signatures" in line for line in config.warnings()) is warns


def test_new_key_id_is_above_every_number_in_use():
    assert next_key_id([]) == "ed25519:0"
    assert next_key_id(["ed25519:0", "ed25519:auto", "ed25519:9"]) == "ed25519:10"


def test_secret_part_of_a_key_is_not_shown():
    assert SIGNED["seed"][:10] not in repr(KEY)
    assert repr(KEY.seed) not in repr(KEY)
