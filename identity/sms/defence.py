"""Use cases of the defence against fraud with text messages: each message is admitted first.

`admit` is asked before anything is stored or sent. It spends from the limits of
`identity.limits.catalogue`, then counts the message: for the daily cap, which holds strictly, and
for the breakers, which pause what nobody proves. Cap, breakers and what an operator paused hold
even where rate limits are off. All of it is shared by every process; a storage that is away lets no
message through.

What is admitted stays counted until it is withdrawn. So a process that dies half way costs one
message of the cap, and nothing is sent that was not counted.

Who owns the transactions: each method its own, so none is called within another one.
Source: security.md, threats 8, 24, 25 and 53.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from identity.accounts import store as accounts_store
from identity.accounts.caller import Caller
from identity.clock import DAY_MS, HOUR_MS, Clock
from identity.config import Config
from identity.database import PURGE_ROWS, Conflict, Database, Transaction
from identity.errors import IdentityError, StorageUnavailable
from identity.limits.service import Limiter, Subject
from identity.limits.subjects import ip_subjects
from identity.mxid import UserId
from identity.sms import store
from identity.sms.report import Status
from identity.sms.traffic import (
    ALARM,
    BLOCK_WINDOW,
    COUNTRY_WINDOW,
    NEVER_MS,
    SERVER,
    Traffic,
    block_of,
    block_scope,
    calling_code_of,
    code_scope,
    country_name_of,
    country_scope,
    day_cap,
    day_of,
    find_refusal,
    share_of,
)
from identity.threepid import Country, ThreePid

log = structlog.get_logger(__name__)

# Homeservers that have been here for less share with each other.
KNOWN_AFTER_MS: Final = 30 * DAY_MS
ALARM_MS: Final = HOUR_MS
# Counts that nobody touched for so long say nothing about today.
_KEPT_DAYS: Final = 30
_MAX_LISTED_BLOCKS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Admission:
    """One message that may be sent.

    `scopes`: block, country and server, for which it is counted; `day`: the UTC day in which.
    """

    subjects: tuple[Subject, ...]
    scopes: tuple[str, str, str]
    day: int


class Defence:
    """Decides which text messages may be sent. Threads may share it."""

    def __init__(self, database: Database, limiter: Limiter, config: Config, clock: Clock) -> None:
        self._database = database
        self._limiter = limiter
        self._clock = clock
        self._day_cap = day_cap(config.sms.daily_limit, config.sms.price, config.sms.spend_per_day)
        self._listed = frozenset(name.host for name in config.federation.allowed_homeservers)

    def admit(self, caller: Caller, number: ThreePid) -> Admission:
        """Before anything is stored or sent. End it with `sent`, or with `withdraw`.

        Raises: InvalidPhoneNumber for digits of no country; DestinationRejected for what is
        paused; LimitExceeded; StorageUnavailable. Nothing is spent then.
        """
        country = Country.of(number)
        now_ms = self._clock.now_ms()

        def look(tx: Transaction) -> tuple[bool, tuple[str, str, str], dict[str, Traffic]]:
            is_known = self._is_known(tx, caller.user_id, now_ms)
            scopes = (*self._scopes(number, country, is_known=is_known), SERVER)
            asked = (*scopes, code_scope(country.calling_code), ALARM)
            counted = store.find_traffic(tx, asked)
            return is_known, scopes, {name: counted.get(name) or Traffic(name) for name in asked}

        is_known, scopes, traffic = self._database.read(look)
        server, alarm = traffic.pop(SERVER).today(now_ms), traffic.pop(ALARM)
        # Asked here already, so that what is paused costs nobody a permit, and writes nothing.
        if refusal := find_refusal(traffic.values(), server, self._day_cap, now_ms):
            raise refusal
        is_alarm = alarm.is_paused(now_ms)
        subjects = _subjects(caller, number, country, is_known=is_known, is_alarm=is_alarm)
        self._limiter.spend(*subjects)
        try:
            self._count(scopes, now_ms)
        except Exception:
            self._limiter.refund(*subjects)
            raise
        return Admission(subjects, scopes, day_of(now_ms))

    def withdraw(self, admission: Admission) -> None:
        """Nothing was sent: give back what it cost. Never fails: at worst it stays spent."""
        self._limiter.refund(*admission.subjects)

        def give_back(tx: Transaction) -> None:
            held = store.lock_traffic(tx, admission.scopes)
            less = [traffic.with_one_less(admission.day) for traffic in held.values()]
            if less:
                store.update_traffic(tx, less)

        try:
            self._database.write(give_back)
        except StorageUnavailable:
            log.warning("sms_withdrawal_lost")

    def sent(self, admission: Admission) -> None:
        """A provider took a message with a code: it is expected to come back.

        Not for invitations, which prove nothing. Never fails: at worst it is not judged by.
        """
        try:
            self._database.write(lambda tx: store.count_sent(tx, admission.scopes[:2]))
        except StorageUnavailable:
            log.warning("sms_count_lost", what="sent")

    def converted(self, number: ThreePid, owner: UserId | None) -> None:
        """A code was proved that `owner` had sent; to be told once for each session.

        Never fails: at worst it is not counted.
        """
        country, now_ms = Country.of(number), self._clock.now_ms()

        def count(tx: Transaction) -> None:
            is_known = self._is_known(tx, owner, now_ms)
            store.count_converted(tx, self._scopes(number, country, is_known=is_known))

        try:
            self._database.write(count)
        except StorageUnavailable:
            log.warning("sms_count_lost", what="converted")

    def failed_code(self) -> None:
        """A wrong code was submitted. Too many of them, whoever submits them, slow down sending.

        Raises: StorageUnavailable.
        """
        if not self._limiter.uses_up(("wrong_codes_global", "")):
            return
        now_ms = self._clock.now_ms()

        def ring(tx: Transaction) -> bool:
            (alarm,) = _lock_or_insert(tx, [ALARM], now_ms)
            if alarm.is_paused(now_ms):
                return False
            until_ms = now_ms + ALARM_MS
            store.update_traffic(tx, [replace(alarm, day=day_of(now_ms), paused_until_ms=until_ms)])
            return True

        if self._database.write(ring):
            log.warning("sms_alarm", reason="too many wrong codes", minutes=ALARM_MS // 60_000)

    def pause(self, calling_code: str) -> None:
        """Nothing is sent to a calling code until it is resumed. Raises: InvalidPhoneNumber."""
        Country.sharing(calling_code)
        now_ms = self._clock.now_ms()

        def work(tx: Transaction) -> None:
            paused = _lock_or_insert(tx, [code_scope(calling_code)], now_ms)
            store.update_traffic(tx, [replace(row, paused_until_ms=NEVER_MS) for row in paused])

        self._database.write(work)

    def resume(self, calling_code: str) -> None:
        """Whoever paused it: the operator, or a breaker. Raises: InvalidPhoneNumber."""
        countries = [country.name for country in Country.sharing(calling_code)]

        def work(tx: Transaction) -> None:
            store.delete_traffic(tx, code_scope(calling_code))
            store.lift_pauses(tx, countries)

        self._database.write(work)

    def status(self) -> Status:
        """Counts of countries where anything was sent in the last 30 days."""
        now_ms = self._clock.now_ms()

        def look(tx: Transaction) -> tuple[dict[str, Traffic], list[Traffic]]:
            return store.traffic_but_blocks(tx), store.paused_blocks(tx, now_ms, _MAX_LISTED_BLOCKS)

        traffic, blocks = self._database.read(look)
        server = traffic.pop(SERVER, Traffic(SERVER)).today(now_ms)
        alarm = traffic.pop(ALARM, Traffic(ALARM))
        codes = [calling_code_of(scope) for scope in traffic]
        return Status(
            server=server,
            day_cap=self._day_cap,
            alarm_until_ms=alarm.paused_until_ms if alarm.is_paused(now_ms) else None,
            countries=[row.today(now_ms) for scope, row in traffic.items() if share_of(scope)],
            paused_blocks=Counter(country_name_of(block.scope) for block in blocks),
            paused_codes=[code for code in codes if code is not None],
        )

    def purge(self) -> int:
        """Forget old counts, at most PURGE_ROWS; returns how many."""
        now_ms = self._clock.now_ms()
        return self._database.write(
            lambda tx: store.delete_old_traffic(
                tx, before_day=day_of(now_ms) - _KEPT_DAYS, now_ms=now_ms, limit=PURGE_ROWS
            )
        )

    def _count(self, scopes: tuple[str, str, str], now_ms: int) -> None:
        """Judge what is full, then count one more, or raise why not."""

        def work(tx: Transaction) -> tuple[IdentityError | None, bool, list[Traffic]]:
            of_block, of_country, server = _lock_or_insert(tx, scopes, now_ms)
            judged = {
                of_block: of_block.judged(BLOCK_WINDOW, now_ms),
                of_country: of_country.judged(COUNTRY_WINDOW, now_ms),
            }
            server = server.today(now_ms)
            refusal = find_refusal(judged.values(), server, self._day_cap, now_ms)
            after = [*judged.values(), server]
            if refusal is None:
                after = [row.with_one_more(now_ms) for row in after]
            store.update_traffic(tx, after)
            is_last = refusal is None and after[-1].day_admitted == self._day_cap
            return (
                refusal,
                is_last,
                [
                    before
                    for before, row in judged.items()
                    if row.is_paused(now_ms) and not before.is_paused(now_ms)
                ],
            )

        refusal, is_last, tripped = self._database.write(work)
        if is_last:
            log.warning("sms_daily_cap_reached", messages=self._day_cap)
        for row in tripped:
            log.warning(
                "sms_paused",
                country=country_name_of(row.scope),
                share=share_of(row.scope) or "one block",
                codes_sent=row.sent,
                codes_proved=row.converted,
            )
        if refusal is not None:
            raise refusal

    def _scopes(self, number: ThreePid, country: Country, *, is_known: bool) -> tuple[str, str]:
        block = self._database.keys.keyed_hash("sms block", block_of(number))
        return block_scope(country, block), country_scope(country, is_known=is_known)

    def _is_known(self, tx: Transaction, user_id: UserId | None, now_ms: int) -> bool:
        """Whether that account's homeserver has the share of those that are known."""
        if user_id is None:
            return False
        host = user_id.server.host
        if host in self._listed:
            return True
        first_seen_at_ms = accounts_store.find_first_seen_at_ms(tx, host)
        return first_seen_at_ms is not None and now_ms - first_seen_at_ms >= KNOWN_AFTER_MS


def _lock_or_insert(tx: Transaction, scopes: Sequence[str], now_ms: int) -> list[Traffic]:
    """The rows of `scopes`, in their order, locked; those that were missing are new."""
    held = store.lock_traffic(tx, scopes)
    for scope in sorted(scopes, key=len):
        if scope not in held:
            held[scope] = Traffic(scope, day=day_of(now_ms))
            if not store.insert_traffic(tx, held[scope]):
                raise Conflict
    return [held[scope] for scope in scopes]


def _subjects(
    caller: Caller, number: ThreePid, country: Country, *, is_known: bool, is_alarm: bool
) -> tuple[Subject, ...]:
    user_id = caller.user_id
    of_account = (
        ()
        if user_id is None
        else (("sms_account", str(user_id)), ("sms_homeserver", user_id.server.host))
    )
    return (
        ("sms_number", number.address),
        ("sms_block", block_of(number)),
        ("sms_country_known" if is_known else "sms_country_others", country.name),
        *of_account,
        *ip_subjects("sms_ip", caller.ip),
        ("sms_global", ""),
        *([("sms_alarm", "")] if is_alarm else []),
    )
