"""Where the buckets lie: a table, Redis, or this process.

All three keep one promise. `spend` takes all charges or none, against every other process
that uses the same storage. `refund` gives back what was just spent. A storage that cannot be
written raises StorageUnavailable; it never answers as if nothing had been spent before.
The time comes from the caller; hosts whose clocks differ by seconds share buckets safely.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Protocol, cast

import redis
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from identity.clock import HOUR_MS
from identity.database import Database
from identity.errors import StorageUnavailable
from identity.limits.gcra import Charge, Decision, decide
from identity.limits.models import limits

# A full bucket is kept for an hour or two more, so that a host with a fast clock does not
# delete what others still count.
_KEEP_MS: Final = HOUR_MS
_PURGE_ROWS: Final = 10_000


class Storage(Protocol):
    """`charges`: 1 or more, with different keys."""

    def spend(self, now_ms: int, charges: Sequence[Charge]) -> Decision:
        """Raises: StorageUnavailable."""

    def refund(self, charges: Sequence[Charge]) -> None:
        """Raises: StorageUnavailable."""

    def purge_expired(self, now_ms: int) -> int:
        """Delete buckets that have long been full, a bounded number; how many there were.

        Raises: StorageUnavailable.
        """

    def close(self) -> None:
        """Let go of every connection."""


def _number(name: str) -> sa.BindParameter[int]:
    return sa.bindparam(name, type_=sa.BigInteger)


def _spend_statement(*, on_sqlite: bool) -> sa.Executable:
    """One row: TAT after the spend; or none, when it is refused."""
    insert = sqlite.insert(limits) if on_sqlite else postgresql.insert(limits)
    latest = sa.func.max if on_sqlite else sa.func.greatest
    first_us = _number("now_us") + _number("cost_us")
    next_us = latest(limits.c.tat_us, _number("now_us")) + _number("cost_us")
    return (
        insert.values(
            key=sa.bindparam("key"), tat_us=first_us, expires_at_ms=_expires_at_ms(first_us)
        )
        .on_conflict_do_update(
            index_elements=[limits.c.key],
            set_={"tat_us": next_us, "expires_at_ms": _expires_at_ms(next_us)},
            where=next_us <= _number("now_us") + _number("burst_us"),
        )
        .returning(limits.c.tat_us)
    )


def _expires_at_ms(tat_us: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    """The end of the hour of TAT, and `_KEEP_MS` more."""
    return (tat_us // (HOUR_MS * 1_000)) * HOUR_MS + (HOUR_MS + _KEEP_MS)


_FIND_TAT: Final = sa.select(limits.c.tat_us).where(limits.c.key == sa.bindparam("key"))
_REFUND_ONE: Final = (
    limits.update()
    .where(limits.c.key == sa.bindparam("key_spent"))
    .values(tat_us=limits.c.tat_us - _number("cost_us"))
)


class SqlStorage:
    """Buckets as rows of `limits`."""

    def __init__(self, database: Database) -> None:
        """`database`: with SQLite the one of `limits.db`, synchronous=NORMAL."""
        self._database = database
        self._spend_one = _spend_statement(on_sqlite=database.engine.dialect.name == "sqlite")

    def create_table(self) -> None:
        """For SQLite, whose file has no migrations; any number of processes may do it at once.

        Raises: StorageUnavailable.
        """

        def create(tx: sa.Connection) -> None:
            tx.execute(CreateTable(limits, if_not_exists=True))
            for index in limits.indexes:
                tx.execute(CreateIndex(index, if_not_exists=True))

        self._database.write(create)

    def spend(self, now_ms: int, charges: Sequence[Charge]) -> Decision:
        # A refusal needs no lock, so that one who asks without end holds up nobody.
        tats_us = self._database.read(lambda tx: _find_tats_us(tx, charges))
        decision = decide(charges, [tats_us.get(charge.key) for charge in charges], now_ms)
        if not decision.allowed:
            return decision
        return self._database.write(lambda tx: self._spend(tx, now_ms, charges))

    def _spend(self, tx: sa.Connection, now_ms: int, charges: Sequence[Charge]) -> Decision:
        now_us = now_ms * 1_000
        tats_us, waits_us = {}, {}
        # In the order of the keys, or two spends could each wait for the other's row.
        for charge in sorted(charges, key=lambda charge: charge.key):
            values = {
                "key": charge.key,
                "now_us": now_us,
                "cost_us": charge.cost_us,
                "burst_us": charge.burst_us,
            }
            tat_us = tx.execute(self._spend_one, values).scalar()
            if tat_us is None:
                # Locked by now, so this is what it refused for.
                tat_us = tx.execute(_FIND_TAT, {"key": charge.key}).scalar_one()
                waits_us[charge.key] = charge.wait_us(tat_us, now_us)
            tats_us[charge.key] = tat_us
        if waits_us:
            tx.rollback()
            return Decision((), tuple(waits_us.get(charge.key, 0) for charge in charges))
        return Decision(tuple(tats_us[charge.key] for charge in charges), (0,) * len(charges))

    def refund(self, charges: Sequence[Charge]) -> None:
        rows = [
            {"key_spent": charge.key, "cost_us": charge.cost_us}
            for charge in sorted(charges, key=lambda charge: charge.key)
        ]
        self._database.write(lambda tx: tx.execute(_REFUND_ONE, rows))

    def purge_expired(self, now_ms: int) -> int:
        # A row that somebody is spending from is passed over; it has just come to life again.
        expired = (
            sa.select(limits.c.key)
            .where(limits.c.expires_at_ms <= now_ms)
            .limit(_PURGE_ROWS)
            .with_for_update(skip_locked=True)
        )
        delete = limits.delete().where(limits.c.key.in_(expired))
        return self._database.write(lambda tx: tx.execute(delete).rowcount)

    def close(self) -> None:
        self._database.close()


def _find_tats_us(tx: sa.Connection, charges: Sequence[Charge]) -> dict[bytes, int]:
    keys = [charge.key for charge in charges]
    query = sa.select(limits.c.key, limits.c.tat_us).where(limits.c.key.in_(keys))
    return {bytes(key): tat_us for key, tat_us in tx.execute(query)}


# KEYS: the buckets. ARGV: now, how long to keep a full bucket (ms), then cost and burst of each.
# Times are in microseconds, below 2^53, which Lua's numbers hold exactly. The answer is TAT of
# each bucket before the spend; the caller decides from it again, by the same arithmetic.
_SPEND = """
local now, keep_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local before, after = {}, {}
local allowed = true
for i, key in ipairs(KEYS) do
  before[i] = tonumber(redis.call('GET', key) or '0')
  after[i] = math.max(before[i], now) + tonumber(ARGV[2 * i + 1])
  allowed = allowed and after[i] <= now + tonumber(ARGV[2 * i + 2])
