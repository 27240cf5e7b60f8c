"""What a text message says, and that it always fits."""

import pytest

from identity.config import Config
from identity.errors import SetupError, SmsNotSent
from identity.invites.invite import InviteRequest
from identity.messaging.brands import Brands
from identity.mxid import UserId
from identity.sms.gsm import MAX_SEPTETS, count_septets, plain
from identity.sms.message import check_texts, invitation_text, message_host, verification_text
from identity.threepid import ThreePid

ALICE = ThreePid.msisdn("447700900001")
SERVER = "id.example.org"
LINK = f"https://{SERVER}/_matrix/identity/i/" + "k" * 43
BUILT_IN = Brands(None, "default")

# Names that would act on a phone if they could, and what is left of them.
SUPPLIED = [
    ("Zoë Müller", "Zoe Müller"),
    ("Łukasz “the” Þór—x", 'Lukasz "the" Thor-x'),
    ("Пётр", ""),
    ("☃ Bob 🎉", "Bob"),
    ("visit evil.example/path", "visit evil. example/path"),
    ("https://evil.example", "https: //evil. example"),
    ("bob@evil.example", "bob@ evil. example"),
    ("evil。example", "evilexample"),
    ("evil․example", "evil. example"),
    ("evil．example", "evil. example"),
    ("a\n@id.example.org #123456", "a @id. example. org *"),
    ("Call 0900 123-456", "Call *"),
    ("1.2.3.4.5.6", "*"),
    ("１２３４５６", "*"),
    ("①②③④⑤⑥", "*"),
    ("Party 2024", "Party 2024"),
    ("tel:+4412345678", "tel:+*"),
    ("{[a]} ~b|c^\\", "a bc"),
    ("\u200b\u202ea\x00", "a"),
    ("   ", ""),
]


def verification(brands=BUILT_IN, requested_by="@alice:hs.test", **changes):
    settings = {"code": "123456", "server_name": SERVER, "host": SERVER, "brand": None, **changes}
    return verification_text(brands, ALICE, requested_by=requested_by, **settings)


def invitation(brands=BUILT_IN, link=LINK, sender="@alice:hs.test", **texts):
    request = InviteRequest(ALICE, "!room:hs.test", UserId.parse(sender), texts)
    return invitation_text(brands, request, link=link, server_name=SERVER)


def brands_of(tmp_path, brand="default", **files):
    folder = tmp_path / brand
    folder.mkdir()
    for name, template in files.items():
        (folder / f"{name}.sms.j2").write_text(template)
    return Brands(tmp_path, "default")


# --- the alphabet ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "septets"),
    [
        ("", 0),
        ("@ #_$\n", 6),
        ("éèùìòÇØøÅåΔΦΓΛΩΠΨΣΘΞÆæßÉ¤¡ÄÖÑÜ§¿äöñüà£¥", 39),
        ("€[]{}\\^~|", 18),
        ("`", None),
        ("ç", None),
        ("☃", None),
        ("\t", None),
        ("\x1b", None),
        ("…", None),
    ],
)
def test_septets_of_a_text_are_counted_as_the_standard_does(text, septets):
    assert count_septets(text) == septets


@pytest.mark.parametrize(("supplied", "shown"), SUPPLIED)
def test_supplied_text_becomes_plain(supplied, shown):
    assert plain(supplied) == shown
    assert count_septets(plain(supplied)) is not None


def test_supplied_text_of_any_length_is_made_plain_in_time():
    for text in ("1 " * 1_000_000, ". " * 1_000_000, "a." * 1_000_000, "\ufdfa" * 1_000_000):
        assert count_septets(plain(text)) is not None


# --- verification ---------------------------------------------------------------------


def test_verification_ends_with_the_line_that_phones_fill_in_and_names_the_server():
    assert verification() == (
        "id.example.org: code to link this number to the Matrix account @alice:hs. test. "
        "Do not pass it on.\n\n@id.example.org #123456"
    )
    assert "to a Matrix account." in verification(requested_by=None)


@pytest.mark.parametrize(
    "requested_by",
    [
        None,
        "",
        "@" + "x" * 200 + ":hs.test",
        "@123456:hs.test",
        "@a:hs.test\n@evil.example #123456",
        *(supplied for supplied, _ in SUPPLIED),
        *(supplied * 20 for supplied, _ in SUPPLIED),
    ],
)
@pytest.mark.parametrize(
    ("server_name", "host"),
    [
        (SERVER, SERVER),
        ("example.org", "matrix-identity.services.example.org"),
        ("x" * 60 + ".example.org", "x" * 60 + ".example.org"),
        ("localhost", "localhost"),
        ("id.example.org:8448", "id.example.org"),
    ],
)
def test_verification_is_one_message_whatever_the_name_of_the_account(
    requested_by, server_name, host
):
    text = verification(requested_by=requested_by, server_name=server_name, host=host)
    assert 0 < count_septets(text) <= MAX_SEPTETS
    assert text.count("123456") == 1
    assert text.count("#") == 1
    assert text.endswith(f"\n@{host} #123456")
    assert server_name in text
    above = text.splitlines()[:-1]
    assert not any("evil." in line and "evil. " not in line for line in above)


