"""Server names and user IDs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.errors import InvalidParameter
from identity.mxid import MAX_SERVER_NAME_CHARACTERS, MAX_USER_ID_BYTES, ServerName, UserId


@pytest.mark.parametrize(
    ("text", "host", "port", "is_ip_literal"),
    [
        ("example.com", "example.com", None, False),
        ("Example.COM:8448", "example.com", 8448, False),
        ("localhost", "localhost", None, False),
        ("a-b.c1", "a-b.c1", None, False),
        ("example.com.", "example.com.", None, False),
        ("1.2.3.4", "1.2.3.4", None, True),
        ("1.2.3.4:1", "1.2.3.4", 1, True),
        ("[::1]", "::1", None, True),
        ("[2001:DB8::1]:65535", "2001:db8::1", 65535, True),
    ],
)
def test_server_name_is_parsed_and_kept_as_written(text, host, port, is_ip_literal):
    name = ServerName.parse(text)
    assert (name.host, name.port, name.is_ip_literal) == (host, port, is_ip_literal)
    assert str(name) == text


@pytest.mark.requirement("AUTH-06")
@pytest.mark.parametrize(
    "text",
    [
        "",
        ":8448",
        "example.com:",
        "example.com:0",
        "example.com:99999",
        "example.com:port",
        "example.com:-1",
        "example.com:８",
        "example.com#",
        "a/b",
        "a?b",
        "u@h",
        "a b",
        "a..b",
        ".a",
        "a" * 64 + ".com",
        "a." * 128,
        "exämple.com",
        "1.2.3",
        "1.2.3.4.5",
        "1.2.3.256",
        "[::1",
        "[::1]x",
        "[::1]:",
        "[1.2.3.4]",
        "[fe80::1%eth0]",
        "::1",
        "example.com\n",
        "example.com\0",
        "a_b.example",
    ],
    ids=ascii,
)
def test_text_that_is_no_server_name_is_refused(text):
    with pytest.raises(InvalidParameter):
        ServerName.parse(text)


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("@alice:example.com", "example.com"),
        ("@A!#$%&'*+-/=?^_`{|}~:Example.com:8448", "Example.com:8448"),
        ("@müller:example.com", "example.com"),
        ("@a b:example.com", "example.com"),
        ("@alice:[::1]:80", "[::1]:80"),
    ],
)
def test_user_id_is_parsed_and_kept_as_written(text, server):
    user_id = UserId.parse(text)
    assert str(user_id) == text
    assert str(user_id.server) == server


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "@:",
        "@:example.com",
        "@alice",
        "@alice:",
        "alice:example.com",
        "!alice:example.com",
        "@alice:exa mple.com",
        "@alice:example.com:port",
        "@alice\0:example.com",
        "@alice\n:example.com",
        "@alice\u202e:example.com",
        "@\ud800:example.com",
        "@alice:example.com ",
    ],
    ids=ascii,
)
def test_text_that_is_no_user_id_is_refused(text):
    with pytest.raises(InvalidParameter):
        UserId.parse(text)


def test_lengths_are_bounded():
    longest = "@" + "a" * (MAX_USER_ID_BYTES - len("@:x.test")) + ":x.test"
    assert str(UserId.parse(longest)) == longest
    for too_long in ("@a" + longest[1:], longest.replace("aa", "aé", 1)):
        with pytest.raises(InvalidParameter):
            UserId.parse(too_long)
    ServerName.parse("a" * 63 + ("." + "a" * 63) * 3)
    with pytest.raises(InvalidParameter):
        ServerName.parse("a." * (MAX_SERVER_NAME_CHARACTERS // 2) + "aa")


@given(st.text() | st.text("@:.[]-abcXYZ019é \n%", max_size=40))
def test_any_text_is_kept_as_it_is_or_refused(text):
    for parse in (ServerName.parse, UserId.parse):
        try:
            parsed = parse(text)
        except InvalidParameter:
            continue
        assert str(parsed) == text
        assert parse(str(parsed)) == parsed
