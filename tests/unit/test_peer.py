"""Peers: their names, URLs, keys and scopes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.errors import InvalidParameter, InvalidRequest
from identity.replication.peer import Scope, parse_key_id, parse_name, parse_url
from identity.threepid import _PLAIN, Medium, ThreePid, _folded_email


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://id.test", "https://id.test"),
        ("https://id.test/", "https://id.test"),
        ("https://id.test:8443/identity/", "https://id.test:8443/identity"),
        ("http://127.0.0.1:8090", "http://127.0.0.1:8090"),
        ("https://[::1]:8090", "https://[::1]:8090"),
    ],
)
def test_url_of_a_peer_is_kept_without_its_last_slash(text, url):
    assert parse_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "id.test",
        "ftp://id.test",
        "https://",
        "https://id.test:0",
        "https://id.test:99999",
        "https://id.test:x",
        "https://[::1",
        "https://user@id.test",
        "https://id.test/?a=b",
        "https://id.test/#a",
        "https://id.test/a b",
        "https://id.test/\n",
        "https://ïd.test",
        "https://id.test/" + "a" * 2_048,
    ],
)
def test_url_that_is_none_is_refused(text):
    with pytest.raises(InvalidParameter):
        parse_url(text)


@pytest.mark.parametrize(
    "text", ["", "ed25519", "ed25519:", "rsa:1", "ed25519:a b", "0", "ed25519:é"]
)
def test_key_id_that_is_none_is_refused(text):
    with pytest.raises(InvalidParameter):
        parse_key_id(text)


def test_names_and_key_ids_are_kept_as_they_are():
    assert parse_key_id("ed25519:a_1") == "ed25519:a_1"
    assert parse_name("id.test:8448") == "id.test:8448"
    with pytest.raises(InvalidParameter):
        parse_name("https://id.test")


def test_scope_is_as_wide_as_it_is_said():
    assert Scope.parse() == Scope()
    # Who named a domain did not mean every phone number.
    assert Scope.parse(domains=["Example.COM"]).media == {Medium.EMAIL}
    assert Scope.parse(domains=["@example.com"]).domains == {"example.com"}
    assert Scope.parse(prefixes=["+44", "49"]).prefixes == ("44", "49")
    assert Scope.parse(prefixes=["44"], domains=["a.test"]).media == {Medium.EMAIL, Medium.MSISDN}
    stored = Scope.parse(media=["email", "msisdn"], domains=["a.test"])
    assert Scope.parse(stored.media, stored.domains, stored.prefixes) == stored


@pytest.mark.parametrize(
    "limits",
    [
        {"media": ["fax"]},
        {"domains": ["a b"]},
        {"domains": [""]},
        {"prefixes": ["0"]},
        {"prefixes": ["4x"]},
        {"prefixes": ["1" * 16]},
    ],
)
def test_scope_that_is_none_is_refused(limits):
    with pytest.raises(InvalidRequest):
        Scope.parse(**limits)


@given(st.from_regex(_PLAIN, fullmatch=True))
def test_address_that_is_plain_is_what_the_library_makes_of_it(address):
    """The short cut for addresses that are canonical beyond doubt is one."""
    if len(address) <= 254:
        assert _folded_email(address) == address == ThreePid.email(address).address
