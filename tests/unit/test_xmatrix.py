"""Reading X-Matrix authorizations, and what a homeserver may have signed."""

import time

import nacl.signing
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import vectors
from unpaddedbase64 import decode_base64

from identity.config import Server
from identity.errors import Unauthorized
from identity.federation.requests import our_names, uri_candidates
from identity.federation.xmatrix import (
    MAX_CHARACTERS,
    MAX_SIGNATURES,
    XMatrix,
    parse,
    signed_messages,
)
from identity.mxid import ServerName
from identity.strict_json import decode, encode_canonical

HS = ServerName.parse("hs.test")
READ = XMatrix(HS, "id.test", (("ed25519:1", "c2ln"),))
USUAL = 'X-Matrix origin="hs.test",key="ed25519:1",sig="c2ln",destination="id.test"'


@pytest.mark.requirement("FED-16")
@pytest.mark.parametrize(
    "header",
    [
        USUAL,
        'x-matrix origin="hs.test",key="ed25519:1",sig="c2ln",destination="id.test"',
        'X-MATRIX ORIGIN="hs.test",Key="ed25519:1",sIG="c2ln",Destination="id.test"',
        'X-Matrix    origin="hs.test",key="ed25519:1",sig="c2ln",destination="id.test"',
        'X-Matrix destination="id.test",sig="c2ln",key="ed25519:1",origin="hs.test"',
        'X-Matrix origin="hs.test", key="ed25519:1" ,\tsig="c2ln" , destination="id.test"',
        'X-Matrix origin = "hs.test",key\t=\t"ed25519:1",sig= "c2ln",destination ="id.test"',
        'X-Matrix ,,origin="hs.test",,key="ed25519:1", ,sig="c2ln",destination="id.test",',
        "X-Matrix origin=hs.test,key=ed25519:1,sig=c2ln,destination=id.test",
        'X-Matrix origin=hs.test,key="ed25519:1",sig=c2ln,destination="id.test"',
        r'X-Matrix origin="h\s.test",key="ed2\5519:1",sig="\c2ln",destination="id.tes\t"',
        USUAL.replace(" ", r' a="b, c=\"d\"",') + ',e=f:g,h=""',
    ],
)
def test_header_in_any_form_is_read(header):
    assert parse([header]) == READ


@pytest.mark.requirement("FED-16")
def test_quoted_value_is_unescaped_and_may_hold_anything():
    read = parse([r'X-Matrix origin=hs.test,key="ed25519:\"a\\,b=",sig=" \" ",destination="\\"'])
    assert read == XMatrix(HS, "\\", (('ed25519:"a\\,b=', ' " '),))


@pytest.mark.requirement("FED-16")
def test_bare_values_hold_colons_and_base64():
    read = parse(["X-Matrix origin=hs.test:8448,key=ed25519:a_b,sig=a+b/c=="])
    assert read == XMatrix(ServerName.parse("hs.test:8448"), None, (("ed25519:a_b", "a+b/c=="),))


@pytest.mark.requirement("FED-16")
@pytest.mark.parametrize(
    "headers",
    [
        [USUAL, USUAL.replace("c2ln", "b3RoZXI").replace(":1", ":2")],
        # As a server in front of us joins headers of one name.
        [USUAL + "," + USUAL.replace("c2ln", "b3RoZXI").replace(":1", ":2")],
        [
            "Bearer abc",
            USUAL,
            'Digest a="b", c',
            USUAL.replace("c2ln", "b3RoZXI").replace(":1", ":2"),
        ],
        [
            f"Bearer a.b-c_d~e+/f==, {USUAL},Basic YWJj ,Negotiate,"
            + USUAL.replace("c2ln", "b3RoZXI").replace(":1", ":2")
        ],
    ],
    ids=["two", "joined", "among others", "joined among others"],
)
def test_signatures_of_several_headers_are_read(headers):
    assert parse(headers) == XMatrix(
        HS, "id.test", (("ed25519:1", "c2ln"), ("ed25519:2", "b3RoZXI"))
    )


@pytest.mark.requirement("FED-17")
@pytest.mark.parametrize(
    ("parameters", "signature"),
    [
        ("sig=c2ln", "c2ln"),
        ("signature=c2ln", "c2ln"),
        ("signature=b3RoZXI,sig=c2ln", "c2ln"),
        ("sig=c2ln,signature=b3RoZXI", "c2ln"),
        ('sig="",signature=c2ln', ""),
    ],
)
def test_signature_under_either_name_is_read_and_sig_is_preferred(parameters, signature):
    read = parse([f"X-Matrix origin=hs.test,key=ed25519:1,{parameters}"])
    assert read.signatures == (("ed25519:1", signature),)


