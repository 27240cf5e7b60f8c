import re
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from identity.errors import (
    InvalidEmail,
    InvalidParameter,
    SessionExpired,
    SessionNotValidated,
    SessionUnknown,
    WrongValidationToken,
)
from identity.messaging.domains import DomainPolicy
from identity.mxid import UserId
from identity.threepid import Medium, ThreePid
from identity.validation import session as sessions
from identity.validation.session import (
    MAX_NEXT_LINK_CHARACTERS,
    MAX_SEND_ATTEMPT,
    Session,
    Token,
    is_sid,
    parse_client_secret,
    parse_next_link,
    parse_send_attempt,
)

ALICE = UserId.parse("@alice:hs.test")
OPAQUE = set("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.=_-")
SESSION = Session(
    sid="sid",
    owner=str(ALICE),
    threepid=ThreePid.email("alice@example.com"),
    client_secret_hash=bytes(32),
    created_at_ms=0,
    validated_at_ms=None,
    attempts=0,
    next_link=None,
    brand=None,
)

INSTANTS = st.integers(min_value=0, max_value=2**45)
DURATIONS = st.integers(min_value=1, max_value=10**11)
MXIDS = st.sampled_from(["@alice:hs.test", "@Alice:hs.test", "@alice:HS.test", "@bob:hs.test"])


def refuses(call, error):
    try:
        call()
    except error:
        return True
    return False


@pytest.mark.requirement("SESS-05")
@given(created_at_ms=INSTANTS, lifetime_ms=DURATIONS, later_ms=st.integers(-(10**12), 10**12))
@example(created_at_ms=0, lifetime_ms=86_400_000, later_ms=86_400_000)
@example(created_at_ms=0, lifetime_ms=86_400_000, later_ms=86_400_001)
def test_session_lives_exactly_its_lifetime_from_its_creation(created_at_ms, lifetime_ms, later_ms):
    session = replace(SESSION, created_at_ms=created_at_ms)
    live = session.is_live(created_at_ms + later_ms, lifetime_ms)
    assert live is (later_ms <= lifetime_ms)
    now_ms = created_at_ms + later_ms
    assert refuses(lambda: session.check_live(now_ms, lifetime_ms), SessionExpired) is not live


@pytest.mark.requirement("SESS-05", "AMB-08")
@given(created_at_ms=INSTANTS, waited_ms=DURATIONS, lifetime_ms=DURATIONS, later_ms=DURATIONS)
def test_session_once_validated_lives_by_the_time_of_that_alone(
    created_at_ms, waited_ms, lifetime_ms, later_ms
):
    validated_at_ms = created_at_ms + waited_ms
    session = replace(SESSION, created_at_ms=created_at_ms, validated_at_ms=validated_at_ms)
    fresh = replace(SESSION, created_at_ms=validated_at_ms)
    now_ms = validated_at_ms + later_ms
    assert session.is_live(now_ms, lifetime_ms) is fresh.is_live(now_ms, lifetime_ms)
    assert session.get_validated_at_ms() == validated_at_ms


def test_session_that_is_not_validated_has_no_time_of_validation():
    with pytest.raises(SessionNotValidated):
        SESSION.get_validated_at_ms()


@pytest.mark.requirement("SESS-04")
@given(attempts=st.integers(0, 200), maximum=st.integers(1, 100))
def test_session_is_locked_from_the_last_attempt_on(attempts, maximum):
    session = replace(SESSION, attempts=attempts)
    locked = refuses(lambda: session.check_attempts(maximum), WrongValidationToken)
    assert locked is (attempts >= maximum)


@pytest.mark.requirement("SESS-16")
@given(owner=st.none() | MXIDS, caller=st.none() | MXIDS, mxid=MXIDS)
def test_session_belongs_to_its_owner_where_there_is_one(owner, caller, mxid):
    session = replace(SESSION, owner=owner)
    asked_by = None if caller is None else UserId.parse(caller)
    unknown = refuses(lambda: session.check_caller(asked_by), SessionUnknown)
    assert unknown is (None not in (owner, caller) and owner != caller)
    assert session.may_be_bound_to(UserId.parse(mxid)) is (owner in (None, mxid))


