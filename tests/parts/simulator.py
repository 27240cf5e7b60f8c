"""Servers that replicate in memory, with everything going wrong: one seed, one schedule (E11).

    problem = simulate(seed)             # None, or what went wrong
    simulate(seed, trace=print)          # what happened, step by step

The decisions are those of the real servers: statements, batches, cursors, plans and refusals are
made by the pure code in `identity`; around it there are only dictionaries in place of tables, and a
list of messages in place of a network. Signatures are left out: they decide nothing about order.

While the schedule runs, servers state, push, lose, repeat and reorder; they crash before and after
a commit, are restored from backups, are cut off, and have clocks that are wrong and that jump.
Then everything heals, and all must hold the same: the newest statement about each 3PID.

`Rules` are what the real servers do. Each can be broken, to see that the simulator notices.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Final, NamedTuple

from identity import strict_json
from identity.associations.statement import Logged, Statement, encode_signed, newest
from identity.clock import MINUTE_MS, SECOND_MS
from identity.mxid import UserId
from identity.replication.batch import (
    Answer,
    Batch,
    Item,
    Known,
    Plan,
    Restored,
    acknowledge,
    cut,
    plan,
)
from identity.replication.chain import EMPTY_HEAD, next_head
from identity.replication.digest import digests
from identity.replication.peer import Peer, Protocol, Refusal
from identity.threepid import ThreePid

STEPS: Final = 400
MAX_SKEW_MS: Final = 10 * MINUTE_MS
# Small, so that a backlog needs several batches.
BATCH_ITEMS: Final = 3
# Rounds in which all must be at rest once nothing goes wrong any more.
HEALING_ROUNDS: Final = 200

_USERS: Final = [UserId.parse(f"@user{number}:example.org") for number in range(4)]
_THREEPIDS: Final = [ThreePid.parse("email", f"{name}@example.org") for name in "abcde"]


@dataclass(frozen=True)
class Rules:
    """How servers behave; each one switched off is a fault that the simulator must find."""

    ids_in_commit_order: bool = True  # else an id is taken before its transaction commits
    tombstones: bool = True  # else a revocation leaves nothing behind
    ties_broken: bool = True  # else equal time stamps leave what is there
    rewinds: bool = True  # else a peer that holds less than was thought is sent the rest only
    repeats_checked: bool = True  # else an id that is held already is stored again
    tail_fetched: bool = True  # else a restored server states at once
    future_taken_later: bool = True  # else what is refused for its time is refused for good


class Broken(Exception):
    """Something that must never happen, in words."""


class Key(NamedTuple):
    """A statement, wherever it is."""

    origin: str
    origin_id: int


@dataclass
class Log:
    """One origin's statements, as one server holds them. Leaf alone: it was refused."""

    last_id: int = 0
    head: bytes = EMPTY_HEAD
    items: dict[int, Item] = field(default_factory=dict)

    def after(self, origin_id: int) -> Iterable[Item]:
        return (self.items[number] for number in sorted(self.items) if number > origin_id)

    def add(self, item: Item) -> None:
        self.items[item.origin_id] = item
        self.head = next_head(self.head, item.origin_id, item.leaf)
        self.last_id = item.origin_id


@dataclass
class Disk:
    """What is committed, and what a backup holds."""

    logs: dict[str, Log]
    cursors: dict[str, int]
    view: dict[ThreePid, Logged] = field(default_factory=dict)
    # When what was refused for its time is judged again.
    quarantine: dict[Key, tuple[int, Item]] = field(default_factory=dict)
    # Restored: these have not said yet that they hold no more of ours.
    must_answer: set[str] = field(default_factory=set)

    def copy(self) -> "Disk":
        """What is changed later changes no copy."""
        logs = {
            origin: Log(log.last_id, log.head, dict(log.items)) for origin, log in self.logs.items()
        }
        return Disk(
            logs,
            dict(self.cursors),
            dict(self.view),
            dict(self.quarantine),
            set(self.must_answer),
        )


