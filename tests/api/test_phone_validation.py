"""Phone numbers that are proved, over v2 and v1: conformance.md section 9, LEG-01, LEG-02, LEG-05."""

import itertools
import json

import pytest
from parts.invitations import limits
from parts.phones import (
    CONFIRM,
    NUMBER,
    SUBMIT,
    bind_number,
    code_sent,
    legacy,
    request_code,
    submit,
    validate,
    wrong,
)
from parts.server import V1, V2
from parts.validation import (
    UNLIMITED,
    Crash,
    bind,
    get_validated,
    refused,
    sqlite_only,
    token_values,
)

from identity.errors import (
    DestinationRejected,
    InvalidPhoneNumber,
    LimitExceeded,
    SmsNotSent,
    SmsUnclear,
)
from identity.validation import session as sessions

NEXT_LINK = "https://app.example.org/done?x=1"
# A relay, so that nothing is written to files, and no provider of text messages.
NO_PROVIDER = {"EMAIL__SMTP_HOST": "localhost"}
GATEWAY = {"SMS__PROVIDER": "http", "SMS__HTTP__URL": "https://sms.example.org/send"}


def requested(account, **arguments):
    """A session with a code on its way to a phone: what submitToken takes."""
    answer = request_code(account, **arguments)
    assert answer.status_code == 200, answer.json
    secret = arguments.get("client_secret", "secret")
    code = code_sent(account.server)
    return {"sid": answer.json["sid"], "client_secret": secret, "token": code}


def nothing_happened(server):
    """No session, no code, no message."""
    assert server.rows("validation_sessions") == server.rows("validation_tokens") == []
    assert server.text_sender.texts == []
    return True


def validated(server):
    return [row["validated_at_ms"] is not None for row in server.rows("validation_sessions")]


def is_page(response, status):
    assert (response.status_code, response.mimetype) == (status, "text/html")
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "<h1>" in response.text
    return True


# --- requestToken -------------------------------------------------------------------------------


@pytest.mark.requirement("TEL-01", "TEL-06")
def test_code_is_sent_to_the_number_and_proves_it(server, alice, clock):
    answer = request_code(alice, "07700 900001", "GB")
    assert answer.status_code == 200
    assert answer.json == {
        "sid": answer.json["sid"],
        "msisdn": NUMBER,
        "intl_fmt": "+44 7700 900001",
        "success": True,
    }
    ((recipient, _),) = server.text_sender.texts
    assert recipient == NUMBER
    code = code_sent(server)
    (session,) = server.rows("validation_sessions")
    wanted = {
        "sid": answer.json["sid"],
        "owner": alice.user_id,
        "medium": "msisdn",
        "address": NUMBER,
        "created_at_ms": clock.now_ms(),
        "validated_at_ms": None,
        "attempts": 0,
    }
    assert {name: session[name] for name in wanted} == wanted
    (token,) = server.rows("validation_tokens")
    assert (token["send_attempt"], token["live"]) == (1, True)
    assert code not in str(token)
    values = {"sid": answer.json["sid"], "client_secret": "secret", "token": code}
    assert submit(alice, values).json == {"success": True}
    assert bind(alice, values).status_code == 200
    assert server.found(NUMBER, "msisdn") == alice.user_id


@sqlite_only
@pytest.mark.requirement("TEL-01")
def test_code_needs_an_access_token_and_every_parameter(server, alice):
    body = {"phone_number": "07700900001", "country": "GB", "client_secret": "s", "send_attempt": 1}
    path = "/validate/msisdn/requestToken"
    assert refused(server.client.post(V2 + path, json=body), 401, "M_UNAUTHORIZED")
    for name in body:
        rest = {key: value for key, value in body.items() if key != name}
        assert refused(alice.post(path, json=rest), 400, "M_MISSING_PARAMS"), name
        for odd in (None, ["x"], 1.5, {"a": "b"}):
            assert refused(alice.post(path, json=body | {name: odd}), 400, "M_INVALID_PARAM")
    for changed in ({"next_link": "javascript:x"}, {"client_secret": "a b"}, {"send_attempt": -1}):
        assert refused(alice.post(path, json=body | changed), 400, "M_INVALID_PARAM")
    assert nothing_happened(server)


