"""What travels in a push, and what both sides conclude from it: pure.

A sender has a cursor for each peer: the last id of its own that the peer is known to hold. It
sends what follows in the order of ids; the answer moves the cursor, forwards or back. A receiver
holds, for each origin, the last id, the head of the chain there, and a leaf for each id. It
takes what it lacks and passes over what it has, so that the same push again changes nothing.

Nothing is lost when pushes are lost, repeated, cut off or out of order: a receiver takes only what
begins at or below what it holds, and a sender counts only what a receiver says it holds.

Source: docs/replication.md, "push".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, NamedTuple

from unpaddedbase64 import decode_base64, encode_base64

from identity.errors import InvalidParameter
from identity.replication.chain import leaf_of, next_head
from identity.strict_json import MAX_INTEGER, encode_decoded

MAX_ITEMS: Final = 1_000
# Of the encoded batch, so that it passes through proxies that stop at 1 MiB.
MAX_BATCH_BYTES: Final = 900 * 1024
# For brackets, `after` and `head`.
_FRAME_BYTES: Final = 256
_HASH_BYTES: Final = 32


class Item(NamedTuple):
    """One statement of a log. `leaf`: 32 bytes. `signed`: canonical JSON with the signatures, as it
    was signed; None where it is forgotten."""

    origin_id: int
    leaf: bytes
    signed: str | None

    @classmethod
    def of(cls, origin_id: int, signed: str) -> "Item":
        return cls(origin_id, leaf_of(signed), signed)

    def encode(self) -> str:
        """Canonical JSON."""
        if self.signed is None:
            return f'{{"id":{self.origin_id},"leaf":"{encode_base64(self.leaf)}"}}'
        return f'{{"id":{self.origin_id},"signed":{self.signed}}}'


@dataclass(frozen=True, slots=True)
class Batch:
    """A part of a log, ids ascending and above `after`.

    `head`: that of the chain behind the last item (32 bytes), None where the sender does not say.
    """

    after: int
    items: tuple[Item, ...]
    head: bytes | None

    @property
    def last_id(self) -> int:
        """The id that a cursor has behind the batch."""
        return self.items[-1].origin_id if self.items else self.after

    def encode(self) -> bytes:
        """The body of a push, canonical JSON: exactly what is signed and sent."""
        head = "null" if self.head is None else f'"{encode_base64(self.head)}"'
        items = ",".join(item.encode() for item in self.items)
        return f'{{"after":{self.after},"head":{head},"statements":[{items}]}}'.encode()

    @classmethod
    def decode(cls, body: Mapping[str, Any]) -> "Batch":
        """Raises: InvalidParameter for what is no batch. What a statement says is not judged."""
        after, head, statements = body.get("after"), body.get("head"), body.get("statements")
        if not isinstance(statements, list) or len(statements) > MAX_ITEMS:
            raise InvalidParameter("statements is not valid")
        items = tuple(_decode_item(value) for value in statements)
        batch = cls(
            parse_id(after, "after", least=0), items, None if head is None else parse_hash(head)
        )
        ids = [batch.after, *(item.origin_id for item in items)]
        if any(one >= following for one, following in pairwise(ids)):
            raise InvalidParameter("The ids do not ascend")
        return batch


def cut(items: Iterable[Item], max_items: int = MAX_ITEMS) -> tuple[Item, ...]:
    """The first of `items` that fit into one batch: at most 1,000 and 900 KiB, at least one."""
    chosen: list[Item] = []
    size_bytes = _FRAME_BYTES
    for item in items:
        size_bytes += len(item.encode().encode()) + 1
        if chosen and (len(chosen) == max_items or size_bytes > MAX_BATCH_BYTES):
            break
        chosen.append(item)
    return tuple(chosen)


# --- the sender ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer says to a push: `last_id` is the last id of ours that it holds.

    `taken`: 200; else 409, it had less than the batch begins with.
    """

    taken: bool
    last_id: int


