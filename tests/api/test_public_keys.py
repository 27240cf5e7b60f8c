"""Conformance, section 5: the server's long-term public keys."""

import pytest
from parts.server import V1, V2
from parts.validation import refused, sqlite_only
from signedjson.key import decode_verify_key_bytes
from signedjson.sign import verify_signed_json
from unpaddedbase64 import decode_base64, encode_base64

from identity.keys.keyfile import write_signing_keys
from identity.signing import SigningKey

PREFIXES = [V2, V1]
# Its public key has both characters by which the two alphabets differ.
SEED = next(
    seed
    for seed in (number.to_bytes(32) for number in range(1_000))
    if {"+", "/"} <= set(encode_base64(SigningKey.from_seed("ed25519:0", seed).public_key))
)


@pytest.fixture
def server(make_server, tmp_path):
    """Its key is the one of SEED."""
    path = tmp_path / "signing.keys"
    write_signing_keys(path, {"ed25519:0": SigningKey.from_seed("ed25519:0", SEED)})
    return make_server({"KEYS__SIGNING_KEYS": str(path)})


@pytest.fixture
def is_valid(server):
    def ask(public_key, prefix=V2, *, ephemeral=False):
        path = f"{prefix}/pubkey/{'ephemeral/' if ephemeral else ''}isvalid"
        answer = server.client.get(path, query_string={"public_key": public_key})
        assert answer.status_code == 200
        assert set(answer.json) == {"valid"}
        assert isinstance(answer.json["valid"], bool)
        return answer.json["valid"]

    return ask


def public_key(server, key_id="ed25519:0", prefix=V2):
    answer = server.client.get(f"{prefix}/pubkey/{key_id}")
    assert answer.status_code == 200
    assert set(answer.json) == {"public_key"}
    return answer.json["public_key"]


@pytest.mark.requirement("KEY-01")
def test_public_key_is_given_out_and_verifies_what_the_server_signs(server, alice):
    key = public_key(server)
    assert len(decode_base64(key)) == 32
    assert key == encode_base64(SigningKey.from_seed("ed25519:0", SEED).public_key)
    assert len(key) == 43  # the standard alphabet without padding
    assert public_key(server, "ed25519%3A0") == key

    association = alice.bind("a@example.com").json
    verify_key = decode_verify_key_bytes("ed25519:0", decode_base64(key))
    verify_signed_json(association, "localhost", verify_key)


@pytest.mark.requirement("KEY-02")
@pytest.mark.parametrize(
    "key_id", ["ed25519:zzz", "foo", "ed25519", "ed25519:", ":0", "ed25519:1", "ED25519:0", "%25"]
)
@sqlite_only
def test_unknown_key_id_is_not_found(server, key_id):
    for prefix in PREFIXES:
        answer = server.client.get(f"{prefix}/pubkey/{key_id}")
        assert refused(answer, 404, "M_NOT_FOUND")
        assert answer.mimetype == "application/json"


@pytest.mark.requirement("KEY-03", "KEY-04")
def test_own_key_is_valid_and_others_are_not(server, is_valid):
    key = public_key(server)
    other = encode_base64(bytes(32))
    for prefix in PREFIXES:
        assert is_valid(key, prefix)
        assert not is_valid(other, prefix)
        # A long-term key is no ephemeral one.
        assert not is_valid(key, prefix, ephemeral=True)
        assert not is_valid(other, prefix, ephemeral=True)


@pytest.mark.requirement("KEY-05")
@sqlite_only
def test_key_is_compared_by_its_bytes_in_whatever_encoding(server, is_valid):
    key = public_key(server)
    assert "+" in key
    assert "/" in key
    url_safe = key.replace("+", "-").replace("/", "_")
    for form in (key, key + "=", url_safe, url_safe + "="):
        assert is_valid(form), form
    for prefix in PREFIXES:
        # As a client sends it that does not escape the query.
        answer = server.client.get(f"{prefix}/pubkey/isvalid?public_key={key}")
        assert answer.json == {"valid": True}
        assert is_valid(key.replace("+", " "), prefix)
    garbage = ["", "x", "é", "=", "====", key[:-1], key + "A", key[::-1], key.swapcase()]
    for form in [*garbage, "\N{FULLWIDTH LATIN CAPITAL LETTER A}" * 43, "%", "A" * 10_000]:
        assert not is_valid(form), form


@pytest.mark.requirement("KEY-06")
@sqlite_only
def test_key_to_check_must_be_given(server):
    for prefix in PREFIXES:
        for path in ("isvalid", "ephemeral/isvalid"):
            answer = server.client.get(f"{prefix}/pubkey/{path}")
            assert refused(answer, 400, "M_MISSING_PARAMS")


@pytest.mark.requirement("KEY-07")
@sqlite_only
def test_legacy_paths_answer_the_same_bytes_even_when_the_rest_of_it_is_off(make_server):
    for settings in ({}, {"LEGACY_API__CORE": "false"}):
        server = make_server(settings)
        key = public_key(server)
        for path in (
            "/pubkey/ed25519:0",
            "/pubkey/ed25519%3A0",
            "/pubkey/ed25519:nope",
            f"/pubkey/isvalid?public_key={key}",
            "/pubkey/isvalid?public_key=x",
            "/pubkey/isvalid",
            f"/pubkey/ephemeral/isvalid?public_key={key}",
            "/pubkey/ephemeral/isvalid",
        ):
            old, new = (server.client.get(prefix + path) for prefix in (V1, V2))
            assert old.status_code == new.status_code
            assert old.get_data() == new.get_data()
            assert old.headers["Content-Type"] == new.headers["Content-Type"]
        assert public_key(server, prefix=V1) == key


@pytest.mark.requirement("KEY-08")
def test_replaced_key_stays_published_and_valid_until_it_is_revoked(server, alice, is_valid, clock):
    old = public_key(server)
    assert set(alice.bind("a@example.com").json["signatures"]["localhost"]) == {"ed25519:0"}
    clock.advance(hours=1)
    assert server.services.signing_keys.rotate() == "ed25519:1"
    new = public_key(server, "ed25519:1")
    assert new != old
    assert public_key(server) == old
    assert is_valid(old)
    assert is_valid(new)

    association = alice.bind("b@example.com").json
    assert set(association["signatures"]["localhost"]) == {"ed25519:1"}
    verify_key = decode_verify_key_bytes("ed25519:1", decode_base64(new))
    verify_signed_json(association, "localhost", verify_key)

    server.services.signing_keys.revoke("ed25519:0")
    for prefix in PREFIXES:
        assert not is_valid(old, prefix)
        assert is_valid(new, prefix)
        # Old signatures can still be checked.
        assert public_key(server, prefix=prefix) == old