@sqlite_only
@pytest.mark.requirement("TEL-02", "TEL-04")
@pytest.mark.parametrize(
    ("country", "number", "address"),
    [
        ("GB", "07700900001", "447700900001"),
        ("GB", "+447700900001", "447700900001"),
        ("FR", "+44 7700 900001", "447700900001"),
        ("gb", "(07700) 900-001", "447700900001"),
        ("", "+447700900001", "447700900001"),
        ("US", "(415) 555-0132", "14155550132"),
        ("de", "0151 23456789", "4915123456789"),
        ("IT", "06 6982", "39066982"),
    ],
)
def test_number_is_read_as_it_is_dialled_in_its_country(server, alice, country, number, address):
    values = requested(alice, number=number, country=country)
    assert server.text_sender.texts[0][0] == address
    submit(alice, values)
    answer = get_validated(alice, values).json
    assert (answer["medium"], answer["address"]) == ("msisdn", address)


@sqlite_only
@pytest.mark.requirement("TEL-03")
def test_text_that_is_no_number_of_a_person_is_refused(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    for country, number in [
        *(("GB", text) for text in ("abc", "1", "999", "", " ", "0770090000A", "٠٧٧٠٠٩٠٠٠٠١")),
        *(("GB", f"07700900001{end}") for end in (" ext 5", ";ext=5", "x5", "#5", ",5", "\n")),
        ("GB", "tel:+447700900001"),
        ("GB", "0 77 00 90 00 01" + " " * 100),
        ("GB", "０７７００９００００１"),
        ("GB", "0906 000 0000"),  # premium
        ("GB", "0845 000 0000"),  # shared cost
        ("GB", "07640 123456"),  # pager
        ("CH", "+41860791234567"),  # voicemail
        ("XX", "07700900001"),
        ("", "07700900001"),
        ("GBR", "07700900001"),
        ("44", "07700900001"),
        ("\uff27\uff22", "07700900001"),
    ]:
        answer = request_code(alice, number, country, f"secret-{number.isascii()}")
        assert refused(answer, 400, "M_INVALID_ADDRESS"), (country, number)
    assert nothing_happened(server)


@pytest.mark.requirement("TEL-05")
def test_code_that_no_provider_takes_is_forgotten_with_its_attempt(server, alice):
    for failure, errcode in [
        (SmsNotSent(), "M_SEND_ERROR"),
        (SmsUnclear(), "M_SEND_ERROR"),
        (DestinationRejected(), "M_DESTINATION_REJECTED"),
        (InvalidPhoneNumber(), "M_INVALID_ADDRESS"),
    ]:
        server.text_sender.failure = failure
        assert refused(request_code(alice, f"+4477009000{errcode.count('E'):02}"), 400, errcode)
        server.clock.advance(hours=1)
    server.text_sender.failure = LimitExceeded(7_000)
    assert refused(request_code(alice), 429, "M_LIMIT_EXCEEDED")
    assert nothing_happened(server)
    server.text_sender.failure = None
    server.clock.advance(hours=1)
    assert request_code(alice).status_code == 200
    assert len(server.text_sender.texts) == 1


@sqlite_only
@pytest.mark.requirement("TEL-05")
def test_code_while_every_provider_is_busy_is_refused_before_it_costs_anything(server, alice):
    server.text_sender.busy = True
    for _ in range(10):
        assert refused(request_code(alice), 400, "M_SEND_ERROR")
    assert nothing_happened(server)
    server.text_sender.busy = False
    assert request_code(alice).status_code == 200


@sqlite_only
@pytest.mark.requirement("TEL-05")
def test_failure_of_providers_costs_the_caller_nothing_unless_it_is_unclear(server, alice):
    server.text_sender.failure = SmsNotSent()
    for _ in range(10):
        assert refused(request_code(alice), 400, "M_SEND_ERROR")
    # A provider may have taken it, and be paid for it.
    server.text_sender.failure = SmsUnclear()
    assert refused(request_code(alice), 400, "M_SEND_ERROR")
    assert refused(request_code(alice), 429, "M_LIMIT_EXCEEDED")
    assert nothing_happened(server)


@sqlite_only
@pytest.mark.requirement("TEL-05")
def test_fault_of_ours_while_sending_leaves_nothing_behind(server, alice):
    def fault():
        raise ZeroDivisionError

    server.text_sender.before_send = fault
    assert refused(request_code(alice), 500, "M_UNKNOWN")
    assert nothing_happened(server)


@sqlite_only
@pytest.mark.requirement("TEL-05")
def test_calling_code_that_is_not_served_is_refused(make_server):
    served = {
        ('["44", "1"]', "[]"): {"+447700900001": True, "+14155550132": True, "+33612345678": False},
        ('["*"]', '["44"]'): {"+447700900001": False, "+33612345678": True},
        # A provider that costs money serves nobody until they are listed.
        ("[]", "[]"): {"+447700900001": False},
    }
    for (allowed, denied), numbers in served.items():
        lists = {"SMS__ALLOWED_CALLING_CODES": allowed, "SMS__DENIED_CALLING_CODES": denied}
        server = make_server(UNLIMITED | GATEWAY | lists)
        alice = server.account("@alice:hs.test")
        for number, is_served in numbers.items():
            answer = request_code(alice, number)
            if is_served:
                assert answer.status_code == 200, number
            else:
                assert refused(answer, 400, "M_DESTINATION_REJECTED"), number
        assert len(server.text_sender.texts) == sum(numbers.values())
        assert len(server.rows("validation_sessions")) == sum(numbers.values())


@sqlite_only
@pytest.mark.requirement("TEL-05")
def test_server_without_a_provider_rejects_every_number(make_server):
    server = make_server(NO_PROVIDER)
    alice = server.account("@alice:hs.test")
    assert refused(request_code(alice), 400, "M_DESTINATION_REJECTED")
    assert refused(request_code(alice, "abc"), 400, "M_INVALID_ADDRESS")
    values = {"sid": "nope", "client_secret": "s", "token": "123456"}
    assert refused(submit(alice, values), 400, "M_INVALID_PARAM")
    assert nothing_happened(server)


# --- submitToken ----------------------------------------------------------------------------------


@pytest.mark.requirement("TEL-07")
def test_submit_of_a_code_follows_the_contract_of_mail(server, alice, clock):
    values = requested(alice)
    assert refused(server.client.post(SUBMIT, json=token_values(values)), 401, "M_UNAUTHORIZED")
    answer = submit(alice, values, token=wrong(values["token"]))
    assert refused(answer, 400, "M_TOKEN_INCORRECT")
    assert answer.json["success"] is False
    unknown = [submit(alice, values, sid="nope"), submit(alice, values, client_secret="other")]
    for answer in unknown:
        assert refused(answer, 400, "M_INVALID_PARAM")
        assert answer.json["success"] is False
        assert answer.data == unknown[0].data
    assert validated(server) == [False]
    for _ in range(2):
        assert submit(alice, values).json == {"success": True}
    assert validated(server) == [True]
    clock.advance(hours=24, ms=1)
    assert refused(submit(alice, values), 400, "M_SESSION_EXPIRED")


@sqlite_only
@pytest.mark.requirement("TEL-07")
def test_sid_of_one_medium_is_unknown_to_the_other(server, alice):
    values = requested(alice)
    by_mail = alice.post("/validate/email/submitToken", json=values)
    assert refused(by_mail, 400, "M_INVALID_PARAM")
    by_link = server.client.get(SUBMIT.replace("msisdn", "email"), query_string=values)
    assert is_page(by_link, 404)
    alice.request_token("alice@example.com", "mail")
    assert refused(submit(alice, server.mailed()), 400, "M_INVALID_PARAM")
    assert validated(server) == [False, False]


@pytest.mark.requirement("TEL-07", "LEG-05")
@pytest.mark.parametrize("prefix", [V2, V1])
def test_get_of_submit_token_is_a_page_without_an_access_token(make_server, prefix):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    path = f"{prefix}/validate/msisdn/submitToken"
    values = requested(alice)
    for changed in (
        {"token": wrong(values["token"])},
        {"sid": "nope"},
        {"client_secret": "other"},
        {"client_secret": "a b"},
    ):
        page = server.client.get(path, query_string=values | changed)
        assert is_page(page, page.status_code)
        assert 400 <= page.status_code < 500
    assert is_page(server.client.get(path), 400)
    assert server.client.head(path, query_string=values).status_code == 200
    assert validated(server) == [False]
    page = server.client.get(path, query_string=values | {"nextLink": "https://evil.example/"})
    assert is_page(page, 200)
    assert "+44 7700 900001" in page.text
    assert not any(values[name] in page.text for name in ("sid", "client_secret", "token"))
    assert validated(server) == [True]


@sqlite_only
@pytest.mark.requirement("TEL-07", "LEG-05")
@pytest.mark.parametrize("prefix", [V2, V1])
def test_get_of_submit_token_leads_to_exactly_the_stored_next_link(server, alice, prefix):
    values = requested(alice, next_link=NEXT_LINK)
    query = values | {"nextLink": "https://evil.example/", "next_link": "https://evil.example/"}
    page = server.client.get(f"{prefix}/validate/msisdn/submitToken", query_string=query)
    assert (page.status_code, page.headers["Location"]) == (303, NEXT_LINK)


@sqlite_only
@pytest.mark.requirement("TEL-07")
def test_confirm_page_of_a_number_validates_only_by_its_button(server, alice):
    values = requested(alice)
    page = server.client.get(CONFIRM, query_string=values)
    assert is_page(page, 200)
    assert "+44 7700 900001" in page.text
    assert alice.user_id in page.text
    assert validated(server) == [False]
    assert is_page(server.client.post(CONFIRM, data=values), 200)
    assert validated(server) == [True]


# --- send attempts and limits ------------------------------------------------------------------------


@pytest.mark.requirement("TEL-08")
def test_forms_of_one_number_share_a_session_and_its_attempts(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    forms = [("07700900001", "GB"), ("+447700900001", "GB"), ("+44 7700 900001", "")]
    sids = {request_code(alice, *form).json["sid"] for form in forms}
    assert len(sids) == len(server.text_sender.texts) == 1
    for attempt, sent in ((2, 2), (2, 2), (1, 2), ("3", 3)):
        assert request_code(alice, send_attempt=attempt).json["sid"] in sids
        assert len(server.text_sender.texts) == sent
    others = [
        request_code(alice, client_secret="other"),
        request_code(alice, "+447700900002"),
        request_code(server.account("@bob:hs.test")),
    ]
    assert len({answer.json["sid"] for answer in others} | sids) == 4
    assert len(server.text_sender.texts) == 6


@pytest.mark.requirement("TEL-09")
def test_burst_to_one_number_meets_its_limit_whoever_asks(server, clock):
    statuses = [
        request_code(server.account(f"@u{n}:hs{n}.test"), "07700 900001", "GB").status_code
        for n in range(5)
    ]
    assert statuses == [200, 429, 429, 429, 429]
    assert len(server.text_sender.texts) == len(server.rows("validation_sessions")) == 1
    answer = request_code(server.account("@last:hs.test"))
    assert refused(answer, 429, "M_LIMIT_EXCEEDED")
    clock.advance(ms=answer.json["retry_after_ms"])
    assert request_code(server.account("@last:hs.test")).status_code == 200


@sqlite_only
@pytest.mark.requirement("TEL-09")
def test_answered_attempt_costs_nothing(make_server):
    server = make_server(limits(sms_number="1/d"))
    alice = server.account("@alice:hs.test")
    sids = {request_code(alice).json["sid"] for _ in range(20)}
    assert len(sids) == len(server.text_sender.texts) == 1


# --- codes -----------------------------------------------------------------------------------------


@sqlite_only
@pytest.mark.requirement("SESS-04")
def test_code_is_six_random_digits(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    codes = [requested(alice, client_secret=f"s{n}")["token"] for n in range(40)]
    assert {len(code) for code in codes} == {6}
    assert all(len(set(column)) > 5 for column in zip(*codes, strict=True))


@pytest.mark.requirement("SESS-04")
def test_code_lives_ten_minutes(make_server, clock):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    young, old = (requested(alice, client_secret=secret) for secret in ("a", "b"))
    clock.advance(minutes=10)
    assert submit(alice, young).json == {"success": True}
    clock.advance(ms=1)
    assert refused(submit(alice, old), 400, "M_TOKEN_INCORRECT")
    # A new one for the same session works.
    new = requested(alice, client_secret="b", send_attempt=2)
    assert new["sid"] == old["sid"]
    assert submit(alice, new).json == {"success": True}


@pytest.mark.requirement("SESS-04")
def test_code_is_not_prolonged_by_sending_again(make_server, clock):
    """security.md, threat 11."""
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    first = requested(alice)
    for attempt in range(2, 7):
        clock.advance(minutes=2)
        newest = requested(alice, send_attempt=attempt)
        assert newest["token"] != first["token"]
    clock.advance(ms=1)
    assert refused(submit(alice, first), 400, "M_TOKEN_INCORRECT")
    assert submit(alice, newest).json == {"success": True}


@pytest.mark.requirement("SESS-04")
def test_only_the_newest_code_counts(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    codes = [requested(alice, send_attempt=attempt) for attempt in (1, 2, 7)]
    for dead in codes[:2]:
        assert refused(submit(alice, dead), 400, "M_TOKEN_INCORRECT")
    assert submit(alice, codes[2]).json == {"success": True}


@pytest.mark.requirement("SESS-04")
def test_code_counts_again_when_the_one_after_it_was_not_sent(make_server, clock):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    first = requested(alice)
    server.text_sender.failure = SmsNotSent()
    clock.advance(minutes=9)
    assert refused(request_code(alice, send_attempt=2), 400, "M_SEND_ERROR")
    assert submit(alice, first).json == {"success": True}
    other = requested_before_failure(server, alice)
    clock.advance(minutes=10, ms=1)
    assert refused(submit(alice, other), 400, "M_TOKEN_INCORRECT")


def requested_before_failure(server, account):
    server.text_sender.failure = None
    values = requested(account, client_secret="other")
    server.text_sender.failure = SmsNotSent()
    answer = request_code(account, client_secret="other", send_attempt=2)
    assert refused(answer, 400, "M_SEND_ERROR")
    return values


@pytest.mark.requirement("SESS-04")
def test_wrong_codes_are_counted_over_all_messages_of_a_session(make_server):
    """security.md, threats 7 and 11: sending again unlocks nothing."""
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    for attempt in range(1, 6):
        values = requested(alice, send_attempt=attempt)
        bad = wrong(values["token"])
        assert refused(submit(alice, values, token=bad), 400, "M_TOKEN_INCORRECT")
    for attempt in (6, 7):
        assert refused(submit(alice, values), 400, "M_TOKEN_INCORRECT")
        values = requested(alice, send_attempt=attempt)
    assert is_page(server.client.get(SUBMIT, query_string=values), 400)
    (row,) = server.rows("validation_sessions")
    assert (row["attempts"], row["validated_at_ms"]) == (5, None)
    assert submit(alice, requested(alice, client_secret="new")).json == {"success": True}


@pytest.mark.requirement("SESS-04")
def test_code_that_comes_twice_in_a_session_is_drawn_again(make_server, monkeypatch):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    drawn = itertools.chain([7, 7, 7, 8, 7, 8, 9], itertools.repeat(10))
    monkeypatch.setattr(sessions.secrets, "randbelow", lambda _: next(drawn))
    codes = [requested(alice, send_attempt=attempt)["token"] for attempt in (1, 2, 3)]
    assert codes == ["000007", "000008", "000009"]
    # Another session may have the same.
    values = requested(alice, client_secret="other")
    assert submit(alice, values).json == {"success": True}


@pytest.mark.requirement("SESS-04")
def test_code_of_a_process_that_died_counts_while_it_is_the_newest(make_server, clock):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    first = requested(alice)
    sent = []
    send = server.text_sender.send

    def crash(number, text):
        send(number, text)
        sent.append(text)
        raise Crash

    server.text_sender.send = crash
    with pytest.raises(Crash):
        request_code(alice, send_attempt=5)
    server.text_sender.send = send
    second = first | {"token": code_sent(server)}
    assert refused(submit(alice, first), 400, "M_TOKEN_INCORRECT")
    assert [row["live"] for row in server.rows("validation_tokens")] == [True, False]
    # After a while its attempt is free, and what is sent then is the newest.
    clock.advance(minutes=10, ms=1)
    third = requested(alice, send_attempt=3)
    assert refused(submit(alice, second), 400, "M_TOKEN_INCORRECT")
    assert submit(alice, third).json == {"success": True}


@sqlite_only
@pytest.mark.requirement("SESS-04")
def test_mail_keeps_its_rules_beside_codes(make_server, clock):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    for attempt in (1, 2):
        alice.request_token("alice@example.com", send_attempt=attempt)
    clock.advance(hours=23)
    values = token_values(server.mailed(0))
    assert alice.submit_token(**values).json == {"success": True}


# --- what a validated number is good for -------------------------------------------------------------


@sqlite_only
@pytest.mark.requirement("VAL-01", "VAL-02", "VAL-03")
def test_get_validated_of_a_number(server, alice, clock):
    values = requested(alice)
    assert refused(get_validated(alice, values), 400, "M_SESSION_NOT_VALIDATED")
    clock.advance(minutes=5)
    submit(alice, values)
    wanted = {"medium": "msisdn", "address": NUMBER, "validated_at": clock.now_ms()}
    clock.advance(minutes=5)
    assert get_validated(alice, values).json == wanted
    wrong_secret = values | {"client_secret": "other"}
    assert refused(get_validated(alice, wrong_secret), 404, "M_NO_VALID_SESSION")
    clock.advance(hours=24)
    assert refused(get_validated(alice, values), 400, "M_SESSION_EXPIRED")


@pytest.mark.requirement("SESS-16")
def test_session_of_a_number_belongs_to_its_owner(make_server):
    server = make_server(UNLIMITED)
    alice, bob = server.account("@alice:hs.test"), server.account("@bob:hs.test")
    values = requested(alice)
    assert refused(submit(bob, values), 400, "M_INVALID_PARAM")
    assert submit(alice, values).json == {"success": True}
    assert refused(get_validated(bob, values), 404, "M_NO_VALID_SESSION")
    assert refused(bind(bob, values), 404, "M_NO_VALID_SESSION")
    assert bind(alice, values).status_code == 200
    # On v1 nobody is known: who has the secrets may read it, and nobody owns what is made there.
    read = server.client.get(f"{V1}/3pid/getValidated3pid", query_string=values)
    assert read.json["address"] == NUMBER
    body = {"phone_number": "+447700900002", "country": "", "client_secret": "v1"}
    made = legacy(server, "/validate/msisdn/requestToken", {**body, "send_attempt": 1})
    anyones = {"sid": made.json["sid"], "client_secret": "v1", "token": code_sent(server)}
    assert submit(bob, anyones).json == {"success": True}
    assert bind(bob, anyones).status_code == 200
    assert server.found("447700900002", "msisdn") == bob.user_id


@pytest.mark.requirement("UNB-01")
def test_number_is_unbound_by_the_session_that_proved_it(server, alice):
    values = requested(alice)
    submit(alice, values)
    bind(alice, values)
    proof = {name: values[name] for name in ("sid", "client_secret")}
    threepid = {"medium": "msisdn", "address": NUMBER}
    body = {**proof, "mxid": alice.user_id, "threepid": threepid}
    other = body | {"threepid": {"medium": "msisdn", "address": "447700900002"}}
    assert refused(server.client.post(f"{V2}/3pid/unbind", json=other), 403, "M_FORBIDDEN")
    for _ in range(2):
        done = server.client.post(f"{V2}/3pid/unbind", json=body)
        assert (done.status_code, done.json) == (200, {})
    assert server.found(NUMBER, "msisdn") is None


# --- v1 -------------------------------------------------------------------------------------------


@pytest.mark.requirement("LEG-01", "LEG-02", "LEG-03")
def test_synapse_proves_a_number_over_v1_without_an_access_token(make_server):
    """What `account_threepid_delegates.msisdn` does: decision 21.8 of the wire notes."""
    server = make_server(UNLIMITED)
    body = {
        "country": "GB",
        "phone_number": "07700900001",
        "client_secret": "s3cret",
        "send_attempt": 1,
        "next_link": NEXT_LINK,
    }
    answer = legacy(server, "/validate/msisdn/requestToken", body)
    assert answer.status_code == 200
    assert answer.json == {
        "sid": answer.json["sid"],
        "msisdn": NUMBER,
        "intl_fmt": "+44 7700 900001",
        "success": True,
    }
    assert server.rows("validation_sessions")[0]["owner"] is None
    values = {"sid": answer.json["sid"], "client_secret": "s3cret"}
    query = {"query_string": values}
    assert refused(
        server.client.get(f"{V1}/3pid/getValidated3pid", **query), 400, "M_SESSION_NOT_VALIDATED"
    )
    code = code_sent(server)
    path = "/validate/msisdn/submitToken"
    bad = legacy(server, path, {**values, "token": wrong(code)})
    assert refused(bad, 400, "M_TOKEN_INCORRECT")
    for _ in range(2):
        good = legacy(server, path, {**values, "token": code})
        assert (good.status_code, good.json) == (200, {"success": True})
    read = server.client.get(f"{V1}/3pid/getValidated3pid", **query)
    assert (read.json["medium"], read.json["address"]) == ("msisdn", NUMBER)


def test_wrong_codes_over_v1_count_for_the_network_that_they_come_from(make_server):
    server = make_server(limits(wrong_tokens_ip="2/h"))
    body = {"country": "GB", "phone_number": "07700900001", "client_secret": "s3cret"}
    made = legacy(server, "/validate/msisdn/requestToken", {**body, "send_attempt": 1})
    values = {"sid": made.json["sid"], "client_secret": "s3cret"}
    path, code = "/validate/msisdn/submitToken", code_sent(server)
    # Right ones cost nothing.
    for _ in range(3):
        assert legacy(server, path, {**values, "token": code}).status_code == 200
    for _ in range(2):
        bad = legacy(server, path, {**values, "token": wrong(code)})
        assert refused(bad, 400, "M_TOKEN_INCORRECT")
    assert refused(legacy(server, path, {**values, "token": code}), 429, "M_LIMIT_EXCEEDED")
    assert server.rows("validation_sessions")[0]["attempts"] == 2


@sqlite_only
@pytest.mark.requirement("LEG-01", "LEG-02")
def test_v1_takes_forms_and_refuses_what_v2_refuses(make_server):
    server = make_server(UNLIMITED)
    path = "/validate/msisdn/requestToken"
    form = "client_secret=s&country=GB&phone_number=07700900001&send_attempt=1"
    kind = "application/x-www-form-urlencoded"
    answer = server.client.post(V1 + path, data=form, content_type=kind)
    assert answer.status_code == 200
    values = {"sid": answer.json["sid"], "client_secret": "s", "token": code_sent(server)}
    done = server.client.post(f"{V1}/validate/msisdn/submitToken", data=values)
    assert done.json == {"success": True}
    body = {"client_secret": "s", "country": "GB", "phone_number": "abc", "send_attempt": 1}
    assert refused(legacy(server, path, body), 400, "M_INVALID_ADDRESS")
    del body["phone_number"]
    assert refused(legacy(server, path, body), 400, "M_MISSING_PARAMS")
    body = json.dumps(body)[:-1]
    broken = server.client.post(V1 + path, data=body, content_type="application/json")
    assert refused(broken, 400, "M_NOT_JSON")
    assert len(server.text_sender.texts) == 1


@sqlite_only
@pytest.mark.requirement("LEG-01", "LEG-02")
def test_v1_that_is_switched_off_sends_no_codes(make_server):
    server = make_server({"LEGACY_API__CORE": "false"})
    answer = legacy(server, "/validate/msisdn/requestToken", {})
    assert refused(answer, 404, "M_UNRECOGNIZED")
    answer = legacy(server, "/validate/msisdn/submitToken", {})
    assert refused(answer, 405, "M_UNRECOGNIZED")
    # What messages sent long ago point to stays.
    assert is_page(server.client.get(f"{V1}/validate/msisdn/submitToken"), 400)


@sqlite_only
def test_number_bound_twice_needs_two_proofs(make_server):
    server = make_server(UNLIMITED)
    alice = server.account("@alice:hs.test")
    assert bind_number(alice).status_code == 200
    session = validate(alice, "+447700900002", "other")
    assert bind(alice, session).status_code == 200
    assert server.found("447700900002", "msisdn") == alice.user_id
