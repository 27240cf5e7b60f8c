"""Rate limits in SQLite, PostgreSQL and Redis: one set of promises, kept by all three."""

import json
import re
import secrets
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from identity.clock import DAY_MS, HOUR_MS, MINUTE_MS
from identity.errors import LimitExceeded, StorageUnavailable
from identity.limits.catalogue import CATALOGUE, with_overrides
from identity.limits.gcra import Rate
from identity.limits.models import limits as limits_table
from identity.limits.service import Limiter
from identity.limits.store import MemoryStorage, RedisStorage

NOW_MS = 1_800_000_000_000
HOURLY = Rate(5, HOUR_MS)
DAILY = Rate(10, DAY_MS)


def bucket():
    return secrets.token_bytes(32)


def spend_until_refused(storage, charge, now_ms=NOW_MS):
    """How many spends were allowed."""
    for allowed in range(50):
        if not storage.spend(now_ms, [charge]).allowed:
            return allowed
    raise AssertionError("there is no limit")


@pytest.mark.requirement("GEN-15")
def test_storage_allows_exactly_the_burst_and_says_when_more(storage):
    charge = HOURLY.charge(bucket(), 1)
    assert spend_until_refused(storage, charge) == 5
    wait_ms = storage.spend(NOW_MS, [charge]).retry_after_ms
    assert wait_ms == HOUR_MS // 5
    assert not storage.spend(NOW_MS + wait_ms - 1, [charge]).allowed
    assert storage.spend(NOW_MS + wait_ms, [charge]).allowed


def test_storage_spends_all_charges_or_none(storage):
    hourly, daily, other = HOURLY.charge(bucket(), 5), DAILY.charge(bucket(), 1), bucket()
    assert storage.spend(NOW_MS, [hourly, daily]).allowed
    decision = storage.spend(NOW_MS, [HOURLY.charge(other, 1), hourly, daily])
    assert decision.waits_us == (0, HOUR_MS * 1_000, 0)
    assert decision.tats_us == ()
    # The two that would have passed are as they were: untouched, and with one permit spent.
    assert spend_until_refused(storage, HOURLY.charge(other, 1)) == 5
    assert spend_until_refused(storage, daily) == 9


def test_storage_answers_for_each_charge_in_the_order_given(storage):
    keys = sorted([bucket(), bucket(), bucket()], reverse=True)
    charges = [DAILY.charge(key, permits) for key, permits in zip(keys, (1, 2, 3), strict=True)]
    now_us = NOW_MS * 1_000
    spent = storage.spend(NOW_MS, charges)
    assert spent.tats_us == tuple(now_us + charge.cost_us for charge in charges)
    more = [DAILY.charge(key, permits) for key, permits in zip(keys, (10, 1, 8), strict=True)]
    interval_us = DAILY.interval_us
    assert storage.spend(NOW_MS, more).waits_us == (interval_us, 0, interval_us)


def test_storage_that_is_opened_again_has_kept_what_was_spent(place):
    charge = HOURLY.charge(bucket(), 1)
    assert spend_until_refused(place.open(), charge) == 5
    assert spend_until_refused(place.open(), charge) == 0


@pytest.mark.parametrize("skew_ms", [-7_000, 7_000])
def test_storage_shared_by_hosts_whose_clocks_differ_gives_no_more_than_the_difference(
    storage, skew_ms
):
    charge = Rate(60, MINUTE_MS).charge(bucket(), 1)
    allowed = 0
    for _ in range(100):
        for now_ms in (NOW_MS, NOW_MS + skew_ms):
            allowed += storage.spend(now_ms, [charge]).allowed
    assert 60 <= allowed <= 60 + abs(skew_ms) // 1_000
    # The host that is behind is told to wait longer, but not for ever.
    assert storage.spend(NOW_MS - 7_000, [charge]).retry_after_ms <= 15_000


def test_storage_whose_clock_goes_back_forgets_nothing(storage):
    charge = HOURLY.charge(bucket(), 1)
    assert spend_until_refused(storage, charge) == 5
    for back_ms in (1, DAY_MS, 400 * DAY_MS):
        assert not storage.spend(NOW_MS - back_ms, [charge]).allowed


def test_refund_gives_back_exactly_what_was_spent(storage):
    charge, other = HOURLY.charge(bucket(), 1), DAILY.charge(bucket(), 1)
    assert spend_until_refused(storage, charge) == 5
    storage.refund([charge, other])
    assert spend_until_refused(storage, charge) == 1
    assert spend_until_refused(storage, other) == 10