@dataclass(frozen=True)
class Message:
    """A request, or with `answers` the reply to the one of that number."""

    number: int
    sender: str
    receiver: str
    kind: str
    body: bytes | Answer | int
    answers: int | None = None


class Node:
    """One server."""

    def __init__(self, name: str, names: list[str], rules: Rules, random: Random) -> None:
        self.name = name
        self.peers = [peer for peer in names if peer != name]
        self.disk = Disk({origin: Log() for origin in names}, dict.fromkeys(self.peers, 0))
        self.rules = rules
        skews = [0, 0, SECOND_MS, -MINUTE_MS, MAX_SKEW_MS, -MAX_SKEW_MS]
        self.skew_ms = random.choice(skews)
        self.backups: list[Disk] = []
        # In memory: gone after a crash. Requests under way, and transactions that are open.
        self.waiting: dict[int, Message] = {}
        self.open: list[tuple[ThreePid, UserId | None, int]] = []
        self.next_id = 1

    @property
    def own(self) -> Log:
        return self.disk.logs[self.name]

    @property
    def may_state(self) -> bool:
        return not self.disk.must_answer or not self.rules.tail_fetched

    # --- stating ---

    def begin(self, threepid: ThreePid, mxid: UserId | None) -> None:
        """A transaction is open. Its id counts only where ids are taken too early."""
        self.next_id = max(self.next_id, self.own.last_id + 1)
        self.open.append((threepid, mxid, self.next_id))
        self.next_id += 1

    def commit(self, index: int, now_ms: int) -> Logged | None:
        """The statement, None where there is nothing to revoke."""
        threepid, mxid, taken_id = self.open.pop(index)
        current = self.disk.view.get(threepid)
        if mxid is None and (current is None or current.statement.mxid is None):
            return None
        newest_ts_ms = None if current is None else current.version.ts_ms
        statement = Statement.make(threepid, mxid, now_ms + self.skew_ms, newest_ts_ms)
        origin_id = self.own.last_id + 1 if self.rules.ids_in_commit_order else taken_id
        signed = encode_signed({**statement.to_json(), "signatures": {self.name: {}}})
        entry = Logged(self.name, origin_id, statement, signed)
        last_id = self.own.last_id
        self.own.add(Item.of(origin_id, signed))
        self.own.last_id = max(last_id, origin_id)
        self.apply([entry])
        return entry

    def apply(self, entries: Iterable[Logged]) -> None:
        """The view follows: the newest statement of any origin counts."""
        view = self.disk.view
        for threepid, entry in newest(entries).items():
            held = view.get(threepid)
            if held is None or self._wins(entry, held):
                view[threepid] = entry
            if not self.rules.tombstones and view[threepid].statement.mxid is None:
                del view[threepid]

    def _wins(self, entry: Logged, held: Logged) -> bool:
        if not self.rules.ties_broken:
            return entry.version.ts_ms > held.version.ts_ms
        return entry.version > held.version

    # --- sending ---

    def next_batch(self, peer: str) -> Batch:
        after = self.disk.cursors[peer]
        items = cut(self.own.after(after), BATCH_ITEMS)
        head = self.own.head if items and items[-1].origin_id == self.own.last_id else None
        return Batch(after, items, head if self.rules.ids_in_commit_order else None)

    def acknowledged(self, peer: str, batch: Batch, answer: Answer) -> None:
        match acknowledge(batch, answer, self.own.last_id):
            case None:
                raise Broken(f"{self.name} cannot use the answer of {peer}: {answer}")
            case Restored():
                self.disk.must_answer.add(peer)
            case last_id if last_id >= batch.after or self.rules.rewinds:
                self.disk.cursors[peer] = last_id

    # --- receiving ---

    def receive(self, origin: str, batch: Batch, now_ms: int) -> Answer:
        log = self.disk.logs[origin]
        known = {
            item.origin_id: Known(held.leaf, complete=self._is_complete(origin, held))
            for item in batch.items
            if (held := log.items.get(item.origin_id)) is not None
        }
        if not self.rules.rewinds:
            batch = Batch(min(batch.after, log.last_id), batch.items, None)
        planned = plan(log.last_id, log.head, known, batch)
        if planned is None:
            return Answer(taken=False, last_id=log.last_id)
        self._check(origin, planned)
        log.last_id, log.head = planned.last_id, planned.head
        chosen = [*planned.new, *planned.missing, *planned.refilled]
        if not self.rules.repeats_checked:
            chosen += planned.repeats
            log.head = next_head(log.head, 0, EMPTY_HEAD) if planned.repeats else log.head
        self.take(origin, chosen, now_ms)
        return Answer(taken=True, last_id=log.last_id)

    def take(self, origin: str, items: list[Item], now_ms: int) -> None:
        """Judge, store, and let the view follow."""
        peer = Peer(origin, "", Protocol.V2, {})
        good = []
        for item in items:
            key = Key(origin, item.origin_id)
            if item.signed is None:
                self.disk.logs[origin].items[item.origin_id] = item
                continue
            entry = _load(origin, item.origin_id, item.signed)
            match peer.find_refusal(entry.statement, now_ms + self.skew_ms):
                case Refusal(due_at_ms=due_at_ms) if due_at_ms is not None and origin != self.name:
                    self.disk.quarantine[key] = (due_at_ms, item)
                    item = item._replace(signed=None)  # noqa: PLW2901 - what is stored of it
                case _:
                    self.disk.quarantine.pop(key, None)
                    good.append(entry)
            self.disk.logs[origin].items[item.origin_id] = item
        self.apply(good)

    def take_due(self, now_ms: int) -> None:
        """What was refused for its time, and is due."""
        for key, (due_at_ms, item) in list(self.disk.quarantine.items()):
            if due_at_ms <= now_ms + self.skew_ms and self.rules.future_taken_later:
                self.take(key.origin, [item], now_ms)

    def _is_complete(self, origin: str, held: Item) -> bool:
        return held.signed is not None or Key(origin, held.origin_id) in self.disk.quarantine

    def _check(self, origin: str, planned: Plan) -> None:
        """Nobody lies here, so there is nothing to raise an alarm about."""
        if planned.forks:
            raise Broken(f"{self.name} sees a fork of {origin}: {planned.forks[0].origin_id}")
        if planned.head_differs:
            raise Broken(f"{self.name} has another head of {origin} at {planned.last_id}")

    # --- healing ---

    def held_of(self, origin: str, after: int) -> Batch:
        """What this server holds of the asking one: the answer to a pull."""
        items = []
        for item in cut(self.disk.logs[origin].after(after), BATCH_ITEMS):
            _, whole = self.disk.quarantine.get(Key(origin, item.origin_id), (0, item))
            items.append(whole)
        return Batch(after, tuple(items), None)

    def fetched(self, peer: str, batch: Batch, now_ms: int) -> None:
        """Our own statements, from a peer; none: it holds no more."""
        if not batch.items:
            self.disk.must_answer.discard(peer)
        self.receive(self.name, batch, now_ms)

    def compared(self, peer: str, held_last_id: int) -> None:
        """How far the peer says it is: it, or we, may have been restored."""
        batch = Batch(self.disk.cursors[peer], (), None)
        match acknowledge(batch, Answer(taken=False, last_id=held_last_id), self.own.last_id):
            case Restored():
                self.disk.must_answer.add(peer)
            case int(last_id) if self.rules.rewinds:
                self.disk.cursors[peer] = last_id

    # --- faults ---

    def crash(self) -> None:
        self.waiting.clear()
        self.open.clear()
        self.next_id = self.own.last_id + 1

    def back_up(self) -> None:
        self.backups.append(self.disk.copy())

    def restore(self, index: int) -> None:
        """From a backup; those made after it are of another history."""
        self.backups = self.backups[: index + 1]
        self.disk = self.backups[index].copy()
        self.disk.must_answer = set(self.peers)
        self.crash()