@pytest.mark.requirement("FED-18")
def test_destination_may_be_absent():
    assert parse(["X-Matrix origin=hs.test,key=ed25519:1,sig=c2ln"]).destination is None


@pytest.mark.requirement("FED-16")
@pytest.mark.parametrize(
    "header",
    [
        "",
        " , ,",
        "Bearer abc",
        "X-Matrix",
        "X-Matrix ",
        "X-Matrix abc",
        'X-Matrixorigin="hs.test",key="ed25519:1",sig="c2ln"',
        'origin="hs.test",key="ed25519:1",sig="c2ln"',
        'X-Matrix\torigin="hs.test",key="ed25519:1",sig="c2ln"',
        'X-Matrix key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="hs.test",sig="c2ln"',
        'X-Matrix origin="hs.test",key="ed25519:1"',
        'X-Matrix origin="hs.test",key="ed25519:1",sig=',
        r'X-Matrix origin=h\s.test,key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="hs.test",key="ed25519:1",sig="c2ln',
        'X-Matrix origin="hs.test",key="ed25519:1",sig="c2ln\\"',
        'X-Matrix origin="hs.test" key="ed25519:1" sig="c2ln"',
        'X-Matrix origin="hs.test"; key="ed25519:1"; sig="c2ln"',
        'X-Matrix origin="hs.test",key="ed25519:1",sig="c2ln"x',
        'X-Matrix origin="hs.test",origin="hs.test",key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="hs.test",Sig="a",key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="hs.test",key="ed25519:1",Bearer abc,sig="c2ln"',
        'X-Matrix origin="hs.test",key="ed25519:1",sig="c2ln",=a',
        f"{USUAL},X-Matrix a=b",
    ],
)
def test_malformed_header_is_refused(header):
    with pytest.raises(Unauthorized):
        parse([header])


@pytest.mark.requirement("FED-16")
@pytest.mark.parametrize(
    "other",
    [
        USUAL.replace("hs.test", "other.test"),
        USUAL.replace("hs.test", "HS.test"),
        USUAL.replace("id.test", "other.test"),
        'X-Matrix origin="hs.test",key="ed25519:1",sig="c2ln"',
    ],
    ids=["origin", "case", "destination", "no destination"],
)
def test_signatures_that_do_not_belong_together_are_refused(other):
    with pytest.raises(Unauthorized):
        parse([USUAL, other])


@pytest.mark.requirement("FED-22")
@pytest.mark.parametrize(
    "origin",
    [
        "a/b",
        "",
        " hs.test",
        "hs.test ",
        "u@hs.test",
        "hs.test#",
        "hs.test:0",
        "[::1",
        "é.test",
        "@alice:hs.test",
        "hs.test,other.test",
        "a" * 256,
    ],
)
def test_origin_that_is_no_server_name_is_refused(origin):
    with pytest.raises(Unauthorized):
        parse([f'X-Matrix origin="{origin}",key="ed25519:1",sig="c2ln"'])


@pytest.mark.requirement("FED-22")
@pytest.mark.parametrize("key_id", ["rsa:1", "ed25519", "Ed25519:1", "xed25519:1", "", "1"])
def test_signature_by_another_algorithm_is_passed_over(key_id):
    foreign = f'X-Matrix origin="hs.test",key="{key_id}",sig="c2ln",destination="id.test"'
    with pytest.raises(Unauthorized):
        parse([foreign])
    assert parse([foreign, USUAL]) == READ


@pytest.mark.requirement("FED-16")
def test_number_of_signatures_is_bounded():
    headers = [USUAL.replace(":1", f":{number}") for number in range(MAX_SIGNATURES + 1)]
    assert len(parse(headers[:-1]).signatures) == MAX_SIGNATURES
    with pytest.raises(Unauthorized):
        parse(headers)


@pytest.mark.requirement("FED-16")
def test_length_of_all_headers_is_bounded():
    padding = "a" * (MAX_CHARACTERS - len(USUAL) - len(",b="))
    assert parse([USUAL + ",b=" + padding]) == READ
    for headers in ([USUAL + ",b=a" + padding], [USUAL, "Bearer " + "a" * MAX_CHARACTERS]):
        with pytest.raises(Unauthorized):
            parse(headers)


