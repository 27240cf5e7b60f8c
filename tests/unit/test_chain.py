"""The hash chain over an origin's statements, and the digests over its live ones."""

import hashlib
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.replication.chain import EMPTY_HEAD, leaf_of, next_head
from identity.replication.digest import RANGE_IDS, digests

leaves = st.binary(min_size=32, max_size=32)
logs = st.dictionaries(st.integers(1, 2**63 - 1), leaves, max_size=8).map(
    lambda log: sorted(log.items())
)
lives = st.dictionaries(st.integers(1, 5_000), leaves, max_size=20)


def head_of(log):
    return reduce(lambda head, item: next_head(head, *item), log, EMPTY_HEAD)


def test_leaf_and_head_are_plain_sha256():
    """The definition, spelt out: other programs compute it from docs/replication.md."""
    text = '{"address":"é"}'
    leaf = hashlib.sha256(text.encode("utf-8")).digest()
    assert leaf_of(text) == leaf
    first = hashlib.sha256(b"\0" * 32 + b"\0\0\0\0\0\0\0\x07" + leaf).digest()
    assert next_head(EMPTY_HEAD, 7, leaf) == first
    second = hashlib.sha256(first + b"\0\0\0\0\0\0\x01\x00" + leaf).digest()
    assert next_head(first, 256, leaf) == second


@given(logs, st.data())
def test_head_shows_every_change_of_the_log(log, data):
    head = head_of(log)
    assert len(head) == 32
    if not log:
        return
    place = data.draw(st.integers(0, len(log) - 1))
    origin_id, leaf = log[place]
    changed = bytes([leaf[0] ^ 1]) + leaf[1:]
    before, after = log[:place], log[place + 1 :]
    assert head_of([*before, *after]) != head
    assert head_of([*before, (origin_id, changed), *after]) != head
    assert head_of([*before, (origin_id - 1, leaf), *after]) != head
    if len(log) > 1:
        assert head_of(log[::-1]) != head
    # A prefix can be continued to the same head: a peer that lags checks what it gets.
    assert reduce(lambda h, item: next_head(h, *item), log[place:], head_of(before)) == head


def test_digest_is_plain_sha256_for_each_range():
    leaf, other = b"a" * 32, b"b" * 32
    first = hashlib.sha256((1).to_bytes(8, "big") + leaf + (999).to_bytes(8, "big") + other)
    second = hashlib.sha256((1_000).to_bytes(8, "big") + leaf)
    fifth = hashlib.sha256((4_321).to_bytes(8, "big") + other)
    live = [(1, leaf), (999, other), (1_000, leaf), (4_321, other)]
    assert digests(live) == {
        0: first.hexdigest(),
        1_000: second.hexdigest(),
        4_000: fifth.hexdigest(),
    }
    assert digests([]) == {}


@given(lives, st.data())
def test_digest_differs_only_in_the_range_that_differs(live, data):
    before = digests(sorted(live.items()))
    assert before.keys() == {origin_id // RANGE_IDS * RANGE_IDS for origin_id in live}
    assert all(len(digest) == 64 for digest in before.values())
    if not live:
        return
    gone = data.draw(st.sampled_from(sorted(live)))
    rest = {origin_id: leaf for origin_id, leaf in live.items() if origin_id != gone}
    after = digests(sorted(rest.items()))
    first = gone // RANGE_IDS * RANGE_IDS
    assert after.get(first) != before[first]
    del before[first]
    after.pop(first, None)
    assert after == before


@pytest.mark.parametrize("origin_id", [-1, 2**64])
def test_id_that_is_none_is_refused(origin_id):
    with pytest.raises(OverflowError):
        next_head(EMPTY_HEAD, origin_id, bytes(32))