@pytest.mark.parametrize("place", ["sqlite", "postgresql"], indirect=True)
def test_refusal_waits_for_nobody_and_holds_up_nobody(place, storage):
    charge = HOURLY.charge(bucket(), 1)
    assert spend_until_refused(storage, charge) == 5

    def refused_meanwhile(tx):
        tx.execute(limits_table.update().values(expires_at_ms=limits_table.c.expires_at_ms))
        return not place.open().spend(NOW_MS, [charge]).allowed

    assert place.database().write(refused_meanwhile)


def test_spends_with_the_same_buckets_in_any_order_do_not_wait_for_each_other(storage):
    """Two transactions that take two rows in opposite orders would be a deadlock."""
    charges = [Rate(1_000, HOUR_MS).charge(bucket(), 1) for _ in range(4)]
    orders = [charges, charges[::-1], charges[2:] + charges[:2]] * 20
    with ThreadPoolExecutor(3) as threads:
        decisions = list(threads.map(lambda order: storage.spend(NOW_MS, order), orders))
    assert all(decision.allowed for decision in decisions)
    assert storage.spend(NOW_MS, charges).tats_us == tuple(
        NOW_MS * 1_000 + 61 * charge.cost_us for charge in charges
    )


def in_eight_processes(place, what, rates, *, tries):
    """The permits given to each of eight processes that spend at the same time."""
    program = Path(__file__).with_name("spender.py")
    arguments = [what, place.kind, place.url, place.prefix, rates, str(tries)]
    done = subprocess.run(
        [sys.executable, program, *arguments], stdout=subprocess.PIPE, timeout=60, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.requirement("MAIL-12")
def test_limit_shared_by_eight_processes_is_spent_exactly(place):
    """Threat 52: a limit is not multiplied by the number of workers."""
    given = in_eight_processes(place, "spend", "100/d", tries=40)
    assert sum(given) == 100


@pytest.mark.requirement("LOOK-13")
def test_lookup_budget_shared_by_eight_processes_is_never_exceeded(place):
    """Threat 52 again, where each process answers from leases it holds."""
    given = in_eight_processes(place, "lookup", "1000/d", tries=60)
    # What is missing lies in leases that the last requests were too large for.
    assert 1_000 - 8 * 10 <= sum(given) <= 1_000


@pytest.mark.parametrize("place", ["sqlite", "postgresql"], indirect=True)
def test_expired_buckets_are_purged_and_live_ones_kept(storage):
    old, live = HOURLY.charge(bucket(), 5), DAILY.charge(bucket(), 10)
    storage.spend(NOW_MS, [old, live])
    # A full bucket stays for another hour at the least, for hosts whose clock is behind.
    assert storage.purge_expired(NOW_MS + 2 * HOUR_MS - 1) == 0
    assert storage.purge_expired(NOW_MS + 3 * HOUR_MS) == 1
    assert storage.purge_expired(NOW_MS + 3 * HOUR_MS) == 0
    assert not storage.spend(NOW_MS + HOUR_MS, [live]).allowed


@pytest.mark.parametrize("place", ["sqlite", "postgresql"], indirect=True)
def test_bucket_spent_again_is_kept_longer(storage):
    charge = DAILY.charge(bucket(), 1)
    storage.spend(NOW_MS, [charge])
    storage.spend(NOW_MS, [DAILY.charge(charge.key, 9)])
    assert storage.purge_expired(NOW_MS + 20 * HOUR_MS) == 0
    assert storage.purge_expired(NOW_MS + 26 * HOUR_MS) == 1


def test_redis_keys_expire_after_their_bucket_is_full(own_redis):
    storage = RedisStorage(own_redis.url, prefix="p:")
    charge = HOURLY.charge(bucket(), 1)
    storage.spend(NOW_MS, [charge])
    storage.refund([charge])
    with redis.Redis.from_url(own_redis.url) as client:
        live_ms = client.pttl(b"p:" + charge.key)
    assert HOUR_MS < live_ms <= HOUR_MS + HOUR_MS // 5


def test_refund_of_a_bucket_that_is_gone_leaves_no_key_without_an_end(own_redis):
    RedisStorage(own_redis.url, prefix="p:").refund([HOURLY.charge(bucket(), 1)])
    with redis.Redis.from_url(own_redis.url) as client:
        assert client.keys() == []


def test_stored_buckets_name_nobody(place, storage, clock, keys):
    limiter = Limiter(with_overrides({}), storage, clock, keys)
    limiter.spend(("email_recipient", "canary@example.org"), ("register_ip", "192.0.2.77"))
    if place.kind == "redis":
        with redis.Redis.from_url(place.url) as client:
            stored = b"".join(client.scan_iter(match=place.prefix + "*"))
    else:
        with place.database().engine.connect() as connection:
            stored = b"".join(connection.scalars(sa.select(limits_table.c.key)))
    assert len(stored) >= 3 * 32
    assert b"canary" not in stored
    assert b"192.0.2" not in stored


# --- by name ------------------------------------------------------------------------


@pytest.mark.requirement("MAIL-12")
def test_recipient_asked_for_by_a_thousand_accounts_gets_no_more_than_its_limit(
    storage, clock, keys
):
    """Threat 26, with both rates of the limit: 5 at once, 10 within hours."""
    limiter = Limiter(with_overrides({}), storage, clock, keys)
    sent = {0: 0, 5: 0}
    for hours in sent:
        clock.time_ms = NOW_MS + hours * HOUR_MS
        for number in range(100):
            try:
                limiter.spend(("email_recipient", "a@example.org"), ("email_account", f"@{number}"))
            except LimitExceeded as error:
                retry_after_ms = error.retry_after_ms
            else:
                sent[hours] += 1
    assert sent == {0: 5, 5: 5}
    assert retry_after_ms == HOUR_MS // 5
    # What was refused for the recipient's sake was not charged to the accounts.
    for _ in range(10):
        limiter.spend(("email_account", "@99"))


@pytest.mark.requirement("GEN-15")
def test_limit_that_is_refused_passes_after_retry_after_and_not_before(storage, clock, keys):
    limiter = Limiter(with_overrides({}), storage, clock, keys)
    for _ in range(20):
        limiter.spend(("wrong_tokens_account", "@a:x"))
    with pytest.raises(LimitExceeded) as refused:
        limiter.spend(("wrong_tokens_account", "@a:x"))
    clock.time_ms += refused.value.retry_after_ms - 1
    with pytest.raises(LimitExceeded):
        limiter.spend(("wrong_tokens_account", "@a:x"))
    clock.time_ms += 1
    limiter.spend(("wrong_tokens_account", "@a:x"))


def test_successes_that_are_refunded_do_not_use_up_a_limit_of_failures(storage, clock, keys):
    limiter = Limiter(with_overrides({}), storage, clock, keys)
    subject = ("wrong_tokens_account", "@a:x")
    for _ in range(30):
        limiter.spend(subject)
        limiter.refund(subject)
    for _ in range(20):
        limiter.spend(subject)
    with pytest.raises(LimitExceeded):
        limiter.spend(subject)


def test_limit_says_which_permit_was_the_last(storage, clock, keys):
    limiter = Limiter(with_overrides({}), storage, clock, keys)
    subject = ("wrong_tokens_account", "@a:x")
    assert [limiter.uses_up(subject) for _ in range(22)] == [False] * 19 + [True] * 3
    clock.time_ms += DAY_MS // 10
    assert [limiter.uses_up(subject) for _ in range(2)] == [False, True]
    off = Limiter(with_overrides({}), storage, clock, keys, enabled=False)
    assert not off.uses_up(subject)


def test_limit_whose_count_is_changed_goes_on_with_what_was_spent(storage, clock, keys):
    before = Limiter(with_overrides({"email_account": (DAILY,)}), storage, clock, keys)
    for _ in range(10):
        before.spend(("email_account", "@a:x"))
    after = Limiter(with_overrides({"email_account": (Rate(5, DAY_MS),)}), storage, clock, keys)
    with pytest.raises(LimitExceeded):
        after.spend(("email_account", "@a:x"))


def test_limits_of_one_subject_under_two_names_are_apart(clock, keys):
    limiter = Limiter(with_overrides({}), MemoryStorage(), clock, keys)
    for _ in range(10):
        limiter.spend(("email_account", "@a:x"))
    limiter.spend(("wrong_tokens_account", "@a:x"), ("email_account", "@b:x"))
    limiter.spend(("wrong_tokens_homeserver", "@a:x"))


def test_limiter_that_is_disabled_lets_everything_pass_and_touches_no_storage(
    open_unwritable, clock, keys
):
    limiter = Limiter(with_overrides({}), open_unwritable("sqlite"), clock, keys, enabled=False)
    for _ in range(100):
        limiter.spend(("email_recipient", "a@example.org"))
        limiter.refund(("email_recipient", "a@example.org"))


def test_limiter_asked_for_an_unknown_name_fails_loudly(clock, keys):
    with pytest.raises(KeyError):
        Limiter(with_overrides({}), MemoryStorage(), clock, keys).spend(("email", "x"))


# --- storage that is away -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "redis"])
def test_storage_that_is_away_refuses_mail_and_registration(open_unwritable, kind, clock, keys):
    """Threat 53: no storage, no sending."""
    limiter = Limiter(with_overrides({}), open_unwritable(kind), clock, keys)
    for name in ("email_recipient", "wrong_tokens_account", "register_ip", "userinfo_host"):
        with pytest.raises(StorageUnavailable):
            limiter.spend((name, "x"))
    with pytest.raises(StorageUnavailable):
        limiter.spend(("hash_details_account", "x"), ("register_ip", "x"))
    limiter.refund(("wrong_tokens_account", "x"))


def test_storage_that_is_away_leaves_lookups_a_limit_of_this_process(open_unwritable, clock, keys):
    limiter = Limiter(with_overrides({}), open_unwritable("redis"), clock, keys)
    for _ in range(60):
        limiter.spend(("hash_details_account", "@a:x"))
    with pytest.raises(LimitExceeded) as refused:
        limiter.spend(("hash_details_account", "@a:x"))
    assert refused.value.retry_after_ms == MINUTE_MS


def test_redis_that_is_killed_and_started_again_refuses_meanwhile_and_forgets_nothing(
    own_redis, clock, keys
):
    """E24: 0 over the limit, back within 5 seconds."""
    limiter = Limiter(with_overrides({}), RedisStorage(own_redis.url), clock, keys)
    for _ in range(8):
        limiter.spend(("email_account", "@a:x"))
    own_redis.kill()
    for _ in range(20):
        with pytest.raises(StorageUnavailable):
            limiter.spend(("email_account", "@a:x"))
    limiter.spend(("hash_details_account", "@a:x"))
    own_redis.start()
    for _ in range(2):
        limiter.spend(("email_account", "@a:x"))
    with pytest.raises(LimitExceeded):
        limiter.spend(("email_account", "@a:x"))


def test_redis_started_again_unnoticed_is_asked_again_over_a_new_connection(own_redis, clock, keys):
    limiter = Limiter(with_overrides({}), RedisStorage(own_redis.url), clock, keys)
    limiter.spend(("email_account", "@a:x"))
    own_redis.kill()
    own_redis.start()
    limiter.spend(("email_account", "@a:x"))


def test_redis_that_lost_its_scripts_is_taught_again(own_redis, clock, keys):
    limiter = Limiter(with_overrides({}), RedisStorage(own_redis.url), clock, keys)
    limiter.spend(("email_account", "@a:x"))
    with redis.Redis.from_url(own_redis.url) as client:
        client.script_flush()
    limiter.spend(("email_account", "@a:x"))


def test_redis_that_is_full_refuses(own_redis, clock, keys):
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", 1)
    limiter = Limiter(with_overrides({}), RedisStorage(own_redis.url), clock, keys)
    with pytest.raises(StorageUnavailable):
        limiter.spend(("email_account", "@a:x"))


def test_redis_that_never_answers_holds_nobody_up(clock, keys):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        storage = RedisStorage(f"redis://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(StorageUnavailable):
            storage.spend(NOW_MS, [HOURLY.charge(bucket(), 1)])
        assert time.monotonic() - started < 1


def test_limiter_of_this_process_is_bounded_and_forgets_the_oldest():
    storage = MemoryStorage(max_buckets=3)
    charges = [HOURLY.charge(bucket(), 5) for _ in range(4)]
    for charge in charges:
        assert storage.spend(NOW_MS, [charge]).allowed
    assert [storage.spend(NOW_MS, [charge]).allowed for charge in charges[1:]] == [False] * 3
    assert storage.spend(NOW_MS, charges[:1]).allowed
    assert storage.purge_expired(NOW_MS + HOUR_MS) == 3


def test_page_of_limits_lists_the_catalogue():
    page = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \| `([^`]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE
    )
    assert rows == [
        (
            name,
            limit.default,
            limit.per,
            limit.protects,
            "counted per process" if limit.fails_open else "refused",
        )
        for name, limit in CATALOGUE.items()
    ]
