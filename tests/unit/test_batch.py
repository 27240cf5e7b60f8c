"""Cursors and batches: what both sides conclude, without a database and without a network."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.errors import InvalidParameter
from identity.replication.batch import (
    MAX_BATCH_BYTES,
    MAX_ITEMS,
    Answer,
    Batch,
    Item,
    Known,
    Restored,
    acknowledge,
    cut,
    plan,
)
from identity.replication.chain import EMPTY_HEAD, next_head
from identity.replication.digest import Comparison, Named, differing
from identity.strict_json import decode, decode_canonical, encode_canonical, encode_decoded

LEAF = bytes(range(32))

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
signed_texts = st.dictionaries(texts, texts, max_size=4).map(
    lambda value: encode_canonical(value).decode()
)
items = st.dictionaries(st.integers(1, 2**53 - 1), st.none() | signed_texts, max_size=6).map(
    lambda log: tuple(
        Item(origin_id, LEAF, None) if signed is None else Item.of(origin_id, signed)
        for origin_id, signed in sorted(log.items())
    )
)
batches = st.builds(Batch, st.just(0), items, st.none() | st.binary(min_size=32, max_size=32))


def head_of(items, head=EMPTY_HEAD):
    for item in items:
        head = next_head(head, item.origin_id, item.leaf)
    return head


def log(*ids):
    return tuple(Item.of(origin_id, f'{{"id":{origin_id}}}') for origin_id in ids)


def known(items, *, complete=True):
    return {item.origin_id: Known(item.leaf, complete) for item in items}


# --- the wire -----------------------------------------------------------------------------


@given(batches)
def test_batch_that_is_encoded_is_canonical_and_decodes_to_itself(batch):
    body = batch.encode()
    assert body == encode_canonical(json.loads(body))
    assert Batch.decode(decode(body)) == batch
    assert Batch.decode(decode_canonical(body)) == batch


@given(
    st.recursive(
        st.text() | st.integers(-(2**53) + 1, 2**53 - 1) | st.none() | st.booleans(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_fast_encoding_and_decoding_equal_the_plain_ones(value):
    body = encode_canonical(value)
    assert encode_decoded(value) == body
    try:
        expected = decode(body)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other gives the same
        with pytest.raises(type(error)):
            decode_canonical(body)
    else:
        assert decode_canonical(body) == expected
        assert decode_canonical(b" " + body) == expected


def test_cut_stops_at_a_thousand_items():
    assert len(cut(log(*range(1, MAX_ITEMS + 50)))) == MAX_ITEMS
    assert len(cut(log(*range(1, 50)), 10)) == 10
    assert cut([]) == ()


def test_cut_stops_before_the_encoded_batch_is_too_large():
    long = [
        Item.of(number, json.dumps({"é": "é" * 1_000}, ensure_ascii=False))
        for number in range(1, 900)
    ]
    chosen = cut(long)
    assert 400 < len(chosen) < 500
    assert MAX_BATCH_BYTES - 3_000 < len(Batch(0, chosen, LEAF).encode()) <= MAX_BATCH_BYTES


def test_cut_takes_one_item_of_any_size():
    (huge,) = cut([Item.of(1, json.dumps("x" * 2 * MAX_BATCH_BYTES))])
    assert huge.origin_id == 1


# --- the sender ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "cursor"),
    [
        (None, None),
        (Answer(taken=True, last_id=12), 12),
        # The peer had more than we knew.
        (Answer(taken=True, last_id=20), 20),
        # It was restored.
        (Answer(taken=False, last_id=3), 3),
        (Answer(taken=False, last_id=0), 0),
        # We were.
        (Answer(taken=True, last_id=21), Restored(21)),
        (Answer(taken=False, last_id=1_000), Restored(1_000)),
        # Nonsense: taken, and yet not there; refused, and yet there.
        (Answer(taken=True, last_id=11), None),
        (Answer(taken=False, last_id=10), None),
    ],
)
def test_cursor_goes_where_the_answer_says(answer, cursor):
    assert acknowledge(Batch(10, log(11, 12), None), answer, own_last_id=20) == cursor


# --- the receiver -------------------------------------------------------------------------


def test_batch_behind_what_is_held_is_new():
    batch = Batch(0, log(3, 7), head_of(log(3, 7)))
    planned = plan(0, EMPTY_HEAD, {}, batch)
    assert (planned.new, planned.last_id, planned.head) == ([*log(3, 7)], 7, batch.head)
    assert not planned.head_differs


def test_batch_behind_a_gap_is_refused():
    assert plan(2, EMPTY_HEAD, {}, Batch(3, log(4), None)) is None
    assert plan(3, EMPTY_HEAD, {}, Batch(3, log(4), None)) is not None


def test_batch_in_the_middle_of_what_is_held_changes_nothing():
    held = log(1, 2, 3)
    batch = Batch(0, held[:2], bytes(32))
    planned = plan(3, head_of(held), known(held), batch)
    assert planned.repeats == [*held[:2]]
    assert (planned.last_id, planned.head, planned.head_differs) == (3, head_of(held), False)


def test_items_are_told_apart_by_what_is_held():
    new, missing, refilled, repeat, forgotten, fork = log(9, 1, 2, 3, 4, 5)
    held = {
        **known([repeat]),
        **known([refilled, forgotten], complete=False),
        5: Known(LEAF, complete=True),
    }
    batch = Batch(0, (missing, refilled, repeat, Item(4, forgotten.leaf, None), fork, new), None)
    planned = plan(8, EMPTY_HEAD, held, batch)
    assert planned.new == [new]
    assert planned.missing == [missing]
    assert planned.refilled == [refilled]
    assert [item.origin_id for item in planned.repeats] == [3, 4]
    assert planned.forks == [fork]
    # Only what is new moves the chain.
    assert planned.head == head_of([new])


@given(items, st.data())
def test_log_sent_in_any_pieces_ends_with_the_same_head(log, data):
    """Pieces that overlap, are repeated or come too early: the chain is that of the log."""
    last_id, head, held = 0, EMPTY_HEAD, {}
    for _ in range(12):
        start = data.draw(st.integers(0, len(log)))
        end = data.draw(st.integers(start, len(log)))
        after = log[start - 1].origin_id if start else 0
        batch = Batch(after, log[start:end], head_of(log[:end]))
        planned = plan(last_id, head, held, batch)
        if planned is None:
            assert after > last_id
            continue
        assert (planned.head_differs, planned.forks, planned.missing) == (False, [], [])
        held |= known(batch.items)
        last_id, head = planned.last_id, planned.head
    assert head == head_of(item for item in log if item.origin_id <= last_id)


def test_head_that_differs_is_taken_over():
    planned = plan(0, EMPTY_HEAD, {}, Batch(0, log(1), LEAF))
    assert planned.head_differs
    assert planned.head == LEAF
    assert not plan(0, EMPTY_HEAD, {}, Batch(0, log(1), None)).head_differs


# --- comparing ----------------------------------------------------------------------------


def test_ranges_differ_where_either_side_has_another_or_none():
    theirs, ours = {0: "a", 1_000: "b", 3_000: "d"}, {0: "a", 1_000: "x", 2_000: "c"}
    assert differing(theirs, ours) == [1_000, 2_000, 3_000]
    assert differing(ours, ours) == []


def test_what_is_not_named_is_dropped_unless_it_is_younger():
    named = Named(0, 50, {1: LEAF, 2: LEAF})
    assert named.find_dropped([1, 2, 3, 50, 51]) == [3, 50]


def test_what_is_named_and_lacking_is_wanted():
    named = Named(0, 50, dict.fromkeys(range(1, 7), LEAF))
    held = {
        1: Known(LEAF, complete=True),
        2: Known(LEAF, complete=False),
        3: Known(bytes(32), complete=True),
        4: Known(bytes(32), complete=False),
    }
    # 3 and 4 are forks; 6 is still to come.
    assert named.find_wanted(5, held) == [2, 5]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Comparison, {"last_id": 1}),
        (Comparison, {"last_id": 1, "ranges": []}),
        (Comparison, {"last_id": 1, "ranges": {"1": "a"}}),
        (Comparison, {"last_id": 1, "ranges": {"x": "a"}}),
        (Comparison, {"last_id": 1, "ranges": {"-1000": "a"}}),
        (Comparison, {"last_id": 1, "ranges": {"9" * 5_000: "a"}}),
        (Comparison, {"last_id": 1, "ranges": {"0": 1}}),
        (Comparison, {"last_id": None, "ranges": {}}),
        (Named, {"first": 0, "last_id": 1}),
        (Named, {"first": 1, "last_id": 1, "live": []}),
        (Named, {"first": 0, "live": []}),
        (Named, {"first": 0, "last_id": 1, "live": [1]}),
        (Named, {"first": 0, "last_id": 1, "live": [{"id": 1}]}),
        (Named, {"first": 0, "last_id": 1, "live": [{"id": 1_000, "leaf": "A" * 43}]}),
    ],
    ids=str,
)
def test_what_is_no_comparison_is_refused(kind, body):
    with pytest.raises(InvalidParameter):
        kind.decode(body)
