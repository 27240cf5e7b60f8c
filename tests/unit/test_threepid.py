"""Canonical addresses: what is folded, and what is refused because it cannot be."""

import smtplib
import sys
import time
import unicodedata

import idna
import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity.errors import InvalidEmail, InvalidPhoneNumber, UnrecognizedMedium
from identity.messaging.email import envelope_address
from identity.threepid import MAX_EMAIL_CHARACTERS, Medium, ThreePid


def canonical(text):
    """The address that is bound, None where it is refused."""
    try:
        return ThreePid.email(text).address
    except InvalidEmail:
        return None


@pytest.mark.requirement("TPID-01", "AMB-11")
@pytest.mark.parametrize(
    ("typed", "address", "lowered"),
    [
        ("alice@example.com", "alice@example.com", None),
        ("Alice@Example.COM", "alice@example.com", None),
        ("Strauß@Example.com", "strauss@example.com", "strauß@example.com"),
        ("STRAUSS@example.com", "strauss@example.com", None),
        ("STRAUẞ@example.com", "strauss@example.com", "strauß@example.com"),
        ("JÜRGEN@example.com", "jürgen@example.com", None),
        ("ΣΊΣΥΦΟΣ@example.com", "σίσυφοσ@example.com", "σίσυφος@example.com"),
        ("σίσυφος@example.com", "σίσυφοσ@example.com", "σίσυφος@example.com"),
        ("alice+tag@example.com", "alice+tag@example.com", None),
        ("a.l.i.c.e@example.com", "a.l.i.c.e@example.com", None),
        ("!#$%&'*+-/=^_`{|}~?@example.com", "!#$%&'*+-/=^_`{|}~?@example.com", None),
        ("alice@localhost", "alice@localhost", None),
        ("alice@example.test", "alice@example.test", None),
        ("a@XN--BCHER-KVA.example", "a@xn--bcher-kva.example", None),
        ("a@BÜCHER.example", "a@bücher.example", None),
    ],
)
def test_email_is_folded(typed, address, lowered):
    threepid = ThreePid.email(typed)
    assert (threepid.medium, threepid.address, threepid.lowered) == ("email", address, lowered)
    assert ThreePid.parse("email", typed) == threepid


@pytest.mark.requirement("TPID-02", "AMB-11")
def test_domains_that_only_fold_alike_stay_apart():
    assert canonical("a@STRASSE.example") == "a@strasse.example"
    assert canonical("a@straße.example") == "a@straße.example"
    assert canonical("a@STRAẞE.example") in ("a@straße.example", None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "alice",
        "@example.com",
        "alice@",
        "alice@@example.com",
        "alice@example.com@example.org",
        "alice@example.com,bob@example.com",
        "alice@example.com bob@example.com",
        "<alice@example.com>",
        "Alice <alice@example.com>",
        "alice(comment)@example.com",
        '"alice"@example.com',
        '"a@b"@example.com',
        "alice@[127.0.0.1]",
        "alice@[IPv6:::1]",
        ".alice@example.com",
        "alice.@example.com",
        "al..ice@example.com",
        "alice@example..com",
        "alice@.example.com",
        "alice@-example.com",
        "alice@exam_ple.com",
        "alice@example.com.",
        " alice@example.com",
        "alice@example.com ",
        "al ice@example.com",
        "alice@example.com\n",
        "alice@example.com\r\nBcc: bob@example.com",
        "alice\0@example.com",
        "alice@example.com\0",
        "alice%example.org@example.com:25",
        "mailto:alice@example.com?x",
        "alice\u200b@example.com",
        "alice\u202e@example.com",
        "\ud800@example.com",
        "alice@\ud800.com",
        "alice＠example.com",
        "alice@example。com",
        "alice@ｅxample.com",
        "alice@exam\u00adple.com",
        "alice@" + "a" * 64 + ".com",
        "a" * (MAX_EMAIL_CHARACTERS - len("@x.test") + 1) + "@x.test",
        "ß" * 130 + "@x.test",
        # An encoded word, which mail programs decode.
        "=?utf-8?q?a?=@example.com",
        # What folding takes apart could not be read back.
        "ǰ@example.com",
        "ΐ@example.com",
    ],
    ids=ascii,
)
def test_text_that_is_no_email_address_is_refused(text):
    assert canonical(text) is None