@pytest.mark.requirement("SESS-01")
@given(st.text(max_size=300) | st.text(st.sampled_from(sorted(OPAQUE)), max_size=300))
@example("a\n")
@example("\u0663")
@example("é")
@example("a" * 255)
@example("a" * 256)
@example("")
def test_client_secret_and_sid_follow_one_grammar(text):
    good = 1 <= len(text) <= 255 and set(text) <= OPAQUE
    assert is_sid(text) is good
    if good:
        assert parse_client_secret(text) == text
    else:
        with pytest.raises(InvalidParameter) as caught:
            parse_client_secret(text)
        # The rule is told, not what was sent: it is a secret.
        assert str(caught.value) == "client_secret must be 1 to 255 of [0-9a-zA-Z.=_-]"


@pytest.mark.requirement("SESS-02", "SESS-03", "SESS-04")
def test_sids_and_tokens_are_long_and_never_the_same():
    sids = {sessions.new_sid() for _ in range(1_000)}
    tokens = {sessions.new_token(Medium.EMAIL) for _ in range(1_000)}
    assert len(sids) == len(tokens) == 1_000
    assert all(is_sid(text) for text in sids | tokens)
    assert {len(text) for text in sids} == {22}
    assert {len(text) for text in tokens} == {32}


@pytest.mark.requirement("SESS-12", "AMB-09")
@given(st.integers(-(2**60), 2**60))
@example(MAX_SEND_ATTEMPT)
@example(MAX_SEND_ATTEMPT + 1)
@example(-1)
def test_send_attempt_is_the_same_as_number_and_as_string(number):
    for value in (number, str(number)):
        if 0 <= number <= MAX_SEND_ATTEMPT:
            assert parse_send_attempt(value) == number
        else:
            with pytest.raises(InvalidParameter):
                parse_send_attempt(value)


@pytest.mark.requirement("SESS-12")
@given(st.text(max_size=20))
@example("1_000")
@example("1.0")
@example("٣")
@example("²")
@example("1\n")
def test_send_attempt_as_a_string_is_digits_and_nothing_else(text):
    if re.fullmatch(r"[0-9]{1,16}", text) and int(text) <= MAX_SEND_ATTEMPT:
        assert parse_send_attempt(text) == int(text)
    else:
        with pytest.raises(InvalidParameter):
            parse_send_attempt(text)


@pytest.mark.requirement("SESS-12")
@pytest.mark.parametrize("value", [True, False])
def test_send_attempt_is_no_boolean(value):
    with pytest.raises(InvalidParameter):
        parse_send_attempt(value)


PIECES = ["http", "https", "javascript", "data", ":", "//", "/", "\\", "@", "app.example", "evil"]
PIECES += ["?", "#", "%", "%2f", " ", "\t", "\n", "\0", "[", "]", "::1", ".", "443", "\u3002", "é"]


@pytest.mark.requirement("SESS-14")
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
@example("https://app.example/x")
@example("https://app.example:443/")
@example("https://APP.example")
@example("https://app.example\\@evil")
@example("https://app.example\\.evil")
def test_next_link_that_is_accepted_leads_to_a_listed_host_by_http(text):
    try:
        link = parse_next_link(text, ("app.example",))
    except InvalidParameter:
        return
    assert link == text
    # Read by another grammar than the one under test: that of RFC 3986, appendix B.
    scheme, authority = re.match(r"([^:/?#]+)://([^/?#]*)", link).groups()
    assert scheme.lower() in ("http", "https")
    assert re.fullmatch(r"app\.example(:[0-9]*)?", authority.lower())
    assert link.isprintable()
    assert not set(link) & set(" \\")


@pytest.mark.requirement("SESS-14", "AMB-10")
@given(
    st.sampled_from(["http", "https"]),
    st.sampled_from(["a.example", "localhost", "127.0.0.1", "[::1]", "xn--4ca.example"]),
    st.sampled_from(["", ":1", ":8448", ":65535"]),
    st.text(st.sampled_from("abz019-._~!$&'()*+,;=:@/%?#"), max_size=50),
)
def test_next_link_that_is_an_absolute_url_is_kept_as_it_is(scheme, host, port, rest):
    link = f"{scheme}://{host}{port}/{rest}"
    assert parse_next_link(link, ()) == link
    assert parse_next_link(link, (urlsplit(link).hostname.upper(),)) == link
    with pytest.raises(InvalidParameter):
        parse_next_link(link, ("other.example",))