end
if allowed then
  for i, key in ipairs(KEYS) do
    local live_ms = math.ceil((after[i] - now) / 1000) + keep_ms
    redis.call('SET', key, after[i], 'PX', live_ms)
  end
end
return before
"""

# A bucket that is gone needs no refund, and must not be made anew without an end.
_REFUND = """
for i, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 then redis.call('DECRBY', key, ARGV[i]) end
end
"""


class RedisStorage:
    """Buckets as keys that expire, in one Redis (or what stands for one: a sentinel, a proxy).

    It must keep what it was given: `maxmemory-policy noeviction`, and `appendonly yes` for
    limits that outlive its own restarts.
    """

    # What a request may wait for, twice at the worst: to connect, and for the answer.
    _TIMEOUT_SECONDS: Final = 0.5

    def __init__(self, url: str, *, prefix: str = "identity:limit:") -> None:
        """`url`: redis://, rediss:// or unix://. Nothing is connected to yet."""
        self._prefix = prefix.encode()
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=self._TIMEOUT_SECONDS,
            socket_connect_timeout=self._TIMEOUT_SECONDS,
        )
        self._spend = self._client.register_script(_SPEND)
        self._refund = self._client.register_script(_REFUND)

    def spend(self, now_ms: int, charges: Sequence[Charge]) -> Decision:
        arguments = [now_ms * 1_000, _KEEP_MS]
        for charge in charges:
            arguments += [charge.cost_us, charge.burst_us]
        try:
            tats_us = self._spend(keys=self._keys(charges), args=arguments)
        except redis.RedisError as error:
            raise StorageUnavailable from error
        return decide(charges, cast("list[int]", tats_us), now_ms)

    def refund(self, charges: Sequence[Charge]) -> None:
        try:
            self._refund(keys=self._keys(charges), args=[charge.cost_us for charge in charges])
        except redis.RedisError as error:
            raise StorageUnavailable from error

    def purge_expired(self, now_ms: int) -> int:  # noqa: ARG002 - Redis does it by its own clock
        return 0

    def close(self) -> None:
        self._client.close()

    def _keys(self, charges: Sequence[Charge]) -> list[bytes]:
        return [self._prefix + charge.key for charge in charges]


class MemoryStorage:
    """Buckets of this process alone, for limits that fail open while their storage is away.

    Bounded: beyond `max_buckets` the one that was used longest ago is forgotten.
    """

    def __init__(self, max_buckets: int = 100_000) -> None:
        self._max_buckets = max_buckets
        self._tats_us: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    def spend(self, now_ms: int, charges: Sequence[Charge]) -> Decision:
        with self._lock:
            decision = decide(charges, [self._tats_us.get(c.key) for c in charges], now_ms)
            for charge, tat_us in zip(charges, decision.tats_us, strict=False):
                self._tats_us[charge.key] = tat_us
                self._tats_us.move_to_end(charge.key)
            while len(self._tats_us) > self._max_buckets:
                self._tats_us.popitem(last=False)
            return decision

    def refund(self, charges: Sequence[Charge]) -> None:
        with self._lock:
            for charge in charges:
                if charge.key in self._tats_us:
                    self._tats_us[charge.key] -= charge.cost_us

    def purge_expired(self, now_ms: int) -> int:
        with self._lock:
            full = [key for key, tat_us in self._tats_us.items() if tat_us <= now_ms * 1_000]
            for key in full:
                del self._tats_us[key]
            return len(full)

    def close(self) -> None:
        self._tats_us.clear()