def test_length_is_bounded():
    longest = "a" * (MAX_EMAIL_CHARACTERS - len("@x.test")) + "@x.test"
    assert canonical(longest) == longest
    assert canonical("a" + longest) is None


def test_code_point_that_stands_for_ascii_is_refused_or_is_sharp_s():
    """Row 16 of the threats: no look-alike of an ASCII address becomes that address."""
    accepted, stands_for_ascii = set(), 0
    for code in range(0x80, sys.maxunicode + 1):
        character = chr(code)
        if any(
            form.isascii()
            for form in (character.casefold(), unicodedata.normalize("NFKC", character))
        ):
            stands_for_ascii += 1
            if address := canonical(f"a{character}b@example.com"):
                accepted.add((character, address))
            assert canonical(f"a@a{character}b.com") in (None, f"a@a{character}b.com".lower())
    assert stands_for_ascii > 1_000
    assert accepted == {("ß", "assb@example.com"), ("ẞ", "assb@example.com")}


def test_every_code_point_gives_a_canonical_address_that_stays_as_it_is():
    for code in range(sys.maxunicode + 1):
        # Most of them are letters of scripts that have no case.
        character = chr(code)
        if character.casefold() == character and not 0x20 <= code < 0x250:
            continue
        address = canonical(f"{character}a{character}@example.com")
        assert address is None or canonical(address) == address, ascii(character)


locals_ = st.text(
    st.sampled_from(
        "aZ09.+-_='`{ßẞǰΐΣςİıſKÅé\u0301\u0307ﬁ＠@,;:<>()[]\"\\ \t\n\0%!#?/|~^$&*\u200d\u202e日"
    )
    | st.characters(exclude_categories=["Cs"]),
    max_size=12,
)
domains = st.sampled_from(
    [
        "example.com",
        "EXAMPLE.com",
        "bücher.example",
        "BÜCHER.example",
        "xn--bcher-kva.example",
        "straße.example",
        "ΑΣ.example",
        "example.com.",
        "a@example.com",
        "[127.0.0.1]",
        "localhost",
    ]
) | st.text(max_size=12)
typed_addresses = st.builds("{}@{}".format, locals_, domains) | st.text(max_size=20)


@settings(max_examples=400)
@given(typed_addresses)
def test_message_goes_to_the_address_that_is_bound(text):
    """Row 17 of the threats: one mailbox, written in one way, and the same after every parser."""
    address = canonical(text)
    if address is None:
        return
    assert canonical(address) == address
    assert address.count("@") == 1
    assert len(address) <= MAX_EMAIL_CHARACTERS
    assert address.isprintable()
    assert not set(address) & set('"(),:;<>[\\] ')
    local, _, domain = address.partition("@")
    recipient = envelope_address(address)
    assert smtplib.quoteaddr(recipient) == f"<{recipient}>"
    sent_local, _, sent_domain = recipient.partition("@")
    assert sent_local == local
    assert sent_domain.isascii()
    assert domain in (sent_domain, idna.decode(sent_domain))


@settings(max_examples=200)
@given(typed_addresses)
def test_case_of_what_is_typed_does_not_matter(text):
    address = canonical(text)
    if address is None:
        return
    local, _, domain = text.rpartition("@")
    for variant in (local.upper(), local.lower(), local.swapcase()):
        # It may be refused in another case, but it never becomes another mailbox.
        assert canonical(f"{variant}@{domain}") in (address, None)


def test_lowered_form_is_no_part_of_the_identity():
    assert ThreePid.email("strauß@example.com") == ThreePid.email("strauss@example.com")
    assert len({ThreePid.email("strauß@example.com"), ThreePid.email("strauss@example.com")}) == 1


def test_address_is_not_shown_by_repr():
    assert "stra" not in repr(ThreePid.email("strauß@example.com"))


@pytest.mark.requirement("TPID-06")
@pytest.mark.parametrize("medium", ["Email", "EMAIL", "fax", "", " email", "email ", "e\u0301mail"])
def test_other_medium_is_refused(medium):
    for parse in (Medium.parse, lambda text: ThreePid.parse(text, "alice@example.com")):
        with pytest.raises(UnrecognizedMedium):
            parse(medium)


