"""Sydent's push as bytes: what one was seen to send, and what is none. Pure."""

import json

import pytest
from unpaddedbase64 import decode_base64

from identity.associations.statement import Statement
from identity.errors import BadJson
from identity.mxid import UserId
from identity.replication.sydent.wire import (
    Arrived,
    decode_push,
    encode_push,
    has_shape,
    is_id,
    names_of,
)
from identity.signing import SigningKey, is_signed_by
from identity.threepid import ThreePid

# A push that a Sydent 2.6.1 named a.test sent, and the seed of its key.
CAPTURED = (
    rb'{"sgAssocs": {"2": {"medium": "email", "address": "j\u00f6rg@ex\u00e4mple.test", "mxid": "@jo:hs.test", '
    rb'"ts": 1795395118723, "not_before": 1795395118723, "not_after": 4948995118723, "signatures": {"a.test": '
    rb'{"ed25519:0": "NE3KPeH7/0A5Fk1W1h6hbIyN22QQnuG0WXYDIlw8lApu9k3G18jImCEr3Q2TIWHtIJN857g2uW1m+hwjmmAXCA"}}}, '
    rb'"3": {"medium": "msisdn", "address": "447700900123", "mxid": "@jo:hs.test", "ts": 1795395118730, '
    rb'"not_before": 1795395118730, "not_after": 4948995118730, "signatures": {"a.test": '
    rb'{"ed25519:0": "R0MvpwKAmw+wDZYgI23YXyBX0/AyoGPCJsEfkW3oKqryvYKddCdXG+F7aSV7s9E3mNMwGNd4A7y09gbumO5JCg"}}}, '
    rb'"4": {"medium": "email", "address": "gone@example.test", "mxid": null, "ts": 1795395118736, '
    rb'"not_before": null, "not_after": null, "signatures": {"a.test": '
    rb'{"ed25519:0": "nTFVv41jcCC14s6Rfr/M9YhULrtjbILlnyLK8p4PT5HVCWQ+PTFSSDfP9eKlZACHwbDHrXaZWPyOQt600Ys4AA"}}}}}'
)
SEED = decode_base64("JFPN9N9BF+NH1/EST5f1FIkOBjwMIAulkbREWnWdWkE")
PUBLIC_KEY = decode_base64("xAjgDy0l2F5AWWQGok7dmX7Ol51iyqO2RvihPeQUH1U")

ASSOCIATION = json.loads(CAPTURED)["sgAssocs"]["2"]


def test_captured_push_is_read_and_its_signatures_are_good():
    assert len(CAPTURED) == 863
    arrived = decode_push(CAPTURED)
    assert [item.origin_id for item in arrived] == [2, 3, 4]
    for item in arrived:
        assert has_shape(item.signed)
        assert is_signed_by(item.signed, "a.test", {"ed25519:0": PUBLIC_KEY})


def test_captured_push_is_what_we_would_send_ourselves():
    key = SigningKey.from_seed("ed25519:0", SEED)
    at_ms, joe = 1_795_395_118_723, UserId.parse("@jo:hs.test")
    said = [
        (2, Statement.make(ThreePid.email("Jörg@exämple.test"), joe, at_ms, None)),
        (3, Statement.make(ThreePid.msisdn("447700900123"), joe, at_ms + 7, None)),
        (4, Statement.make(ThreePid.email("gone@example.test"), None, at_ms + 13, None)),
    ]
    signed = [(origin_id, key.sign(one.to_json(), "a.test")) for origin_id, one in said]
    assert encode_push(signed) == CAPTURED


def test_nothing_else_than_the_seven_keys_is_sent():
    body = encode_push([(9, {**ASSOCIATION, "unsigned": 1})])
    assert json.loads(body) == {"sgAssocs": {"9": ASSOCIATION}}


def test_ids_are_in_numeric_order():
    listed = dict.fromkeys(("100", "9", "20"), ASSOCIATION)
    arrived = decode_push(json.dumps({"sgAssocs": listed}).encode())
    assert [item.origin_id for item in arrived] == [9, 20, 100]


