"""Invitations by text message: store-invite for `medium: msisdn`, and the page behind the link."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from parts.homeserver import FakeHomeserver
from parts.invitations import (
    REACHABLE,
    ROOM,
    deliver,
    invite,
    is_signed,
    is_valid,
    lead,
    limits,
    path_of,
    told,
)
from parts.phones import LINK, NUMBER, bind_number, request_code
from parts.server import V1, V2
from parts.validation import UNLIMITED, Crash, refused, sqlite_only
from unpaddedbase64 import decode_base64, encode_base64

from identity.errors import DestinationRejected, InvalidPhoneNumber, SmsNotSent, SmsUnclear
from identity.invites.invite import redact
from identity.threepid import ThreePid

BOB_ID = "@bob:hs.test"
TEXTS = {
    "room_name": "Garden <b>club</b>",
    "room_avatar_url": "mxc://hs.test/abc",
    "sender_display_name": "Alice & co",
    "room_type": "m.space",
    "org.matrix.web_client_location": "https://chat.example.org",
}
DAY_MS = 86_400_000


def text(account, address=NUMBER, **more):
    """An invitation by text message."""
    return invite(account, address, medium="msisdn", **more)


def link_in_text(server, index=-1):
    return LINK.search(server.text_sender.texts[index][1])[0]


def opened(server, index=-1, status=200):
    """The page behind the link of a message."""
    page = server.client.get(path_of(link_in_text(server, index)))
    assert (page.status_code, page.mimetype) == (status, "text/html")
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["X-Robots-Tag"] == "noindex"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "<script" not in page.text
    return page


def links_of(page):
    """Of the button into the web client, and of "no more invitations"."""
    links = re.findall(r'<a [^>]*href="([^"]*)"', page.text)
    return [link.replace("&amp;", "&") for link in links]


def words_of(page):
    """What a person reads, in small letters."""
    return re.sub(r"<[^>]*>", "", page.text.partition("<main")[2]).lower()


def nothing_happened(server):
    assert server.rows("invites") == server.rows("ephemeral_keys") == []
    assert server.text_sender.texts == []
    return True


# --- what is sent --------------------------------------------------------------------------------


@pytest.mark.requirement("INV-01", "INV-03", "INV-04", "INV-08")
def test_invitation_by_text_is_stored_and_sent_to_the_number(make_server, clock):
    server = make_server({"SERVER__PUBLIC_URL": "https://id.example.org"})
    alice = server.account("@alice:hs.test")
    answer = text(alice, **TEXTS)
    assert answer.status_code == 200, answer.json
    assert set(answer.json) == {"token", "public_key", "public_keys", "display_name"}
    assert len(answer.json["public_keys"]) == 2
    assert all(is_valid(server, key) for key in answer.json["public_keys"])
    assert answer.json["display_name"] == "...01"
    (row,) = server.rows("invites")
    wanted = {
        "token": answer.json["token"],
        "medium": "msisdn",
        "address": NUMBER,
        "room_id": ROOM,
        "sender": alice.user_id,
        "expires_at_ms": clock.now_ms() + 90 * DAY_MS,
        "live": True,
    }
    assert {name: row[name] for name in wanted} == wanted
    ((recipient, sent),) = server.text_sender.texts
    assert recipient == NUMBER
    link = link_in_text(server)
    assert re.fullmatch(r"https://id\.example\.org/_matrix/identity/i/[0-9A-Za-z_-]{43}", link)
    assert answer.json["token"] not in sent
    assert server.sender.mails == []


@pytest.mark.requirement("INV-08")
def test_display_name_of_a_number_shows_two_digits_at_the_most():
    for digits in ("447700900001", "14155550132", "39066982", "4915123456789"):
        shown = redact(ThreePid.msisdn(digits))
        assert len(re.findall("[0-9]", shown)) <= 2
        assert shown == f"...{digits[-2:]}"


@pytest.mark.requirement("INV-06")
def test_private_half_of_the_key_is_only_in_the_message(server, alice):
    answer = text(alice)
    seed = decode_base64(link_in_text(server).rpartition("/")[2])
    assert len(seed) == 32
    forms = [seed, seed.hex().encode(), *(encode_base64(seed, f).encode() for f in (0, 1))]
    stored = [
        bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
        for table in ("invites", "ephemeral_keys")
        for row in server.rows(table)
        for value in row.values()
    ]
    assert decode_base64(answer.json["public_keys"][1]["public_key"]) in stored
    assert not any(form in value for form in forms for value in stored)
    assert encode_base64(seed, urlsafe=True) not in answer.text


@sqlite_only
@pytest.mark.requirement("INV-13")
def test_number_that_is_none_or_of_no_person_is_refused(server, alice):
    for address in ("", "+", "abc", "999", "07700900001", "tel:447700900001", "447700900001x5"):
        assert refused(text(alice, address), 400, "M_INVALID_ADDRESS"), address
    for address in ("449060000000", "448450000000", "447640123456", "0"):
        assert refused(text(alice, address), 400, "M_INVALID_ADDRESS"), address
    assert nothing_happened(server)
    assert text(alice, f"+{NUMBER}").status_code == 200
    assert server.rows("invites")[0]["address"] == NUMBER


@pytest.mark.requirement("INV-13")
def test_invitation_that_no_provider_takes_is_not_kept(server, alice, clock):
    for failure, errcode in (
        (SmsNotSent(), "M_SEND_ERROR"),
        (SmsUnclear(), "M_SEND_ERROR"),
        (DestinationRejected(), "M_DESTINATION_REJECTED"),
        (InvalidPhoneNumber(), "M_INVALID_ADDRESS"),
    ):
        server.text_sender.failure = failure
        assert refused(text(alice), 400, errcode)
        assert nothing_happened(server)
        clock.advance(hours=24)
    server.text_sender.failure = None
    server.text_sender.busy = True
    assert refused(text(alice), 400, "M_SEND_ERROR")
    assert nothing_happened(server)
    server.text_sender.busy = False
    assert bind_number(server.account(BOB_ID)).status_code == 200
    (bare,) = server.rows("deliveries")
    assert bare["invite"] is None


@sqlite_only
@pytest.mark.requirement("INV-13")
def test_invitation_to_a_country_that_is_not_served_is_refused(make_server):
    gateway = {"SMS__PROVIDER": "http", "SMS__HTTP__URL": "https://sms.example.org/send"}
    server = make_server({**gateway, "SMS__ALLOWED_CALLING_CODES": '["1"]'})
    alice = server.account("@alice:hs.test")
    assert refused(text(alice), 400, "M_DESTINATION_REJECTED")
    assert nothing_happened(server)
    assert text(alice, "14155550132").status_code == 200


@pytest.mark.requirement("INV-11")
def test_number_that_is_bound_is_told_with_its_owner_and_nothing_is_sent(make_server):
    server = make_server(UNLIMITED)
    alice, bob = server.account("@alice:hs.test"), server.account(BOB_ID)
    assert bind_number(bob).status_code == 200
    for address in (NUMBER, f"+{NUMBER}"):
        answer = text(alice, address)
        assert refused(answer, 400, "M_THREEPID_IN_USE")
        assert answer.json["mxid"] == BOB_ID
    assert server.rows("invites") == []
    assert len(server.text_sender.texts) == 1  # the code


@sqlite_only
def test_blocked_invitations_are_not_sent_by_text_either(make_server):
    server = make_server(
        {
            "INVITES__BLOCKED_HOMESERVERS": '["evil.test"]',
            "INVITES__BLOCKED_ROOMS": '["!bad:hs.test"]',
            "INVITES__BLOCKED_KEYWORDS": '["casino"]',
        }
    )
    alice, mallory = server.account("@alice:hs.test"), server.account("@mallory:evil.test")
    for answer in (
        text(mallory),
        text(alice, room_id="!bad:hs.test"),
        text(alice, room_name="The CASINO"),
    ):
        assert refused(answer, 403, "M_FORBIDDEN")
    assert nothing_happened(server)


@sqlite_only
@pytest.mark.requirement("INV-17", "TEL-09")
@pytest.mark.parametrize(
    "name", ["invite_sender", "invite_recipient", "invite_homeserver", "sms_number", "sms_account"]
)
def test_limits_of_invitations_and_of_text_messages_both_hold(make_server, name):
    others = dict.fromkeys(("sms_number", "sms_account", "sms_block"), "1000/h")
    server = make_server(limits(**{**others, name: "2/d"}))
    alice = server.account("@alice:hs.test")
    assert [text(alice).status_code for _ in range(4)] == [200, 200, 429, 429]
    assert len(server.rows("invites")) == len(server.text_sender.texts) == 2


@sqlite_only
@pytest.mark.requirement("INV-17", "TEL-09")
@pytest.mark.parametrize("name", ["invite_sender", "sms_number"])
def test_refused_invitation_spends_from_no_limit(make_server, name):
    """Neither from its own limits when text messages are refused, nor the other way round."""
    rates = {"invite_sender": "3/d", "sms_number": "3/d", "sms_account": "1000/h", name: "2/d"}
    server = make_server(limits(**rates, sms_block="1000/h"))
    alice = server.account("@alice:hs.test")
    assert [text(alice).status_code for _ in range(5)] == [200, 200, 429, 429, 429]
    if name == "invite_sender":
        # The third message to the number is still to be had.
        assert request_code(alice).status_code == 200
    else:
        assert text(alice, "447700900002").status_code == 200
    assert refused(text(alice), 429, "M_LIMIT_EXCEEDED")


# --- the page behind the link ---------------------------------------------------------------------


@pytest.mark.requirement("INV-09", "INV-10")
def test_page_says_who_invites_and_leads_into_the_web_client(make_server):
    server = make_server(
        {
            "SERVER__PUBLIC_URL": "https://id.example.org",
            "INVITES__WEB_CLIENTS": '["https://chat.example.org"]',
        }
    )
    alice = server.account("@alice:hs.test")
    stored = text(alice, **TEXTS).json
    page = opened(server)
    for shown in ("Alice &amp; co", "Garden &lt;b&gt;club&lt;/b&gt;", "+44 7700 900001", "space"):
        assert shown in page.text, shown
    assert "@alice:hs.\u200ctest" in page.text
    into_client, _ = links_of(page)
    assert into_client.startswith(f"https://chat.example.org/#/room/{ROOM}?")
    query = urlsplit(into_client).fragment.partition("?")[2]
    linked = {name: value for name, (value,) in parse_qs(query, keep_blank_values=True).items()}
    sign_url = linked.pop("signurl")
    assert linked == {
        "room_name": "Garden <b>club</b>",
        "room_avatar_url": "mxc://hs.test/abc",
        "inviter_name": "Alice & co",
        "room_type": "m.space",
        "guest_access_token": "",
        "guest_user_id": "",
    }
    assert NUMBER not in into_client
    assert sign_url.startswith(f"https://id.example.org{V1}/sign-ed25519?token={stored['token']}&")
    signed = server.client.post(f"{path_of(sign_url)}&mxid=%40bob%3Ahs.test")
    assert signed.status_code == 200
    assert is_signed(signed.json, stored["public_keys"][1]["public_key"], "ed25519:0")


@sqlite_only
@pytest.mark.requirement("INV-02")
def test_page_with_the_least_that_there_is_and_with_hostile_texts(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    assert text(alice).status_code == 200
    assert "<dt>Room</dt>" not in opened(server).text
    evil = '"><script>alert(1)</script>'
    names = ("room_name", "sender_display_name", "room_type", "room_avatar_url", "room_alias")
    more = dict.fromkeys(names, evil) | {"org.matrix.web_client_location": "javascript:x"}
    assert text(alice, brand=evil, **more).status_code == 200
    page = opened(server)
    assert links_of(page)[0].startswith("https://app.element.io/#/room/")
    assert text(alice, room_name=["x"], room_type={"a": 1}, x="y" * 5_000).status_code == 200
    opened(server)


@pytest.mark.requirement("INV-19")
def test_page_of_a_link_that_is_none_any_more_is_plain(make_server, clock):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    tokens = [text(alice, f"4477009000{n:02}", room_name="Garden").json["token"] for n in range(3)]
    server.services.invites.revoke(tokens[0], None)
    plain = opened(server, 0, status=404)
    assert "Garden" not in plain.text
    opened(server, 1)
    base = path_of(link_in_text(server)).rpartition("/")[0]
    seed = link_in_text(server).rpartition("/")[2]
    for end in ("", "x", "A" * 43, seed[:-1], seed + "A", seed + "=", seed[:-1] + "%2F", "é" * 43):
        page = server.client.get(f"{base}/{end}")
        assert page.status_code == 404, end
        if end:
            assert page.mimetype == "text/html"
    # A seed of an invitation that was mailed leads nowhere here: the mail says it all.
    assert invite(alice).status_code == 200
    mailed = re.search(r"private_key%3D([0-9A-Za-z_-]{43})", str(server.sender.mails[0][1]))
    assert server.client.get(f"{base}/{mailed[1]}").status_code == 404
    clock.advance(hours=24 * 90)
    assert opened(server, 1, status=404).text == plain.text
    server.services.invites.purge()
    assert opened(server, 1, status=404).text == plain.text


def test_opening_the_page_does_nothing(server, alice):
    text(alice)
    before = {table: server.rows(table) for table in ("invites", "ephemeral_keys", "unwanted_mail")}
    path = path_of(link_in_text(server))
    for method in ("GET", "HEAD", "OPTIONS"):
        assert server.client.open(path, method=method).status_code == 200
    assert server.client.post(path).status_code == 405
    assert {table: server.rows(table) for table in before} == before


def test_recipient_refuses_further_texts_by_the_page(make_server):
    server = make_server(UNLIMITED)
    alice, bob = server.account("@alice:hs.test"), server.account(BOB_ID)
    text(alice)
    _, refuse_link = links_of(opened(server))
    path = path_of(refuse_link)
    page = server.client.get(path)
    assert page.status_code == 200
    assert "+44 7700 900001" in page.text
    assert "mail" not in words_of(page)
    assert server.rows("unwanted_mail") == []
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text))
    done = server.client.post(path, data=fields)
    assert done.status_code == 200
    assert "mail" not in words_of(done)
    (row,) = server.rows("unwanted_mail")
    assert bytes(row["threepid"]) == server.database.keys.blind_index(ThreePid.msisdn(NUMBER))
    sent = len(server.text_sender.texts)
    assert refused(text(server.account("@carol:hs.test")), 403, "M_FORBIDDEN")
    assert len(server.text_sender.texts) == sent
    # What the recipient asks for is still sent, and what waits is still fulfilled.
    assert bind_number(bob).status_code == 200
    assert len([row for row in server.rows("deliveries") if row["invite"]]) == 1


# --- how it ends -----------------------------------------------------------------------------------


@pytest.mark.requirement("ONB-01", "ONB-03")
def test_invitation_by_text_is_fulfilled_by_a_binding(make_server, homeserver, resolver):
    server = make_server({**UNLIMITED, **REACHABLE}, resolver=resolver)
    alice = server.account("@alice:hs.test")
    stored = text(alice).json
    bound = bind_number(server.account(BOB_ID)).json
    deliver(server)
    (body,) = told(homeserver)
    assert (body["medium"], body["address"], body["mxid"]) == ("msisdn", NUMBER, BOB_ID)
    assert body["ts"] == bound["ts"]
    (told_invite,) = body["invites"]
    assert {name: value for name, value in told_invite.items() if name != "signed"} == {
        "medium": "msisdn",
        "address": NUMBER,
        "mxid": BOB_ID,
        "room_id": ROOM,
        "sender": alice.user_id,
        "token": stored["token"],
    }
    long_term = stored["public_keys"][0]["public_key"]
    assert is_signed(told_invite["signed"], long_term, "ed25519:0")
    (row,) = server.rows("invites")
    assert row["delivered_at_ms"] is not None
    # Whoever opens the link late still gets in.
    assert opened(server, 0).status_code == 200


def test_invitation_whose_process_died_while_sending_is_never_fulfilled(server, alice, clock):
    def crash():
        raise Crash

    server.text_sender.before_send = crash
    with pytest.raises(Crash):
        text(alice)
    assert [row["live"] for row in server.rows("invites")] == [False]
    server.text_sender.before_send = lambda: None
    clock.advance(minutes=1)
    assert bind_number(server.account(BOB_ID)).status_code == 200
    assert [row["invite"] for row in server.rows("deliveries")] == [None]
    clock.advance(hours=1, ms=1)
    assert server.services.invites.purge() == 1
    assert server.rows("invites") == []


def test_recycled_number_is_bound_anew_and_its_former_owner_told_nothing(
    make_server, homeserver, resolver
):
    """Whoever had the number learns neither that it has a new owner nor who that is."""
    server = make_server({**UNLIMITED, **REACHABLE}, resolver=resolver)
    former, new = "@former:b.hs.test", "@new:hs.test"
    with FakeHomeserver("b.hs.test") as former_homeserver:
        lead(resolver, "b.hs.test", former_homeserver)
        assert bind_number(server.account(former)).status_code == 200
        deliver(server)
        assert [body["mxid"] for body in told(former_homeserver)] == [former]
        seen = len(former_homeserver.requests)

        server.clock.advance(hours=24 * 365)
        assert bind_number(server.account(new)).status_code == 200
        deliver(server)
        server.clock.advance(hours=24)
        deliver(server)
        assert len(former_homeserver.requests) == seen
    assert [body["mxid"] for body in told(homeserver)] == [new]
    assert server.found(NUMBER, "msisdn") == new
    # Nor can the former owner take it away: their session ended long ago.
    body = {"mxid": former, "threepid": {"medium": "msisdn", "address": NUMBER}}
    old = {row["owner"]: row["sid"] for row in server.rows("validation_sessions")}
    proof = {"sid": old[former], "client_secret": "secret"}
    answer = server.client.post(f"{V2}/3pid/unbind", json={**body, **proof})
    assert refused(answer, 403, "M_SESSION_EXPIRED")
    assert server.found(NUMBER, "msisdn") == new