class Simulation:
    """One seed's run."""

    def __init__(self, seed: int, rules: Rules, trace: Callable[[str], object] | None) -> None:
        self.random = Random(seed)
        self.trace = trace
        self.rules = rules
        self.now_ms = 1_800_000_000_000
        names = [f"{letter}.example.org" for letter in "abcde"[: self.random.randint(3, 5)]]
        self.nodes = {name: Node(name, names, rules, self.random) for name in names}
        self.messages: list[Message] = []
        self.numbers = itertools.count(1)
        self.cuts: set[frozenset[str]] = set()
        # All that was acknowledged to a client, and was not lost with every disk that had it.
        self.stated: dict[Key, Logged] = {}
        # A schedule has a temper: some are all loss, some all crashes, some quiet.
        self.events: dict[Callable[[], str | None], float] = {
            self.begin: 14,
            self.commit: 14,
            self.roll_back: 1,
            self.push: 20,
            self.deliver: 34,
            self.lose: self.random.choice([0, 1, 6]),
            self.repeat: self.random.choice([0, 1, 6]),
            self.give_up: self.random.choice([0, 1, 4]),
            self.crash: self.random.choice([0, 0, 1, 3]),
            self.back_up: 3,
            self.restore: self.random.choice([0, 0, 1, 3]),
            self.fetch: 6,
            self.compare: 2,
            self.take_due: 3,
            self.cut: self.random.choice([0, 1, 2]),
            self.mend: 2,
            self.pass_time: 8,
            self.jump: self.random.choice([0, 0, 1]),
        }

    def run(self) -> None:
        """Raises: Broken."""
        events, weights = list(self.events), list(self.events.values())
        for event in self.random.choices(events, weights, k=STEPS):
            self._note(event())
            self._check_views()
        self.heal()
        self.check()

    # --- events; each says what it did ---

    def begin(self) -> str | None:
        node = self._any()
        if not node.may_state:
            return None
        # Few 3PIDs, so that servers disagree about them often.
        threepid = self.random.choice(_THREEPIDS)
        mxid = None if self.random.random() < 0.3 else self.random.choice(_USERS)
        node.begin(threepid, mxid)
        return f"{node.name} begins {threepid.address} {mxid}"

    def commit(self) -> str | None:
        node = self._any()
        if not node.open or not node.may_state:
            return None
        entry = node.commit(self.random.randrange(len(node.open)), self.now_ms)
        if entry is None:
            return f"{node.name} has nothing to revoke"
        self.stated[Key(node.name, entry.origin_id)] = entry
        return f"{node.name} commits {entry.origin_id}: {entry.signed}"

    def roll_back(self) -> str | None:
        node = self._any()
        if not node.open:
            return None
        node.open.pop(self.random.randrange(len(node.open)))
        return f"{node.name} rolls back"

    def push(self) -> str | None:
        node, peer = self._pair()
        batch = node.next_batch(peer)
        if not batch.items:
            return None
        self._request(node, peer, "push", batch.encode())
        return f"{node.name} pushes to {peer}: {batch.after} → {batch.last_id}"

    def fetch(self) -> str | None:
        waiting = [node for node in self.nodes.values() if node.disk.must_answer]
        if not waiting:
            return None
        node = self.random.choice(waiting)
        peer = self.random.choice(sorted(node.disk.must_answer))
        self._request(node, peer, "pull", node.own.last_id)
        return f"{node.name} asks {peer} for its own behind {node.own.last_id}"

    def compare(self) -> str | None:
        node, peer = self._pair()
        self._request(node, peer, "state", 0)
        return f"{node.name} asks {peer} how far it is"

    def deliver(self) -> str | None:
        if not self.messages:
            return None
        # Any of them: requests and answers overtake each other.
        message = self.messages.pop(self.random.randrange(len(self.messages)))
        if frozenset((message.sender, message.receiver)) in self.cuts:
            return f"{message.number} does not get through"
        receiver = self.nodes[message.receiver]
        if message.answers is not None:
            return self._answered(receiver, message)
        return self._asked(receiver, message)

    def lose(self) -> str | None:
        if not self.messages:
            return None
        message = self.messages.pop(self.random.randrange(len(self.messages)))
        return f"{message.number} is lost"

    def repeat(self) -> str | None:
        if not self.messages:
            return None
        message = self.random.choice(self.messages)
        self.messages.append(message)
        return f"{message.number} is repeated"

    def give_up(self) -> str | None:
        node = self._any()
        if not node.waiting:
            return None
        number = self.random.choice(list(node.waiting))
        del node.waiting[number]
        return f"{node.name} waits no longer for the answer to {number}"

    def crash(self) -> str:
        node = self._any()
        node.crash()
        return f"{node.name} crashes"

    def back_up(self) -> str:
        node = self._any()
        node.back_up()
        return f"{node.name} makes backup {len(node.backups) - 1}"

    def restore(self) -> str | None:
        node = self._any()
        if not node.backups:
            return None
        index = self.random.randrange(len(node.backups))
        node.restore(index)
        # To restore a server takes longer than any request of its former life.
        self.messages = [
            one for one in self.messages if node.name not in (one.sender, one.receiver)
        ]
        held = {key for other in self.nodes.values() for key in _held(other)}
        self.stated = {key: entry for key, entry in self.stated.items() if key in held}
        return f"{node.name} is restored from backup {index}: it is at {node.own.last_id}"

    def take_due(self) -> str:
        node = self._any()
        node.take_due(self.now_ms)
        return f"{node.name} takes what is due"

    def cut(self) -> str:
        node, peer = self._pair()
        self.cuts.add(frozenset((node.name, peer)))
        return f"{node.name} and {peer} are cut off from each other"

    def mend(self) -> str:
        self.cuts.clear()
        return "nobody is cut off"

    def pass_time(self) -> str:
        # Often none, so that statements of several servers have the same time.
        passed_ms = self.random.choice([1, SECOND_MS, MINUTE_MS])
        self.now_ms += passed_ms
        return f"{passed_ms} ms pass"

    def jump(self) -> str:
        node = self._any()
        node.skew_ms = self.random.randint(-MAX_SKEW_MS, MAX_SKEW_MS)
        return f"the clock of {node.name} jumps to {node.skew_ms:+} ms"

    # --- requests and answers ---

    def _request(self, node: Node, peer: str, kind: str, body: bytes | int) -> None:
        message = Message(next(self.numbers), node.name, peer, kind, body)
        node.waiting[message.number] = message
        self.messages.append(message)

    def _asked(self, node: Node, message: Message) -> str:
        said = f"{node.name} gets {message.number} ({message.kind}) from {message.sender}"
        answer: Answer | bytes | int
        if message.kind == "push":
            batch = _decode(message.body)
            fate = self.random.random() if self.events[self.crash] else 1
            if fate < 0.05:
                node.crash()
                return f"{said} and crashes before it commits"
            answer = node.receive(message.sender, batch, self.now_ms)
            if fate < 0.1:
                node.crash()
                return f"{said} and crashes after it commits {answer.last_id}"
        elif message.kind == "pull":
            assert isinstance(message.body, int)
            answer = node.held_of(message.sender, message.body).encode()
        else:
            answer = node.disk.logs[message.sender].last_id
        self._reply(message, answer)
        return f"{said}: {answer!r}"

    def _reply(self, message: Message, body: Answer | bytes | int) -> None:
        number = next(self.numbers)
        kind, asked = message.kind, message.number
        self.messages.append(
            Message(number, message.receiver, message.sender, kind, body, answers=asked)
        )

    def _answered(self, node: Node, message: Message) -> str:
        said = f"{node.name} gets the answer {message.number} to {message.answers}"
        request = node.waiting.pop(message.answers or 0, None)
        if request is None:
            return f"{said}, and waits for it no longer"
        if isinstance(message.body, Answer):
            node.acknowledged(message.sender, _decode(request.body), message.body)
        elif message.kind == "pull":
            node.fetched(message.sender, _decode(message.body), self.now_ms)
        else:
            assert isinstance(message.body, int)
            node.compared(message.sender, message.body)
        return said

    # --- the end ---

    def heal(self) -> None:
        """All clocks go on, everything arrives. Raises: Broken if there is no rest."""
        self._note("everything heals")
        self.cuts.clear()
        self.now_ms += 4 * MAX_SKEW_MS
        for _ in range(HEALING_ROUNDS):
            before = [node.disk.copy() for node in self.nodes.values()]
            for node in self.nodes.values():
                node.take_due(self.now_ms)
                for peer in node.peers:
                    if peer in node.disk.must_answer:
                        self._request(node, peer, "pull", node.own.last_id)
                    self._request(node, peer, "state", 0)
                    self._request(node, peer, "push", node.next_batch(peer).encode())
            crashes, self.events[self.crash] = self.events[self.crash], 0
            while self.messages:
                self._note(self.deliver())
            self.events[self.crash] = crashes
            if before == [node.disk for node in self.nodes.values()]:
                return
        raise Broken("no rest after everything has healed")

    def check(self) -> None:
        """Raises: Broken."""
        expected = newest(self.stated.values())
        for node in self.nodes.values():
            for origin, log in node.disk.logs.items():
                mine = {
                    key.origin_id: one.leaf
                    for key, one in self.stated.items()
                    if key.origin == origin
                }
                held = {number: item.leaf for number, item in log.items.items() if item.signed}
                if held != mine:
                    ids = sorted(number for number, _ in set(held.items()) ^ set(mine.items()))
                    raise Broken(f"{node.name} has other statements of {origin}: {ids}")
                if log.head != self.nodes[origin].own.head:
                    raise Broken(f"{node.name} has another head of {origin}")
            if {one: held.version for one, held in node.disk.view.items()} != {
                one: entry.version for one, entry in expected.items()
            }:
                raise Broken(f"{node.name} has another view")
        states = [_digests(node) for node in self.nodes.values()]
        if any(state != states[0] for state in states):
            raise Broken("the digests differ")

    def _check_views(self) -> None:
        """At any time, a view is that of the log: nothing comes back that was superseded."""
        for node in self.nodes.values():
            entries = [
                _load(origin, item.origin_id, item.signed)
                for origin, log in node.disk.logs.items()
                for item in log.items.values()
                if item.signed is not None
            ]
            if newest(entries) != node.disk.view:
                raise Broken(f"{node.name} has a view that is not of its log")

    def _any(self) -> Node:
        return self.random.choice(list(self.nodes.values()))

    def _pair(self) -> tuple[Node, str]:
        node = self._any()
        return node, self.random.choice(node.peers)

    def _note(self, what: str | None) -> None:
        if what is not None and self.trace is not None:
            self.trace(what)