@pytest.mark.requirement("SESS-14")
def test_next_link_is_bounded():
    start = "https://app.example/"
    longest = start + "x" * (MAX_NEXT_LINK_CHARACTERS - len(start))
    assert parse_next_link(longest, ()) == longest
    with pytest.raises(InvalidParameter):
        parse_next_link(longest + "x", ())


LABELS = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=3).map(".".join)
PATTERNS = st.lists(LABELS | LABELS.map("*.".__add__), max_size=3).map(tuple)


@given(allowed=PATTERNS, denied=PATTERNS, domain=LABELS)
def test_domain_is_served_if_allowed_and_not_denied(allowed, denied, domain):
    def matches(pattern):
        labels, wanted = domain.split("."), pattern.removeprefix("*.").split(".")
        below = len(labels) > len(wanted) and labels[-len(wanted) :] == wanted
        return below if pattern.startswith("*.") else labels == wanted

    served = not any(map(matches, denied)) and (not allowed or any(map(matches, allowed)))
    check = DomainPolicy(allowed, denied).check
    assert refuses(lambda: check(domain), InvalidEmail) is not served


# --- which tokens count ----------------------------------------------------------------------------

LIFETIME_MS = sessions.CODE_LIFETIME_MS
TOKENS = st.lists(
    st.builds(
        Token,
        token_hash=st.binary(min_size=4, max_size=4),
        send_attempt=st.integers(0, 9),
        prepared_at_ms=st.integers(0, 3 * LIFETIME_MS),
        live=st.booleans(),
    ),
    unique_by=lambda token: token.send_attempt,
)


def accepted(medium, *tokens, now_ms):
    return sessions.accepted_hashes(medium, tokens, now_ms)


@pytest.mark.requirement("SESS-04")
def test_codes_are_six_digits_with_leading_zeros():
    codes = {sessions.new_token(Medium.MSISDN) for _ in range(2_000)}
    assert all(re.fullmatch("[0-9]{6}", code, re.ASCII) for code in codes)
    assert {code[0] for code in codes} == set("0123456789")
    assert len(codes) > 1_900


@given(tokens=TOKENS, now_ms=st.integers(0, 4 * LIFETIME_MS))
def test_every_token_that_was_mailed_counts(tokens, now_ms):
    hashes = [token.token_hash for token in tokens]
    assert accepted(Medium.EMAIL, *tokens, now_ms=now_ms) == hashes


@pytest.mark.requirement("SESS-04")
@given(tokens=TOKENS, now_ms=st.integers(0, 4 * LIFETIME_MS))
def test_at_most_one_code_counts_and_it_is_young_and_of_the_highest_attempt(tokens, now_ms):
    counting = accepted(Medium.MSISDN, *tokens, now_ms=now_ms)
    assert len(counting) <= 1
    for token in tokens:
        if token.token_hash in counting:
            assert now_ms <= token.prepared_at_ms + LIFETIME_MS
            assert not any(t.live and t.send_attempt > token.send_attempt for t in tokens)


@pytest.mark.requirement("SESS-04")
def test_newest_code_counts_until_it_is_ten_minutes_old_and_revives_no_other():
    first = Token(b"1", 1, 0, live=True)
    second = Token(b"2", 2, 1_000, live=True)
    assert accepted(Medium.MSISDN, first, now_ms=LIFETIME_MS) == [b"1"]
    assert accepted(Medium.MSISDN, first, now_ms=LIFETIME_MS + 1) == []
    assert accepted(Medium.MSISDN, first, second, now_ms=1_000) == [b"2"]
    assert accepted(Medium.MSISDN, first, second, now_ms=LIFETIME_MS + 1_000) == [b"2"]
    # The host that sent the second has a clock that is behind: the first stays dead.
    behind = replace(second, prepared_at_ms=-5_000)
    assert accepted(Medium.MSISDN, first, behind, now_ms=LIFETIME_MS - 1_000) == []


@pytest.mark.requirement("SESS-04")
def test_code_that_is_on_its_way_is_the_newest_and_one_that_never_left_is_not():
    first = Token(b"1", 1, LIFETIME_MS, live=True)
    prepared = Token(b"2", 2, 1_000, live=False)
    now_ms = 1_000 + sessions.SENDING_MS
    assert accepted(Medium.MSISDN, first, prepared, now_ms=now_ms) == [b"2"]
    assert accepted(Medium.MSISDN, first, prepared, now_ms=now_ms + 1) == [b"1"]