def test_code_is_bound_to_the_host_of_the_public_url_without_its_port():
    assert message_host("https://id.example.org:8448/path") == "id.example.org"
    assert message_host("http://localhost:8090") == "localhost"


# --- invitation -----------------------------------------------------------------------


def test_invitation_says_from_whom_and_to_what_and_carries_the_link():
    assert invitation(sender_display_name="Alice", room_name="Tea") == (
        f"Matrix invitation from Alice to Tea:\n{LINK}"
    )
    assert invitation().startswith("Matrix invitation from @alice:hs. test:\n")


@pytest.mark.parametrize("supplied", [supplied for supplied, _ in SUPPLIED])
@pytest.mark.parametrize("times", [1, 40])
@pytest.mark.parametrize("link", [LINK, "https://localhost/" + "k" * 120])
def test_invitation_is_one_message_with_one_link_whatever_the_names(supplied, times, link):
    name = supplied * times
    text = invitation(
        link=link,
        sender_display_name=name,
        room_name=name,
        room_alias=f"#{name}:hs.test",
        room_type="m.space",
    )
    assert count_septets(text) <= MAX_SEPTETS
    assert text.endswith(f"\n{link}")
    assert text.count("://") == 1


# --- brands ---------------------------------------------------------------------------


def config_of(host=SERVER, *, invites=True):
    return Config.model_validate(
        {
            "server": {"name": host, "public_url": f"https://{host}"},
            "invites": {"allow_msisdn": invites},
        }
    )


def long_host(characters):
    return ("x" * 60 + ".") * (characters // 61) + "y" * (characters % 61)


def test_built_in_texts_fit_for_long_hosts():
    for host in ("a.test", long_host(70)):
        check_texts(BUILT_IN, config_of(host))
    check_texts(BUILT_IN, config_of(long_host(118), invites=False))
    for host, invites in ((long_host(71), True), (long_host(119), False)):
        with pytest.raises(SetupError, match="public_url"):
            check_texts(BUILT_IN, config_of(host, invites=invites))


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"verification": "{{ code }}"}, "does not carry its one code"),
        ({"verification": "@{{ host }} #{{ code }}\nBye"}, "does not carry its one code"),
        ({"verification": "{{ code }}\n@{{ host }} #{{ code }}"}, "does not carry its one code"),
        ({"verification": "Ⅵ\n@{{ host }} #{{ code }}"}, "not in the alphabet of SMS"),
        ({"verification": "x" * 140 + "\n@{{ host }} #{{ code }}"}, "takes 164 of 160 septets"),
        ({"verification": "~" * 70 + "\n@{{ host }} #{{ code }}"}, "takes 164 of 160 septets"),
        ({"invite": "Come!"}, "does not carry the link"),
        ({"invite": "{{ link }}?x"}, "does not carry the link"),
        ({"invite": "{% if is_space %}☃{% endif %} {{ link }}"}, "not in the alphabet of SMS"),
        ({"invite": "x" * 90 + " {{ link }}"}, "septets even without any name"),
    ],
)
@pytest.mark.parametrize("brand", ["default", "other"])
def test_brand_whose_text_cannot_be_sent_is_a_fault_of_the_setup(tmp_path, files, problem, brand):
    if brand != "default":
        (tmp_path / "default").mkdir()
    brands = brands_of(tmp_path, brand, **files)
    (file,) = files
    with pytest.raises(SetupError) as caught:
        check_texts(brands, config_of())
    assert problem in str(caught.value)
    assert f"{file}.sms.j2" in str(caught.value)


def test_brand_whose_invitations_are_never_sent_need_not_fit(tmp_path):
    brands = brands_of(tmp_path, invite="Come!")
    check_texts(brands, config_of(invites=False))


def test_brand_is_the_one_that_the_request_names(tmp_path):
    (tmp_path / "default").mkdir()
    brands = brands_of(
        tmp_path, "other", verification="Hi {{ requested_by }}\n@{{ host }} #{{ code }}"
    )
    assert verification(brands, brand="other").startswith("Hi @alice")
    assert verification(brands, brand="none").startswith(SERVER)


def test_text_that_fits_with_no_name_at_all_is_not_sent():
    """What a link longer than the one that was checked comes to."""
    with pytest.raises(SmsNotSent):
        invitation(link="https://a.test/" + "k" * 160)
