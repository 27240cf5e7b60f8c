"""sign-ed25519 over v2 and v1: conformance.md section 14; security, rows 47 and 48."""

import secrets

import pytest
from parts.invitations import (
    ROOM,
    invite,
    is_signed,
    is_valid,
    mailed_invitation,
    path_of,
)
from parts.server import V1, V2
from parts.validation import UNLIMITED, refused, sqlite_only
from parts.vectors import load
from unpaddedbase64 import decode_base64, encode_base64

from identity.signing import SigningKey

BOB = "@bob:hs.test"


@pytest.fixture
def invited(server, alice):
    """The answer to store-invite, and what its mail carries."""
    answer = invite(alice)
    assert answer.status_code == 200
    return answer.json, mailed_invitation(server)


def values(mail, **changed):
    return {"mxid": BOB, "token": mail.token, "private_key": mail.private_key, **changed}


@pytest.mark.requirement("INV-18")
def test_published_vector_is_signed_alike():
    seed = decode_base64(load("signed_json")["seed"])
    key = SigningKey.from_seed("ed25519:1", seed)
    signed = key.sign(
        {"mxid": "@foo:bar.com", "sender": "@baz:bar.com", "token": "abc123"}, "my.id.server"
    )
    assert signed["signatures"] == {
        "my.id.server": {
            "ed25519:1": "m6rWIAk7XyOljo72hR/3FbuNaq4j8B3FLzrskNgvdOYnXquLyCkljF+40RewSZbMKfF8FugVJOn8SVZxhgahCQ"
        }
    }


@pytest.mark.requirement("INV-18")
def test_invitation_is_signed_by_its_ephemeral_key(server, bob, invited):
    answer, mail = invited
    signed = bob.post("/sign-ed25519", json=values(mail))
    assert signed.status_code == 200
    assert set(signed.json) == {"mxid", "sender", "token", "signatures"}
    assert signed.json["mxid"] == BOB
    assert signed.json["sender"] == "@alice:hs.test"
    assert signed.json["token"] == answer["token"]
    assert {name: set(keys) for name, keys in signed.json["signatures"].items()} == {
        "localhost": {"ed25519:0"}
    }
    assert is_signed(signed.json, answer["public_keys"][1]["public_key"], "ed25519:0")


@sqlite_only
@pytest.mark.requirement("INV-18")
def test_signing_needs_an_access_token_on_v2(server, invited):
    _, mail = invited
    for headers in ({}, {"Authorization": "Bearer bogus"}):
        answer = server.client.post(f"{V2}/sign-ed25519", json=values(mail), headers=headers)
        assert refused(answer, 401, "M_UNAUTHORIZED")


@pytest.mark.requirement("INV-19")
def test_unknown_token_is_unrecognized(server, bob, invited):
    _, mail = invited
    almost = mail.token[:-1] + ("A" if mail.token[-1] != "A" else "B")
    for token in ("nope", almost, mail.token.swapcase(), "", "é", "x" * 10_000):
        # Whatever the key is: none belongs to that token.
        for private_key in (mail.private_key, "xx", encode_base64(bytes(32))):
            body = values(mail, token=token, private_key=private_key)
            assert refused(bob.post("/sign-ed25519", json=body), 404, "M_UNRECOGNIZED")
            legacy = server.client.post(f"{V1}/sign-ed25519", json=body)
            assert refused(legacy, 404, "M_UNRECOGNIZED")


@pytest.mark.requirement("INV-20", "LEG-04")
def test_private_key_is_read_in_every_form_of_base64(make_server):
    server = make_server(UNLIMITED)
    alice, bob = server.account("@alice:hs.test"), server.account(BOB)
    while True:
        assert invite(alice).status_code == 200
        mail = mailed_invitation(server)
        seed = decode_base64(mail.private_key)
        standard = encode_base64(seed)
        if {"+", "/"} <= set(standard):
            break
    url_safe = encode_base64(seed, urlsafe=True)
    forms = [standard, standard + "=", url_safe, url_safe + "=", standard.replace("+", " ")]
    answers = [bob.post("/sign-ed25519", json=values(mail, private_key=form)) for form in forms]
    answers += [
        server.client.post(f"{V1}/sign-ed25519", query_string=values(mail, private_key=form))
        for form in forms
    ]
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json == answers[0].json for answer in answers)
    raw = f"{V1}/sign-ed25519?token={mail.token}&private_key={standard}&mxid={BOB}"
    assert server.client.post(raw).json == answers[0].json  # the "+" arrives as a space


@sqlite_only
@pytest.mark.requirement("INV-20")
def test_private_key_that_is_none_is_refused(server, bob, invited):
    _, mail = invited
    wrong = ["xx", "", "é" * 43, "!" * 43, "A" * 42, "A" * 44, "A" * 86, "=" * 43, "A" * 100_000]
    for private_key in wrong:
        body = values(mail, private_key=private_key)
        assert refused(bob.post("/sign-ed25519", json=body), 400, "M_INVALID_PARAM"), private_key
        legacy = server.client.post(f"{V1}/sign-ed25519", json=body)
        assert refused(legacy, 400, "M_INVALID_PARAM"), private_key