def test_push_without_associations_is_a_push():
    assert decode_push(b'{"sgAssocs": {}}') == []
    assert encode_push([]) == b'{"sgAssocs": {}}'


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "Malformed JSON"),
        (b"{", "Malformed JSON"),
        (b'{"sgAssocs": NaN}', "Malformed JSON"),
        (b'{"sgAssocs": {"1": {}, "1": {}}}', "Malformed JSON"),
        (b"[" * 40 + b"]" * 40, "Malformed JSON"),
        (b"\xff", "Malformed JSON"),
        (b"[]", 'No "sgAssocs" key in JSON'),
        (b'"sgAssocs"', 'No "sgAssocs" key in JSON'),
        (b'{"sgassocs": {}}', 'No "sgAssocs" key in JSON'),
        (b'{"sgAssocs": []}', '"sgAssocs" must be an object'),
        (b'{"sgAssocs": null}', '"sgAssocs" must be an object'),
        (b'{"sgAssocs": {"": {}}}', "An id must be a positive integer"),
        (b'{"sgAssocs": {"0": {}}}', "An id must be a positive integer"),
        (b'{"sgAssocs": {"-1": {}}}', "An id must be a positive integer"),
        (b'{"sgAssocs": {"07": {}}}', "An id must be a positive integer"),
        (b'{"sgAssocs": {"1.0": {}}}', "An id must be a positive integer"),
        ('{"sgAssocs": {"٣": {}}}'.encode(), "An id must be a positive integer"),
        (b'{"sgAssocs": {"9223372036854775808": {}}}', "An id must be a positive integer"),
        (b'{"sgAssocs": {"%s": {}}}' % (b"9" * 5000), "An id must be a positive integer"),
    ],
)
def test_what_is_no_push_is_refused(body, error):
    with pytest.raises(BadJson) as caught:
        decode_push(body)
    assert str(caught.value) == error


def test_largest_id_is_an_id():
    assert is_id("9223372036854775807")
    assert decode_push(b'{"sgAssocs": {"9223372036854775807": 1}}') == [Arrived(2**63 - 1, 1)]


def without(key):
    return {name: value for name, value in ASSOCIATION.items() if name != key}


@pytest.mark.parametrize("key", ASSOCIATION)
def test_association_without_one_of_its_keys_has_no_shape(key):
    assert not has_shape(without(key))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("medium", None),
        ("medium", 1),
        ("address", None),
        ("address", ["a@example.test"]),
        ("mxid", 1),
        ("mxid", False),
        ("ts", None),
        ("ts", "1795395118723"),
        ("ts", 1.5),
        ("ts", True),
        ("not_before", "1"),
        ("not_after", False),
        ("signatures", None),
        ("signatures", []),
    ],
)
def test_association_with_a_wrong_type_has_no_shape(key, value):
    assert not has_shape({**ASSOCIATION, key: value})


@pytest.mark.parametrize("value", [None, [], "text", 7])
def test_what_is_no_object_has_no_shape(value):
    assert not has_shape(value)


def test_further_keys_and_the_validity_of_a_revocation_do_no_harm():
    assert has_shape({**ASSOCIATION, "invites": [{"token": "x"}]})
    assert has_shape({**ASSOCIATION, "mxid": None})


@pytest.mark.parametrize(
    ("certificate", "names"),
    [
        ({"subject": ((("commonName", "a.test"),),)}, ("a.test",)),
        (
            {
                "subject": (
                    (("organizationName", "A"),),
                    (("commonName", "first.test"),),
                    (("commonName", "last.test"),),
                )
            },
            ("last.test",),
        ),
        (
            {
                "subject": ((("commonName", "a.test"),),),
                "subjectAltName": (
                    ("DNS", "b.test"),
                    ("IP Address", "127.0.0.1"),
                    ("DNS", "a.test"),
                ),
            },
            ("a.test", "b.test"),
        ),
        ({"subjectAltName": (("DNS", "b.test"),)}, ("b.test",)),
        ({"subject": ((("organizationName", "a.test"),),)}, ()),
        ({}, ()),
    ],
)
def test_certificate_names_its_last_common_name_then_its_dns_names(certificate, names):
    assert names_of(certificate) == names
