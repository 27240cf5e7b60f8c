"""The rule by which one statement of many counts: a last-writer-wins register."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.associations.statement import (
    VALIDITY_MS,
    Logged,
    Statement,
    encode_signed,
    newest,
)
from identity.mxid import UserId
from identity.signing import SigningKey
from identity.strict_json import MAX_INTEGER
from identity.threepid import ThreePid

NOW_MS = 1_800_000_000_000
ALICE, BOB = UserId.parse("@alice:hs.test"), UserId.parse("@bob:hs.test")
EMAIL = ThreePid.email("alice@example.com")
PHONE = ThreePid.msisdn("18005552067")
KEY = SigningKey.from_seed("ed25519:0", bytes(32))


def logged(ts_ms, origin="a.test", origin_id=1, mxid=ALICE, threepid=EMAIL):
    validity = (None, None) if mxid is None else (ts_ms, ts_ms + VALIDITY_MS)
    statement = Statement(threepid, mxid, ts_ms, *validity)
    return Logged(origin, origin_id, statement, encode_signed(statement.to_json()))


# Few values, so that ties are common. An origin uses an id once, with one content.
entries = st.lists(
    st.builds(
        logged,
        ts_ms=st.integers(1, 3),
        origin=st.sampled_from(["a.test", "B.test", "b.test", "ä.test"]),
        origin_id=st.integers(1, 6),
        mxid=st.sampled_from([ALICE, BOB, None]),
        threepid=st.sampled_from([EMAIL, PHONE]),
    ),
    max_size=12,
    unique_by=lambda entry: (entry.origin, entry.origin_id),
)


def received(batches):
    """The view of a server that gets the statements in these batches."""
    view = {}
    for batch in batches:
        view = newest([*view.values(), *batch])
    return view


@given(entries, st.randoms(use_true_random=False), st.integers(1, 5))
def test_winners_depend_on_neither_order_nor_repetition_nor_batches(log, random, size):
    again = [*log, *random.choices(log, k=len(log))] if log else []
    random.shuffle(again)
    batches = [again[start : start + size] for start in range(0, len(again), size)]
    assert received(batches) == newest(log)


@given(entries)
def test_winner_is_newer_than_every_other_statement_about_the_3pid(log):
    winners = newest(log)
    assert winners.keys() == {entry.statement.threepid for entry in log}
    for entry in log:
        winner = winners[entry.statement.threepid]
        assert winner is entry or winner.version > entry.version


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (logged(1), logged(2)),
        (logged(2, origin="z.test", origin_id=9), logged(3, origin="a.test", origin_id=1)),
        # At the same time the origin decides, compared by code point, then the id.
        (logged(1, origin="a.test"), logged(1, origin="b.test")),
        (logged(1, origin="B.test"), logged(1, origin="a.test")),
        (logged(1, origin="z.test"), logged(1, origin="ä.test")),
        (logged(1, origin_id=9), logged(1, origin_id=10)),
        # Whether it binds or revokes makes no difference.
        (logged(1), logged(2, mxid=None)),
        (logged(1, mxid=None), logged(2)),
    ],
)
def test_newer_statement_counts(older, newer):
    for log in ([older, newer], [newer, older], [newer, older, newer, older]):
        assert newest(log) == {EMAIL: newer}


@pytest.mark.requirement("TPID-03")
def test_statements_about_one_address_meet_however_it_was_typed():
    older = logged(1, threepid=ThreePid.email("strauß@example.com"))
    newer = logged(2, threepid=ThreePid.email("strauss@example.com"), origin_id=2)
    assert list(newest([older, newer]).values()) == [newer]


@given(st.integers(0, MAX_INTEGER // 2), st.none() | st.integers(0, MAX_INTEGER // 2))
def test_statement_is_newer_than_the_current_winner_whatever_the_clock_says(now_ms, newest_ts_ms):
    made = Statement.make(EMAIL, ALICE, now_ms, newest_ts_ms)
    assert made.ts_ms >= now_ms
    assert newest_ts_ms is None or made.ts_ms > newest_ts_ms
    # No later than it must be, and valid from now on for a hundred years.
    assert made.ts_ms in (now_ms, (newest_ts_ms or 0) + 1)
    assert made.not_before_ms == min(now_ms, made.ts_ms)
    assert made.not_after_ms == made.ts_ms + 3_153_600_000_000


def test_revocation_has_three_nulls():
    revoked = Statement.make(PHONE, None, NOW_MS, None)
    assert revoked.to_json() == {
        "address": "18005552067",
        "medium": "msisdn",
        "mxid": None,
        "not_after": None,
        "not_before": None,
        "ts": NOW_MS,
    }


@given(entries)
def test_statement_survives_the_journey_through_the_log(log):
    for entry in log:
        signed = KEY.sign(entry.statement.to_json(), entry.origin)
        text = encode_signed(signed)
        loaded = Logged.load(entry.origin, entry.origin_id, text, None)
        assert loaded.statement == entry.statement
        assert loaded.signed == text == encode_signed(json.loads(text))
        assert loaded.version == entry.version


@pytest.mark.requirement("TPID-03")
def test_lowered_form_survives_beside_the_signed_text():
    typed = ThreePid.email("Strauß@example.com")
    entry = logged(1, threepid=typed)
    assert "strauß" not in entry.signed
    loaded = Logged.load("a.test", 1, entry.signed, typed.lowered)
    assert loaded.statement.threepid.lowered == "strauß@example.com"