@sqlite_only
@pytest.mark.requirement("INV-18")
def test_missing_or_mistyped_parameters_are_refused(server, bob, invited):
    _, mail = invited
    for name in ("mxid", "token", "private_key"):
        body = values(mail)
        del body[name]
        assert refused(bob.post("/sign-ed25519", json=body), 400, "M_MISSING_PARAMS")
        assert refused(server.client.post(f"{V1}/sign-ed25519", json=body), 400, "M_MISSING_PARAMS")
        for value in (None, 1, [], {}):
            body = values(mail) | {name: value}
            assert refused(bob.post("/sign-ed25519", json=body), 400, "M_INVALID_PARAM")
    for mxid in ("bob", "", "@bob", "@:hs.test", "@b:c:d", "@bob:hs.test\n"):
        body = values(mail, mxid=mxid)
        assert refused(bob.post("/sign-ed25519", json=body), 400, "M_INVALID_PARAM"), mxid
        legacy = server.client.post(f"{V1}/sign-ed25519", json=body)
        assert refused(legacy, 400, "M_INVALID_PARAM"), mxid


@pytest.mark.requirement("INV-18")
def test_account_gets_a_signature_for_itself_only(server, bob, invited):
    """Decision 18; security, row 47."""
    _, mail = invited
    for mxid in ("@eve:hs.test", "@bob:hs.test:8448", "@BOB:hs.test"):
        answer = bob.post("/sign-ed25519", json=values(mail, mxid=mxid))
        assert refused(answer, 403, "M_UNAUTHORIZED"), mxid


def test_server_signs_by_no_key_but_that_of_the_token(server, alice, bob, invited):
    """Security, row 47: it is no oracle for keys that a caller brings."""
    _, mail = invited
    other = mailed_invitation(server) if invite(alice).status_code == 200 else None
    own = encode_base64(secrets.token_bytes(32))
    long_term = encode_base64(server.services.signing_keys.all_held("ed25519:0")[0].seed)
    for private_key in (own, other.private_key, long_term):
        body = values(mail, private_key=private_key)
        assert refused(bob.post("/sign-ed25519", json=body), 400, "M_INVALID_PARAM")
        legacy = server.client.post(f"{V1}/sign-ed25519", json=body)
        assert refused(legacy, 400, "M_INVALID_PARAM")
    # What it signs is exactly the three values; nothing a caller adds gets in.
    body = values(mail) | {"sender": "@eve:hs.test", "room_id": ROOM, "signatures": {"x": {}}}
    signed = bob.post("/sign-ed25519", json=body).json
    assert set(signed) == {"mxid", "sender", "token", "signatures"}
    assert signed["sender"] == "@alice:hs.test"
    assert set(signed["signatures"]) == {"localhost"}


def test_invitation_is_redeemed_only_by_one_who_has_the_mail(server, bob, invited):
    """Security, row 48: its token is in the state of the room, so it opens nothing alone."""
    answer, mail = invited
    guesses = [encode_base64(secrets.token_bytes(32)) for _ in range(20)]
    guesses += [key["public_key"] for key in answer["public_keys"]] + [mail.token]
    for private_key in guesses:
        body = values(mail, mxid="@eve:hs.test", private_key=private_key)
        legacy = server.client.post(f"{V1}/sign-ed25519", query_string=body)
        assert refused(legacy, 400, "M_INVALID_PARAM")
    for token in (secrets.token_urlsafe(24) for _ in range(20)):
        legacy = server.client.post(
            f"{V1}/sign-ed25519", query_string=values(mail, mxid="@eve:hs.test", token=token)
        )
        assert refused(legacy, 404, "M_UNRECOGNIZED")
    # The owner is not hindered by any of it.
    signed = bob.post("/sign-ed25519", json=values(mail))
    assert is_signed(signed.json, answer["public_keys"][1]["public_key"], "ed25519:0")


@pytest.mark.requirement("INV-19", "KEY-04")
def test_revoked_invitation_is_unknown_and_its_key_not_valid(server, alice, bob, invited):
    answer, mail = invited
    server.services.invites.revoke(answer["token"], None)
    assert refused(bob.post("/sign-ed25519", json=values(mail)), 404, "M_UNRECOGNIZED")
    legacy = server.client.post(f"{path_of(mail.sign_url)}&mxid={BOB}")
    assert refused(legacy, 404, "M_UNRECOGNIZED")
    long_term, ephemeral = answer["public_keys"]
    assert is_valid(server, long_term)
    assert not is_valid(server, ephemeral)
