"""The bytes that docs/replication.md fixes: what is signed, what is sent, and what follows from it."""

import json
from pathlib import Path

import pytest
from parts import vectors
from unpaddedbase64 import decode_base64, encode_base64

from identity.federation import xmatrix
from identity.replication.batch import Batch
from identity.replication.chain import EMPTY_HEAD, next_head
from identity.replication.peer import Peer, Protocol
from identity.signing import SigningKey
from identity.strict_json import decode

RECORDED = vectors.load("replication")
PAGE = Path(__file__).parents[2] / "docs" / "replication.md"


@pytest.fixture
def server(make_server):
    server = make_server(
        {"SERVER__NAME": RECORDED["destination"], "SERVER__PUBLIC_URL": "https://b.test"}
    )
    keys = {RECORDED["key_id"]: decode_base64(RECORDED["public_key"])}
    server.services.peers.add(Peer("a.test", "https://a.test", Protocol.V2, keys))
    return server


def post(server):
    headers = {"Authorization": RECORDED["authorization"]}
    return server.client.post(RECORDED["uri"], data=RECORDED["body"].encode(), headers=headers)


def test_recorded_push_is_taken_and_ends_with_the_recorded_head_and_digests(server):
    assert post(server).json == RECORDED["answer"]
    held = {row["origin_id"]: encode_base64(row["leaf"]) for row in server.rows("statements")}
    assert held == {int(origin_id): leaf for origin_id, leaf in RECORDED["leaves"].items()}
    (digest,) = [one for one in server.services.associations.digest() if one.origin == "a.test"]
    assert digest.last_id == RECORDED["answer"]["last_id"]
    assert digest.head == decode_base64(RECORDED["heads"][str(digest.last_id)]).hex()
    assert digest.ranges == {int(first): text for first, text in RECORDED["digests"].items()}
    assert server.rows("alarms") == []
    assert post(server).json == RECORDED["answer"]


def test_recorded_push_is_what_a_sender_sends():
    batch = Batch.decode(decode(RECORDED["body"].encode()))
    assert batch.encode() == RECORDED["body"].encode()
    key = SigningKey.from_seed(RECORDED["key_id"], decode_base64(RECORDED["seed"]))
    for item in batch.items:
        if item.signed is not None:
            signed = json.loads(item.signed)
            signature = signed.pop("signatures")
            assert key.sign(signed, "a.test")["signatures"] == signature
    message = xmatrix.signed_message("POST", RECORDED["uri"], "a.test", "b.test", batch.encode())
    assert f'sig="{key.sign_message(message)}"' in RECORDED["authorization"]
    head = EMPTY_HEAD
    for item in batch.items:
        head = next_head(head, item.origin_id, item.leaf)
        assert encode_base64(head) == RECORDED["heads"][str(item.origin_id)]
        assert encode_base64(item.leaf) == RECORDED["leaves"][str(item.origin_id)]


@pytest.mark.parametrize("name", ["uri", "public_key", "authorization", "body"])
def test_page_quotes_what_is_recorded(name):
    assert RECORDED[name] in PAGE.read_text(encoding="utf-8")


def test_page_quotes_every_leaf_head_and_digest():
    page = PAGE.read_text(encoding="utf-8")
    for kind in ("leaves", "heads", "digests"):
        assert all(text in page for text in RECORDED[kind].values()), kind