@pytest.mark.requirement("TPID-04")
@pytest.mark.parametrize(
    ("number", "country", "digits"),
    [
        ("+1 800 555 2067", "", "18005552067"),
        ("(800) 555-2067", "US", "18005552067"),
        ("800.555.2067", "us", "18005552067"),
        ("07700 900123", "GB", "447700900123"),
        ("+447700900123", "US", "447700900123"),
        ("030 123456", "DE", "4930123456"),
        ("06 698 12345", "IT", "390669812345"),
        ("+882 16 123 45678", "", "8821612345678"),
    ],
)
def test_phone_number_becomes_digits(number, country, digits):
    threepid = ThreePid.phone(number, country)
    assert (threepid.medium, threepid.address, threepid.lowered) == ("msisdn", digits, None)
    assert ThreePid.msisdn(digits) == threepid
    assert ThreePid.parse("msisdn", digits) == threepid == ThreePid.parse("msisdn", "+" + digits)


@pytest.mark.requirement("TPID-04")
@pytest.mark.parametrize(
    ("number", "country"),
    [
        ("", "GB"),
        ("800 555 2067", ""),
        ("+", ""),
        ("++18005552067", ""),
        ("1-800-FLOWERS", "US"),
        ("tel:+18005552067", ""),
        ("+18005552067;ext=1", ""),
        ("+18005552067 x1", ""),
        ("+1800555\u0662067", ""),
        ("+1800555２067", ""),
        ("+18005552067\n", ""),
        ("+999123456789", ""),
        ("+1", ""),
        ("12", "GB"),
        ("0" * 41, "GB"),
        ("800 555 2067", "XX"),
        ("800 555 2067", "USA"),
        ("800 555 2067", "ß"),
        # Premium rate, shared cost, pager.
        ("+1 900 234 5678", ""),
        ("+44 9012345678", ""),
        ("+44 8431234567", ""),
        ("+44 7640123456", ""),
        # Germany may give out longer numbers than E.164 allows.
        ("+4912345678901234", ""),
    ],
)
def test_text_that_is_no_phone_number_is_refused(number, country):
    with pytest.raises(InvalidPhoneNumber):
        ThreePid.phone(number, country)


@pytest.mark.requirement("TPID-04")
@pytest.mark.parametrize("digits", ["1", "123456789012345"])
def test_msisdn_within_the_bounds_is_taken(digits):
    assert ThreePid.msisdn(digits).address == digits


@pytest.mark.requirement("TPID-04")
@pytest.mark.parametrize(
    "digits", ["", "0", "01234", "1234567890123456", "+123", "12 34", "１２３", "12\n", "a"]
)
def test_text_that_is_no_msisdn_is_refused(digits):
    with pytest.raises(InvalidPhoneNumber):
        ThreePid.msisdn(digits)


@settings(max_examples=300)
@given(
    st.text(st.sampled_from("0123456789 ()-./+x٣"), max_size=24)
    | st.builds("+{}{}".format, st.integers(1, 999), st.integers(0, 10**14)),
    st.sampled_from(["", *sorted(phonenumbers.SUPPORTED_REGIONS)]),
)
def test_digits_are_e164_and_stay_as_they_are(number, country):
    try:
        address = ThreePid.phone(number, country).address
    except InvalidPhoneNumber:
        return
    assert 1 <= len(address) <= 15
    assert address.isascii()
    assert address.isdigit()
    assert not address.startswith("0")
    assert ThreePid.phone("+" + address, "").address == address


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (canonical, "a" * 524_288),
        (canonical, "a." * 262_144 + "@example.com"),
        (canonical, "@" * 524_288),
        (canonical, "a@" + "a." * 262_144),
        (canonical, '"' + "\\" * 524_288),
        (canonical, "a@" + "xn--" * 60 + ".com"),
    ],
)
def test_longest_text_is_refused_at_once(parse, text):
    """Row 39 of the threats."""
    began = time.thread_time()
    assert parse(text) is None
    assert time.thread_time() - began < 0.1