def simulate(
    seed: int, rules: Rules | None = None, trace: Callable[[str], object] | None = None
) -> str | None:
    """None if all went well, else what went wrong."""
    try:
        Simulation(seed, rules or Rules(), trace).run()
    except Broken as broken:
        return str(broken)
    return None


@functools.lru_cache(100_000)
def _load(origin: str, origin_id: int, signed: str) -> Logged:
    return Logged.load(origin, origin_id, signed, None)


def _held(node: Node) -> Iterable[Key]:
    """The statements of which a server has the text."""
    for origin, log in node.disk.logs.items():
        yield from (Key(origin, number) for number, item in log.items.items() if item.signed)
    yield from node.disk.quarantine


def _digests(node: Node) -> dict[str, dict[int, str]]:
    """Of the live bindings by origin, as `identity db digest` prints them."""
    live = sorted(
        (entry.origin, entry.origin_id, entry.leaf)
        for entry in node.disk.view.values()
        if entry.statement.mxid is not None
    )
    return {
        origin: digests((origin_id, leaf) for _, origin_id, leaf in entries)
        for origin, entries in itertools.groupby(live, key=lambda one: one[0])
    }


def _decode(body: object) -> Batch:
    assert isinstance(body, bytes)
    return Batch.decode(strict_json.decode(body))


def how_to_repeat(seed: int, problem: str) -> str:
    """What is printed of a seed that failed."""
    return f"seed {seed}: {problem}; see tests/experiments/e11_convergence.py --seed {seed}"
