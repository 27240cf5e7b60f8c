"""store-invite over v2: conformance.md section 14, limits, block lists, and who wants no mail."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from parts.invitations import (
    BOB,
    ROOM,
    invitation,
    invite,
    is_valid,
    limits,
    mailed_invitation,
    path_of,
)
from parts.processes import wait_until
from parts.server import V1, V2
from parts.validation import UNLIMITED, Crash, refused, sqlite_only
from unpaddedbase64 import decode_base64, encode_base64

from identity.invites.invite import redact
from identity.tables import metadata
from identity.threepid import ThreePid

# Exactly what Synapse sends, in canonical JSON, for a room it knows little about.
SYNAPSE = (
    b'{"address":"Bob@Example.com","medium":"email",'
    b'"org.matrix.web_client_location":"https://chat.example.org",'
    b'"room_alias":"","room_avatar_url":"","room_id":"!1q2w3e4r5t6y7u8i9o0pasdfghjklzxcvbnmqwert",'
    b'"room_join_rules":"invite","room_name":"","sender":"@alice:hs.test",'
    b'"sender_avatar_url":"","sender_display_name":"Alice"}'
)


def nothing_happened(server):
    """No invitation, no ephemeral key, no mail."""
    assert server.rows("invites") == []
    assert server.rows("ephemeral_keys") == []
    assert server.sender.mails == []
    return True


# --- the answer -------------------------------------------------------------------------------


@pytest.mark.requirement("INV-01", "INV-03", "INV-04")
def test_invitation_with_what_is_required_is_stored_and_mailed(server, alice, clock):
    answer = invite(alice)
    assert answer.status_code == 200
    assert set(answer.json) == {"token", "public_key", "public_keys", "display_name"}
    long_term = server.client.get(f"{V2}/pubkey/ed25519:0").json["public_key"]
    assert [set(key) for key in answer.json["public_keys"]] == [
        {"public_key", "key_validity_url"}
    ] * 2
    first, second = answer.json["public_keys"]
    assert first["public_key"] == answer.json["public_key"] == long_term
    assert second["public_key"] != long_term

    (row,) = server.rows("invites")
    wanted = {
        "token": answer.json["token"],
        "medium": "email",
        "address": BOB,
        "room_id": ROOM,
        "sender": alice.user_id,
        "key_id": "ed25519:0",
        "created_at_ms": clock.now_ms(),
        "expires_at_ms": clock.now_ms() + 90 * 86_400_000,
        "live": True,
        "delivered_at_ms": None,
        "revoked_at_ms": None,
    }
    assert {name: row[name] for name in wanted} == wanted
    (key,) = server.rows("ephemeral_keys")
    assert bytes(key["public_key"]) == decode_base64(second["public_key"])
    mail = mailed_invitation(server)
    assert (mail.recipient, mail.token) == (BOB, answer.json["token"])


@sqlite_only
@pytest.mark.requirement("INV-01")
def test_invitation_with_missing_or_mistyped_parameters_is_refused(server, alice):
    for name in ("medium", "address", "room_id", "sender"):
        body = invitation()
        del body[name]
        assert refused(alice.post("/store-invite", json=body), 400, "M_MISSING_PARAMS")
        for wrong in (None, 1, True, [BOB], {"a": "b"}):
            body = invitation() | {name: wrong}
            assert refused(alice.post("/store-invite", json=body), 400, "M_INVALID_PARAM")
    assert refused(alice.post("/store-invite", data=b"{"), 400, "M_NOT_JSON")
    assert refused(alice.post("/store-invite", data=b"[]"), 400, "M_BAD_JSON")
    form = "application/x-www-form-urlencoded"
    answer = alice.post("/store-invite", data="medium=email", content_type=form)
    assert refused(answer, 400, "M_NOT_JSON")
    assert nothing_happened(server)


@pytest.mark.requirement("INV-02")
def test_body_of_synapse_is_taken_and_names_the_web_client(make_server):
    server = make_server({"INVITES__WEB_CLIENTS": '["https://chat.example.org"]'})
    alice = server.account("@alice:hs.test")
    answer = alice.post("/store-invite", data=SYNAPSE, content_type="application/json")
    assert answer.status_code == 200, answer.json
    mail = mailed_invitation(server)
    room_id = "!1q2w3e4r5t6y7u8i9o0pasdfghjklzxcvbnmqwert"
    assert mail.link.startswith(f"https://chat.example.org/#/room/{room_id}?")
    (row,) = server.rows("invites")
    assert (row["address"], row["room_id"]) == (BOB, room_id)


@sqlite_only
@pytest.mark.requirement("INV-02")
def test_web_client_that_is_not_listed_is_not_linked_to(make_server):
    server = make_server(
        {
            **UNLIMITED,
            "INVITES__WEB_CLIENTS": '["https://chat.example.org", "https://b.example/app"]',
            "EMAIL__DEFAULT_WEB_CLIENT": "https://element.example.org",
        }
    )
    alice = server.account("@alice:hs.test")
    for named, linked in (
        ("https://chat.example.org", "https://chat.example.org/#/"),
        ("https://b.example/app/", "https://b.example/app/#/"),
        ("https://evil.example", "https://element.example.org/#/"),
        ("https://chat.example.org.evil.example", "https://element.example.org/#/"),
        ("https://chat.example.org@evil.example", "https://element.example.org/#/"),
        ("javascript:alert(1)", "https://element.example.org/#/"),
        ("", "https://element.example.org/#/"),
        ({"y": 1}, "https://element.example.org/#/"),
    ):
        more = {"org.matrix.web_client_location": named}
        assert invite(alice, **more).status_code == 200
        assert mailed_invitation(server).link.startswith(linked), named
        assert "evil" not in mailed_invitation(server).link


@sqlite_only
@pytest.mark.requirement("INV-02")
def test_optional_and_unknown_parameters_of_any_type_do_no_harm(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    names = ("room_alias", "room_name", "room_type", "sender_display_name", "x", "x.y-z", "")
    for value in ({"y": 1}, [1, [2]], 1.5, True, None, "", "é" * 5_000, "{{ token }}%(x)s"):
        for name in names:
            assert invite(alice, **{name: value}).status_code == 200, (name, value)
    assert len(server.rows("invites")) == len(server.sender.mails) == 8 * len(names)


@pytest.mark.requirement("INV-03")
def test_invitation_needs_an_access_token_and_accepted_terms(make_server, tmp_path):
    terms = tmp_path / "terms.yaml"
    terms.write_text(
        "docs: {privacy: {version: '1', langs: {en: {name: P, url: 'https://id.example.org/'}}}}"
    )
    server = make_server({"TERMS__FILE": str(terms)})
    alice = server.account("@alice:hs.test")
    path = f"{V2}/store-invite"
    for headers in ({}, {"Authorization": "Bearer bogus"}, {"Authorization": alice.token}):
        answer = server.client.post(path, json=invitation(), headers=headers)
        assert refused(answer, 401, "M_UNAUTHORIZED")
    in_query = server.client.post(f"{path}?access_token={alice.token}", json=invitation())
    assert refused(in_query, 401, "M_UNAUTHORIZED")
    assert refused(invite(alice), 403, "M_TERMS_NOT_SIGNED")
    assert nothing_happened(server)
    accepted = alice.post("/terms", json={"user_accepts": ["https://id.example.org/"]})
    assert accepted.status_code == 200
    assert invite(alice).status_code == 200


@sqlite_only
@pytest.mark.requirement("INV-05")
def test_tokens_are_state_keys_and_never_the_same(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    tokens = [invite(alice).json["token"] for _ in range(100)]
    assert len(set(tokens)) == 100
    for token in tokens:
        assert re.fullmatch(r"[0-9a-zA-Z.=_-]{22,255}", token, re.ASCII)  # 22: 128 bits
    # Nothing of them is constant.
    assert all(len(set(characters)) > 1 for characters in zip(*tokens, strict=True))


@pytest.mark.requirement("INV-06")
def test_ephemeral_key_is_fresh_and_its_private_half_is_only_in_the_mail(server, alice):
    seeds, public_keys = [], []
    for _ in range(3):
        answer = invite(alice)
        mail = mailed_invitation(server)
        assert is_valid(server, answer.json["public_keys"][1])
        assert mail.private_key not in answer.get_data(as_text=True)
        seeds.append(decode_base64(mail.private_key))
        public_keys.append(answer.json["public_keys"][1]["public_key"])
    assert len(set(seeds)) == len(set(public_keys)) == 3
    stored = everything_stored(server)
    assert decode_base64(public_keys[0]) in stored  # the scan sees what is there
    for seed in seeds:
        forms = [seed, seed.hex().encode(), *(encode_base64(seed, f).encode() for f in (0, 1))]
        for form in forms:
            assert form not in stored


def everything_stored(server):
    """Every value of every table, both as it lies there and unsealed."""
    values = []

    def raw(tx):
        for name in metadata.tables:
            values.extend(
                value for row in tx.execute(sa.text(f"SELECT * FROM {name}")) for value in row
            )

    server.database.read(raw)
    for name in metadata.tables:
        values.extend(value for row in server.rows(name) for value in row.values())
    parts = [
        bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
        for value in values
    ]
    return b"\n".join(parts)


@pytest.mark.requirement("INV-07", "KEY-04", "KEY-06", "LEG-06")
def test_validity_urls_answer_for_the_key_beside_them_and_no_other(make_server):
    server = make_server({"SERVER__PUBLIC_URL": "https://id.example.org/a", **UNLIMITED})
    alice = server.account("@alice:hs.test")
    long_term, ephemeral = invite(alice).json["public_keys"]
    base = f"https://id.example.org/a{V2}/pubkey"
    assert long_term["key_validity_url"] == f"{base}/isvalid"
    assert ephemeral["key_validity_url"] == f"{base}/ephemeral/isvalid"

    def ask(prefix, kind, key):
        path = f"{prefix}/pubkey/{kind}isvalid"
        answer = server.client.get(path, query_string={"public_key": key["public_key"]})
        assert answer.status_code == 200
        return answer.json

    for prefix in (V2, V1):
        assert ask(prefix, "", long_term) == {"valid": True}
        assert ask(prefix, "ephemeral/", ephemeral) == {"valid": True}
        assert ask(prefix, "", ephemeral) == {"valid": False}
        assert ask(prefix, "ephemeral/", long_term) == {"valid": False}
        assert ask(prefix, "ephemeral/", {"public_key": "junk"}) == {"valid": False}
        assert refused(
            server.client.get(f"{prefix}/pubkey/ephemeral/isvalid"), 400, "M_MISSING_PARAMS"
        )
    for key in (long_term, ephemeral):
        assert re.fullmatch(r"[A-Za-z0-9+/]{43}|[A-Za-z0-9_-]{43}", key["public_key"])


@sqlite_only
@pytest.mark.requirement("KEY-04")
def test_ephemeral_key_is_compared_by_its_bytes(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    keys = [invite(alice).json["public_keys"][1]["public_key"] for _ in range(20)]
    assert any("+" in key or "/" in key for key in keys)
    for key in keys:
        url_safe = key.replace("+", "-").replace("/", "_")
        for form in (key, key + "=", url_safe, url_safe + "=", key.replace("+", " ")):
            query = {"public_key": form}
            answer = server.client.get(f"{V2}/pubkey/ephemeral/isvalid", query_string=query)
            assert answer.json == {"valid": True}


@pytest.mark.requirement("INV-08")
@given(
    local=st.text("abcdefghijklmnopqrstuvwxyz0123456789+_", min_size=1, max_size=64),
    domain=st.from_regex(r"[a-z]{1,20}(\.[a-z]{2,10}){0,3}", fullmatch=True),
)
def test_display_name_gives_away_neither_local_part_nor_domain(local, domain):
    shown = redact(ThreePid.email(f"{local}@{domain}"))
    shown_local, at, shown_domain = shown.partition("@")
    assert at == "@"
    assert shown_local.endswith("...")
    assert shown_domain.endswith("...")
    for whole, part in ((local, shown_local), (domain, shown_domain)):
        kept = part.removesuffix("...")
        assert whole.startswith(kept)
        assert len(kept) < len(whole)


@sqlite_only
@pytest.mark.requirement("INV-08")
def test_display_name_of_the_answer_is_redacted(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    for address in (
        "a@b.co",
        "foo@bar.com",
        "f@example.com",
        "firstname.lastname@mail.example.com",
    ):
        name = invite(alice, address).json["display_name"]
        assert name == redact(ThreePid.email(address))
        local, _, domain = address.partition("@")
        assert address not in name
        assert domain not in name
        assert not name.startswith(f"{local}@")


@pytest.mark.requirement("INV-10")
def test_link_of_the_mail_lets_the_invitation_be_signed(make_server):
    server = make_server({"SERVER__PUBLIC_URL": "https://id.example.org"})
    alice = server.account("@alice:hs.test")
    texts = {
        "room_name": "Garden & club #1",
        "room_avatar_url": "mxc://hs.test/abc",
        "sender_display_name": "Alice ünder ?",
        "room_type": "m.space",
    }
    answer = invite(alice, "Bob+tag@Example.com", **texts).json
    mail = mailed_invitation(server)
    assert mail.link.startswith(f"https://app.element.io/#/room/{ROOM}?")
    assert mail.room_id == ROOM
    assert mail.linked == {
        "email": "bob+tag@example.com",
        "signurl": mail.sign_url,
        "room_name": "Garden & club #1",
        "room_avatar_url": "mxc://hs.test/abc",
        "inviter_name": "Alice ünder ?",
        "room_type": "m.space",
        "guest_access_token": "",
        "guest_user_id": "",
    }
    assert mail.sign_url == (
        f"https://id.example.org{V1}/sign-ed25519?token={answer['token']}"
        f"&private_key={mail.private_key}"
    )
    # A client adds its MXID and posts there without a body and without an access token.
    signed = server.client.post(f"{path_of(mail.sign_url)}&mxid=%40bob%3Ahs.test")
    assert signed.status_code == 200
    assert (signed.json["mxid"], signed.json["token"]) == ("@bob:hs.test", answer["token"])


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.requirement("INV-11", "INV-16")
def test_address_that_is_bound_is_told_with_its_owner_and_nothing_is_sent(server, alice, bob):
    assert bob.bind("Bob@Example.com").status_code == 200
    mails = len(server.sender.mails)
    for typed in (BOB, "BOB@example.COM"):
        answer = invite(alice, typed)
        assert refused(answer, 400, "M_THREEPID_IN_USE")
        assert answer.json["mxid"] == bob.user_id
    assert server.rows("invites") == server.rows("ephemeral_keys") == []
    assert len(server.sender.mails) == mails


@pytest.mark.requirement("INV-11")
def test_address_that_is_not_bound_any_more_can_be_invited(server, alice, bob):
    assert bob.bind(BOB).status_code == 200
    assert server.services.associations.unbind(
        ThreePid.email(BOB), server.services.accounts.authenticate(bob.token)
    )
    assert invite(alice).status_code == 200


@sqlite_only
@pytest.mark.requirement("INV-12")
@pytest.mark.parametrize(
    ("settings", "off"),
    [
        ({}, ()),
        ({"INVITES__ALLOW_MSISDN": "false"}, ("msisdn",)),
        # Mail goes to a relay, and no provider of text messages is named.
        ({"EMAIL__SMTP_HOST": "localhost"}, ("msisdn",)),
    ],
)
def test_medium_by_which_nobody_is_invited_is_unrecognized(make_server, settings, off):
    server = make_server(settings)
    alice = server.account("@alice:hs.test")
    for medium in ("fax", "Email", "EMAIL", "", *off):
        for address in (BOB, "447700900001"):
            answer = invite(alice, address, medium=medium)
            assert refused(answer, 400, "M_UNRECOGNIZED"), (medium, address)
    assert nothing_happened(server)
    assert server.text_sender.texts == []


@sqlite_only
@pytest.mark.requirement("INV-13")
def test_address_that_is_none_is_refused(server, alice):
    for address in ("a@b@c", "N <a@b.c>", "", "@", "bob", "a@b.c\r\nBcc: d@e.f", "a@b.c, d@e.f"):
        assert refused(invite(alice, address), 400, "M_INVALID_EMAIL"), address
    assert nothing_happened(server)


@pytest.mark.requirement("INV-13")
def test_invitation_to_a_domain_that_is_not_served_is_refused(make_server):
    lists = {
        "EMAIL__ALLOWED_DOMAINS": '["good.example", "*.corp.example"]',
        "EMAIL__DENIED_DOMAINS": '["x.corp.example"]',
    }
    server = make_server(UNLIMITED | lists)
    alice = server.account("@alice:hs.test")
    for domain in ("example.com", "x.corp.example", "X.Corp.Example", "corp.example"):
        assert refused(invite(alice, f"bob@{domain}"), 400, "M_INVALID_EMAIL"), domain
    assert nothing_happened(server)
    for domain in ("good.example", "Y.corp.example"):
        assert invite(alice, f"bob@{domain}").status_code == 200, domain


@pytest.mark.requirement("INV-13")
def test_invitation_whose_mail_is_refused_is_not_kept(server, alice, bob):
    server.sender.fails = True
    assert refused(invite(alice), 400, "M_EMAIL_SEND_ERROR")
    assert nothing_happened(server)
    server.sender.fails = False
    assert bob.bind(BOB).status_code == 200
    (bare,) = server.rows("deliveries")
    assert bare["invite"] is None


@sqlite_only
@pytest.mark.requirement("INV-13")
def test_invitation_that_a_fault_of_ours_stops_is_not_kept(server, alice):
    def fault():
        raise ZeroDivisionError

    server.sender.before_send = fault
    assert refused(invite(alice), 500, "M_UNKNOWN")
    assert nothing_happened(server)


@pytest.mark.requirement("INV-14")
def test_sender_must_be_the_account(server, alice, bob):
    for sender in (bob.user_id, "@ALICE:hs.test", "@alice:hs.test:8448", "@alice:other.test"):
        answer = alice.post("/store-invite", json=invitation(sender=sender))
        assert refused(answer, 403, "M_UNAUTHORIZED"), sender
    for sender in (
        "bob",
        "",
        "@bob",
        "@:hs.test",
        "alice:hs.test",
        "@a:b:c",
        "@" + "a" * 255 + ":b",
    ):
        answer = alice.post("/store-invite", json=invitation(sender=sender))
        assert refused(answer, 400, "M_INVALID_PARAM"), sender
    assert nothing_happened(server)


@pytest.mark.requirement("INV-15", "AMB-26")
def test_room_id_is_any_text_of_up_to_255_bytes(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    good = ["$aroom:fake.test", "!hash", "!" + "a" * 43, "!a b/é?#&:hs.test", "!" + "é" * 127]
    for room_id in good:
        assert invite(alice, room_id=room_id).status_code == 200, room_id
        assert mailed_invitation(server).room_id == room_id
    assert [row["room_id"] for row in server.rows("invites")] == good
    for room_id in ("", 1, "!" + "a" * 255, "!" + "é" * 128, "!a\nb", "!a\u202eb", None, []):
        assert refused(invite(alice, room_id=room_id), 400, "M_INVALID_PARAM"), room_id
    assert len(server.rows("invites")) == len(good)


@pytest.mark.requirement("INV-16")
def test_invitations_of_every_spelling_wait_for_one_address(server, alice, bob):
    for typed in ("Bob@Example.com", "BOB@EXAMPLE.COM", BOB):
        assert invite(alice, typed).status_code == 200
    rows = server.rows("invites")
    assert {row["address"] for row in rows} == {BOB}
    assert {recipient for recipient, _ in server.sender.mails} == {BOB}
    assert bob.bind("bOB@example.com").status_code == 200
    assert {row["invite"] for row in server.rows("deliveries")} == {
        row["token_hash"] for row in rows
    }


@sqlite_only
@pytest.mark.requirement("INV-17")
def test_line_breaks_in_names_make_no_header(server, alice):
    assert invite(alice, room_name="a\r\nBcc: eve@example.net").status_code == 200
    ((recipient, message),) = server.sender.mails
    assert recipient == message["To"] == BOB
    assert message["Bcc"] is None
    assert len(message["Subject"].splitlines()) == 1


# --- what the operator and the recipient do not want -------------------------------------------


@sqlite_only
def test_blocked_homeservers_rooms_and_words_are_refused(make_server):
    server = make_server(
        {
            **UNLIMITED,
            "INVITES__BLOCKED_HOMESERVERS": '["Evil.test", "ports.test:8448"]',
            "INVITES__BLOCKED_ROOMS": '["!spam:hs.test"]',
            "INVITES__BLOCKED_KEYWORDS": '["Casino", "straße"]',
        }
    )
    cases = [
        ("@a:evil.test", {}),
        ("@a:EVIL.test", {}),
        ("@a:ports.test:8448", {}),
        ("@a:hs.test", {"room_id": "!spam:hs.test"}),
        ("@a:hs.test", {"room_name": "Free CASINO here"}),
        ("@a:hs.test", {"sender_display_name": "my-casino"}),
        ("@a:hs.test", {"org.example.topic": "casino"}),
        ("@a:hs.test", {"room_alias": "#STRASSE:hs.test"}),
    ]
    for user_id, more in cases:
        answer = invite(server.account(user_id), **more)
        assert refused(answer, 403, "M_FORBIDDEN"), (user_id, more)
    assert nothing_happened(server)
    for user_id, more in (
        ("@a:notevil.test", {}),
        ("@a:sub.evil.test", {}),
        ("@a:ports.test", {}),
        ("@a:hs.test", {"room_id": "!Spam:hs.test", "room_name": "Cas ino"}),
    ):
        assert invite(server.account(user_id), **more).status_code == 200, (user_id, more)


def limited(server, answer):
    assert refused(answer, 429, "M_LIMIT_EXCEEDED")
    assert answer.json["retry_after_ms"] > 0
    assert int(answer.headers["Retry-After"]) >= answer.json["retry_after_ms"] / 1000
    return True


@pytest.mark.requirement("INV-17")
def test_invitations_are_limited_by_sender_recipient_and_homeserver(make_server, clock):
    server = make_server(
        limits(invite_sender="3/h", invite_recipient="2/d", invite_homeserver="5/h")
    )
    alice, bob, carol = (server.account(f"@{name}:hs.test") for name in ("alice", "bob", "carol"))
    stranger = server.account("@x:elsewhere.test")
    for account in (alice, bob):
        assert invite(account, "same@example.com").status_code == 200
    # Whoever sends it, and however it is spelt.
    assert limited(server, invite(stranger, "SAME@example.com"))
    for number in range(2):
        assert invite(alice, f"{number}@example.com").status_code == 200
    assert limited(server, invite(alice, "more@example.com"))
    assert invite(carol, "more@example.com").status_code == 200
    # hs.test has sent five by now.
    assert limited(server, invite(carol, "another@example.com"))
    assert limited(server, invite(server.account("@d:HS.test"), "another@example.com"))
    assert invite(stranger, "another@example.com").status_code == 200
    assert len(server.rows("invites")) == len(server.sender.mails) == 6
    clock.advance(hours=1)
    assert invite(alice, "later@example.com").status_code == 200
    assert limited(server, invite(stranger, "same@example.com"))
    clock.advance(hours=12)
    assert invite(stranger, "same@example.com").status_code == 200


def test_whether_an_address_is_bound_is_paid_for_like_a_lookup(make_server, clock):
    """Security, row 3 in small: no more answers than the budget, whichever way they are asked."""
    server = make_server(
        limits(lookup_account="20/3d", invite_sender="1000/h", invite_homeserver="1000/h")
    )
    mxids = [f"@user{number}:elsewhere.test" for number in range(60)]
    for number, mxid in enumerate(mxids):
        server.bind_directly(f"{number}@example.com", mxid)
    alice = server.account("@alice:hs.test")
    pepper = alice.get("/hash_details").json["lookup_pepper"]
    asked = [server.hash_of(f"{number}@example.com") for number in range(5)]
    body = {"algorithm": "sha256", "pepper": pepper, "addresses": asked}
    assert len(alice.post("/lookup", json=body).json["mappings"]) == 5
    answers = [invite(alice, f"{number}@example.com") for number in range(60)]
    assert [answer.json["mxid"] for answer in answers if answer.status_code == 400] == mxids[:15]
    assert all(limited(server, answer) for answer in answers[15:])
    # What is not bound is an answer as well.
    assert limited(server, invite(alice, "unbound@example.com"))
    assert alice.post("/lookup", json=body).status_code == 429
    assert nothing_happened(server)
    clock.advance(hours=12)
    assert refused(invite(alice, "59@example.com"), 400, "M_THREEPID_IN_USE")


def test_invitations_at_once_do_not_get_past_a_limit(make_server):
    server = make_server(limits(invite_recipient="3/d"))
    accounts = [server.account(f"@user{number}:hs{number}.test") for number in range(12)]

    def send(account):
        headers = {"Authorization": f"Bearer {account.token}"}
        body = invitation(sender=account.user_id)
        client = server.app.test_client()
        return client.post(f"{V2}/store-invite", json=body, headers=headers).status_code

    with ThreadPoolExecutor(12) as threads:
        statuses = list(threads.map(send, accounts))
    assert sorted(statuses) == [200] * 3 + [429] * 9
    assert len(server.rows("invites")) == len(server.sender.mails) == 3


def test_recipient_refuses_further_mail_by_the_page_alone(server, alice, bob, clock):
    assert invite(alice).status_code == 200
    mail = mailed_invitation(server)
    assert mail.refuse_link.startswith("http://localhost:8090/_matrix/identity/")
    path = path_of(mail.refuse_link)
    for answer in (server.client.get(path), server.client.head(path)):
        assert (answer.status_code, answer.mimetype) == (200, "text/html")
    page = server.client.get(path).get_data(as_text=True)
    # Opening it, as programs do that look at mails, changes nothing.
    assert server.rows("unwanted_mail") == []
    assert invite(bob).status_code == 200

    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
    where = re.search(r'<form method="post"(?: action="([^"]*)")?>', page)[1] or path
    for _ in range(2):
        done = server.client.post(where, data=fields)
        assert (done.status_code, done.mimetype) == (200, "text/html")
    (row,) = server.rows("unwanted_mail")
    assert set(row) == {"threepid", "since_ms"}
    assert bytes(row["threepid"]) == server.database.keys.blind_index(ThreePid.email(BOB))
    assert BOB.encode() not in bytes(row["threepid"])

    clock.advance(hours=24)
    mails = len(server.sender.mails)
    for account, address in ((alice, BOB), (bob, "BOB@Example.com")):
        assert refused(invite(account, address), 403, "M_FORBIDDEN")
    assert len(server.sender.mails) == mails
    assert len(server.rows("invites")) == 2
    assert invite(alice, "carol@example.com").status_code == 200
    # What the recipient asks for is still mailed, and what waits is still fulfilled.
    assert bob.bind(BOB).status_code == 200
    assert len(server.rows("deliveries")) == 2


@sqlite_only
def test_mail_is_not_refused_by_one_who_does_not_have_it(make_server, clock):
    """The token alone is known to everyone in the room."""
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    token = invite(alice, "carol@example.com").json["token"]
    other = mailed_invitation(server)
    assert invite(alice).json["token"] != token
    mail = mailed_invitation(server)
    path, _, query = path_of(mail.refuse_link).partition("?")
    code = re.search(r"code=([^&]+)", query)[1]
    foreign = re.search(r"code=([^&]+)", other.refuse_link)[1]
    attempts = [
        {},
        {"token": mail.token},
        {"code": code},
        {"token": mail.token, "code": ""},
        {"token": mail.token, "code": code[:-1]},
        {"token": mail.token, "code": foreign},
        {"token": mail.token, "code": "é"},
        {"token": "nope", "code": code},
        {"token": token, "code": code},
    ]
    for values in attempts:
        for answer in (
            server.client.post(path, data=values),
            server.client.post(path, json=values),
            server.client.get(path, query_string=values),
        ):
            assert (answer.status_code in (400, 404), answer.mimetype) == (True, "text/html")
            assert "example.com" not in answer.get_data(as_text=True)
    assert server.rows("unwanted_mail") == []
    assert invite(alice).status_code == 200


# --- an invitation over time -------------------------------------------------------------------


def test_invitation_ends_with_its_time(make_server, clock):
    server = make_server({"INVITES__LIFETIME": "7d"})
    alice, bob = server.account("@alice:hs.test"), server.account("@bob:hs.test")
    keys = invite(alice).json["public_keys"]
    mail = mailed_invitation(server)
    clock.advance(hours=7 * 24, ms=-1)
    assert server.services.invites.purge() == 0
    assert is_valid(server, keys[1])
    clock.advance(ms=1)
    # What has expired is not fulfilled, purged or not.
    assert bob.bind(BOB).status_code == 200
    assert [row["invite"] for row in server.rows("deliveries")] == [None]
    assert server.services.invites.purge() == 1
    assert server.rows("invites") == []
    assert not is_valid(server, keys[1])
    assert is_valid(server, keys[0])
    assert refused(
        server.client.post(f"{path_of(mail.sign_url)}&mxid=@b:hs.test"), 404, "M_UNRECOGNIZED"
    )
    assert server.services.invites.purge() == 0


def test_invitation_whose_sending_crashed_is_never_fulfilled_and_is_reaped(
    server, alice, bob, clock
):
    def crash():
        raise Crash

    server.sender.before_send = crash
    with pytest.raises(Crash):
        invite(alice)
    server.sender.before_send = lambda: None
    (row,) = server.rows("invites")
    assert not row["live"]
    assert bob.bind(BOB).status_code == 200
    assert [delivery["invite"] for delivery in server.rows("deliveries")] == [None]
    clock.advance(minutes=59)
    assert server.services.invites.purge() == 0  # it may still be on its way
    clock.advance(minutes=2)
    assert server.services.invites.purge() == 1
    assert server.rows("invites") == []
    (key,) = server.rows("ephemeral_keys")
    assert key["revoked_at_ms"] == clock.now_ms()


def test_invitation_made_live_while_its_address_is_being_bound_is_told(server, alice, bob):
    """The address is bound while the mail is on its way: nobody else would ever tell it."""
    validated = bob.validate(BOB)

    def bind_meanwhile():
        server.sender.before_send = lambda: None
        answer = bob.post("/3pid/bind", json={**validated, "mxid": bob.user_id})
        assert answer.status_code == 200

    server.sender.before_send = bind_meanwhile
    token = invite(alice).json["token"]
    (row,) = server.rows("invites")
    assert row["token"] == token
    told = {delivery["invite"]: delivery for delivery in server.rows("deliveries")}
    assert set(told) == {None, row["token_hash"]}
    assert told[row["token_hash"]]["mxid"] == bob.user_id
    assert told[row["token_hash"]]["next_try_at_ms"] is not None


def test_invitations_and_binds_at_once_leave_no_invitation_behind(make_server):
    server = make_server(UNLIMITED)
    count = 12
    accounts = [server.account(f"@user{number}:hs.test") for number in range(count)]

    def send(number):
        headers = {"Authorization": f"Bearer {accounts[number].token}"}
        body = invitation(f"{number}@example.com", accounts[number].user_id)
        client = server.app.test_client()
        return client.post(f"{V2}/store-invite", json=body, headers=headers).status_code

    def bind(number):
        wait_until(
            lambda: any(to == f"{number}@example.com" for to, _ in list(server.sender.mails))
        )
        server.bind_directly(f"{number}@example.com", "@bob:hs.test")

    with ThreadPoolExecutor(2 * count) as threads:
        binds = [threads.submit(bind, number) for number in range(count)]
        assert list(threads.map(send, range(count))) == [200] * count
        for each in binds:
            each.result()
    waiting = {row["token_hash"] for row in server.rows("invites")}
    told = [row["invite"] for row in server.rows("deliveries") if row["invite"] is not None]
    assert sorted(told) == sorted(waiting)
    assert len(waiting) == count