@pytest.mark.parametrize(
    "piece",
    [
        '"',
        '\\"',
        "a",
        " ",
        "a ",
        "a=",
        'a="',
        "a=b ",
        "a,",
        "a a",
        "a=,",
        ",",
        "\t",
        "a \t",
        "=",
        "\\",
    ],
)
@pytest.mark.parametrize("start", ["", "X-Matrix ", 'X-Matrix a="', "X-Matrix a"])
def test_worst_input_takes_time_in_proportion(start, piece):
    """As long as is allowed. What is quadratic takes a second or more."""
    header = start + piece * (MAX_CHARACTERS // len(piece))
    began = time.process_time()
    for _ in range(3):
        with pytest.raises(Unauthorized):
            parse([header[:MAX_CHARACTERS]])
    assert time.process_time() - began < 1.5


@given(st.text(alphabet='aX-Matrix origin="=,\\\t:.é', max_size=80))
def test_any_text_is_read_or_refused(text):
    try:
        parse(["X-Matrix " + text, text])
    except Unauthorized:
        return


QUOTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)


@pytest.mark.requirement("FED-16")
@given(QUOTABLE, QUOTABLE, QUOTABLE, st.permutations(range(4)))
def test_what_is_quoted_is_read_back(key, signature, destination, order):
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    parameters = [
        "origin=hs.test",
        "key=" + quoted("ed25519:" + key),
        "sig=" + quoted(signature),
        "destination=" + quoted(destination),
    ]
    read = parse(["X-Matrix " + ",".join(parameters[index] for index in order)])
    assert read == XMatrix(HS, destination, (("ed25519:" + key, signature),))


class TestSignedMessages:
    @pytest.mark.requirement("FED-19")
    def test_both_vectors_are_signatures_of_a_message(self):
        vector = vectors.load("signed_requests")
        key = nacl.signing.SigningKey(decode_base64(vector["seed"])).verify_key
        messages = list(
            signed_messages(
                vector["method"],
                [vector["uri"]],
                vector["origin"],
                [vector["destination"]],
                encode_canonical(vector["content"]),
            )
        )
        for message, name in zip(messages, ("destination_is", "destination"), strict=True):
            key.verify(message, decode_base64(vector["signatures"][name]))

    @pytest.mark.requirement("FED-19", "FED-21")
    def test_each_message_is_canonical_json(self):
        content = {"z": [1, {"é": None}], "a": "\u007f\n"}
        messages = list(
            signed_messages("PUT", ["/é?a=%2F"], "hs.test", ["a", "b"], encode_canonical(content))
        )
        for message in messages:
            assert encode_canonical(decode(message)) == message
        common = {"method": "PUT", "uri": "/é?a=%2F", "origin": "hs.test", "content": content}
        assert [decode(message) for message in messages] == [
            {**common, key: name} for name in "ab" for key in ("destination_is", "destination")
        ]


class TestOurNames:
    @pytest.mark.requirement("FED-20")
    @pytest.mark.parametrize(
        ("settings", "names"),
        [
            (
                {"name": "id.test", "public_url": "https://id.test"},
                ("id.test",),
            ),
            (
                {"name": "test", "public_url": "https://id.test:8443/a/b/"},
                ("test", "id.test:8443", "id.test:8443/a/b"),
            ),
            (
                {
                    "name": "id.test",
                    "public_url": "https://id.test/a",
                    "aliases": ["old.test", "id.test", "ip.test:90"],
                },
                ("id.test", "id.test/a", "old.test", "ip.test:90"),
            ),
        ],
    )
    def test_names_are_name_public_url_and_aliases(self, settings, names):
        settings["name"] = ServerName.parse(settings["name"])
        settings["aliases"] = tuple(map(ServerName.parse, settings.get("aliases", [])))
        assert our_names(Server.model_validate(settings)) == names


class TestUriCandidates:
    @pytest.mark.requirement("FED-21")
    @pytest.mark.parametrize(
        ("environ", "candidates"),
        [
            ({"RAW_URI": "/path"}, ("/path",)),
            ({"RAW_URI": "/path?a=%2F&b"}, ("/path?a=%2F&b", "/path")),
            ({"RAW_URI": "/path/"}, ("/path/", "/path")),
            ({"RAW_URI": "/below/path", "REQUEST_URI": "/no"}, ("/below/path", "/path")),
            ({"REQUEST_URI": "/below/path"}, ("/below/path", "/path")),
            ({}, ("/path",)),
        ],
    )
    def test_target_as_it_was_sent_comes_before_the_path(self, environ, candidates):
        assert uri_candidates(environ, "/path") == candidates