@dataclass(frozen=True, slots=True)
class Restored:
    """The peer holds more of ours than we have: we were restored from a backup."""

    held_id: int


def acknowledge(batch: Batch, answer: Answer | None, own_last_id: int) -> int | Restored | None:
    """The cursor after an answer; None where it stays and the push is to be repeated later.

    `answer`: None where there was none, or no usable one. `own_last_id`: our last id, read
    after the answer came: what is younger than the answer is no sign of a restored backup.
    """
    if answer is None:
        return None
    if answer.last_id > own_last_id:
        return Restored(answer.last_id)
    is_sensible = answer.last_id >= batch.last_id if answer.taken else answer.last_id < batch.after
    return answer.last_id if is_sensible else None


# --- the receiver -------------------------------------------------------------------------


class Known(NamedTuple):
    """What is held under one id. `complete`: it needs nothing more: the text is there, or it was
    refused for what it says."""

    leaf: bytes
    complete: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to become of the items of a batch.

    `new`: behind what was held. `missing`: nothing was held under their ids, which are below.
    `refilled`: the text of what was held by its leaf alone. `repeats`: nothing to do. `forks`: an
    other statement is held under that id. `last_id`, `head`: of the origin afterwards.
    `head_differs`: the sender's head is another than what follows from what was held.
    """

    last_id: int
    head: bytes
    head_differs: bool = False
    new: list[Item] = field(default_factory=list)
    missing: list[Item] = field(default_factory=list)
    refilled: list[Item] = field(default_factory=list)
    repeats: list[Item] = field(default_factory=list)
    forks: list[Item] = field(default_factory=list)


def plan(last_id: int, head: bytes, known: Mapping[int, Known], batch: Batch) -> Plan | None:
    """What a receiver does with a batch; None: it has too little, and answers 409 `last_id`.

    `last_id`, `head`: what is held of the origin. `known`: of the ids in the batch.
    """
    if batch.after > last_id:
        return None
    new = [item for item in batch.items if item.origin_id > last_id]
    for item in new:
        head = next_head(head, item.origin_id, item.leaf)
    differs = bool(new) and batch.head is not None and batch.head != head
    planned = Plan(
        last_id=max(last_id, batch.last_id),
        # The sender's counts from here on, else every later push would differ, too.
        head=batch.head if differs and batch.head is not None else head,
        head_differs=differs,
        new=new,
    )
    for item in batch.items[: len(batch.items) - len(new)]:
        _place(planned, item, known.get(item.origin_id))
    return planned


def _place(planned: Plan, item: Item, held: Known | None) -> None:
    if held is None:
        planned.missing.append(item)
    elif held.leaf != item.leaf:
        planned.forks.append(item)
    elif held.complete or item.signed is None:
        planned.repeats.append(item)
    else:
        planned.refilled.append(item)


# --- decoding -----------------------------------------------------------------------------


def parse_id(value: object, name: str, *, least: int = 1) -> int:
    """An id of a statement: an integer up to 2^53-1. Raises: InvalidParameter."""
    if type(value) is not int or not least <= value <= MAX_INTEGER:
        raise InvalidParameter(f"{name} is not valid")
    return value


def parse_hash(value: object) -> bytes:
    """32 bytes from base64. Raises: InvalidParameter."""
    try:
        decoded = decode_base64(value) if isinstance(value, str) else b""
    except ValueError:
        decoded = b""
    if len(decoded) != _HASH_BYTES:
        raise InvalidParameter("A head or leaf is not valid")
    return decoded


def _decode_item(value: object) -> Item:
    if not isinstance(value, dict):
        raise InvalidParameter("statements is not valid")
    origin_id = parse_id(value.get("id"), "id")
    signed = value.get("signed")
    if signed is None:
        return Item(origin_id, parse_hash(value.get("leaf")), None)
    if not isinstance(signed, dict):
        raise InvalidParameter("signed is not valid")
    try:
        return Item.of(origin_id, encode_decoded(signed).decode())
    except ValueError:
        raise InvalidParameter("signed is no canonical JSON") from None
