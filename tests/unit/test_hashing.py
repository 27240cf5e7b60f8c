"""How a client hashes an address, and which texts are hashes at all."""

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import vectors

from identity.lookup.hashing import (
    decode_hash,
    encode_hash,
    hashes_of,
    lookup_hash,
    new_pepper,
    plain_hash,
)
from identity.threepid import ThreePid

VECTORS = vectors.load("lookup_hashes")
PEPPER = VECTORS["pepper"]
HASHES = {(row["address"], row["medium"]): row["hash"] for row in VECTORS["hashes"]}


@pytest.mark.requirement("LOOK-04")
@pytest.mark.parametrize(("address", "medium"), HASHES)
def test_hash_is_as_published(address, medium):
    text = HASHES[address, medium]
    assert encode_hash(lookup_hash(address, medium, PEPPER)) == text
    assert decode_hash(text) == lookup_hash(address, medium, PEPPER)


@pytest.mark.requirement("TPID-01", "TPID-03", "AMB-11")
def test_address_that_folds_otherwise_than_it_lowers_has_both_hashes():
    threepid = ThreePid.email("Strauß@Example.com")
    both = {HASHES["strauss@example.com", "email"], HASHES["strauß@example.com", "email"]}
    assert {encode_hash(value) for value in hashes_of(threepid, PEPPER)} == both


@pytest.mark.parametrize(
    "threepid", [ThreePid.email("Alice@Example.COM"), ThreePid.msisdn("18005552067")]
)
def test_other_address_has_one_hash(threepid):
    (value,) = hashes_of(threepid, PEPPER)
    known = {HASHES["alice@example.com", "email"], HASHES["18005552067", "msisdn"]}
    assert encode_hash(value) in known


@given(st.binary(min_size=32, max_size=32))
def test_hash_survives_the_journey(value):
    text = encode_hash(value)
    assert len(text) == 43
    assert set(text) <= set(string.ascii_letters + string.digits + "-_")
    assert decode_hash(text) == value


@given(st.text(max_size=60) | st.text(string.ascii_letters + string.digits + "-_+/= ", max_size=50))
def test_text_is_a_hash_in_one_form_only(text):
    value = decode_hash(text)
    assert value is None or encode_hash(value) == text


@pytest.mark.requirement("LOOK-08", "AMB-17")
@pytest.mark.parametrize(
    "text",
    {
        "": "",
        "padded": HASHES["alice@example.com", "email"] + "=",
        "the other alphabet": base64.b64encode(b"\xff" * 32).decode().rstrip("="),
        "spare bits": HASHES["alice@example.com", "email"][:-1] + "d",
        "31 bytes": encode_hash(bytes(31)),
        "33 bytes": encode_hash(bytes(33)),
        "hexadecimal": "00" * 32,
        "not base64": "!" * 43,
        "not ASCII": "é" * 43,
        "spaces": " " * 43,
        "an address": "alice@example.com email",
    }.values(),
    ids=str,
)
def test_malformed_hash_is_none(text):
    assert decode_hash(text) is None


def test_last_character_stands_for_four_bits():
    """Of the spare-bits case above: decoders that ignore them would take it."""
    text = HASHES["alice@example.com", "email"]
    assert text.endswith("c")
    assert base64.urlsafe_b64decode(text[:-1] + "d=") == base64.urlsafe_b64decode(text + "=")


@pytest.mark.requirement("LOOK-05")
def test_plain_entry_hashes_like_its_hash():
    text = HASHES["alice@example.com", "email"]
    assert plain_hash("alice@example.com email", PEPPER) == decode_hash(text)
    assert plain_hash("18005552067 msisdn", PEPPER) == decode_hash(HASHES["18005552067", "msisdn"])


@pytest.mark.requirement("LOOK-08", "TPID-05", "TPID-06")
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "alice@example.com",
        "alice@example.com ",
        " alice@example.com email",
        "alice@example.com  email",
        "alice@example.com email ",
        "alice@example.com email x",
        "alice@example.com\temail",
        "alice@example.com Email",
        "alice@example.com fax",
        "\ud800 email",
    ],
    ids=ascii,
)
def test_malformed_plain_entry_is_none(text):
    assert plain_hash(text, PEPPER) is None


@pytest.mark.requirement("TPID-05")
def test_plain_entry_is_not_folded():
    assert plain_hash("ALICE@example.com email", PEPPER) == lookup_hash(
        "ALICE@example.com", "email", PEPPER
    )


@pytest.mark.requirement("LOOK-02")
def test_pepper_is_long_alphanumeric_and_never_the_same():
    peppers = {new_pepper() for _ in range(200)}
    assert len(peppers) == 200
    for pepper in peppers:
        assert len(pepper) == 20
        assert set(pepper) <= set(string.ascii_letters + string.digits)
    # Every one of the 62 characters comes up: 119 bits, not fewer.
    assert set("".join(peppers)) == set(string.ascii_letters + string.digits)
