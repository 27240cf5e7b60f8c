"""Use case: take over a Sydent, whole or not at all.

One transaction writes everything into a database that nobody has used, so an import that dies has
done nothing, and is run again. Only the signing key is there before: a file, made with the new
database. A dry run does all the same with a database of its own, which is thrown away.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Final, Protocol, TypeVar

from pydantic import SecretStr

from identity import schema
from identity.accounts import store as accounts_store
from identity.accounts.service import hash_token
from identity.associations import store as associations_store
from identity.associations.service import Associations
from identity.associations.statement import Logged
from identity.clock import Clock
from identity.config import Config
from identity.database import Database, Transaction, sqlite_path
from identity.errors import SetupError
from identity.keys import keyfile
from identity.keys.service import SigningKeys
from identity.onbind import outbox
from identity.opening import open_database
from identity.replication import store as replication_store
from identity.replication.chain import EMPTY_HEAD, next_head
from identity.replication.peer import Peer
from identity.signing import SigningKey
from identity.sydent_import import conversion, store
from identity.sydent_import.conversion import LeftOut, Own
from identity.sydent_import.rows import Stated
from identity.sydent_import.source import Source, SydentConfig, open_source
from identity.terms import store as terms_store

_BATCH: Final = 1_000
# Of each kind of row that was repaired or left out, so many are named.
_NAMED: Final = 20
T = TypeVar("T")


class Progress(Protocol):
    """A bar that somebody watches."""

    def total(self, total: int) -> None: ...

    def advance(self, steps: int) -> None: ...


@dataclass(slots=True)
class Report:
    """What was taken over, by kind; and by table and reason the numbers of rows that were repaired
    or left out. It names no address and no person."""

    taken: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    repaired: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    left_out: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        for kind, count in self.taken.items():
            yield f"{kind}: {count}"
        for title, rows in (("repaired", self.repaired), ("left out", self.left_out)):
            for (table, reason), numbers in rows.items():
                named = ", ".join(map(str, numbers[:_NAMED]))
                more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
                yield f"{title}: {len(numbers)} of {table}, {reason}: row {named}{more}"
        yield from self.notes


class SydentImport:
    """Imports into the server that `config` describes."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config = config
        self._clock = clock

    def run(self, path: Path, progress: Progress, *, dry_run: bool) -> Report:
        """`path`: sydent.conf, or the database beside it.

        Raises: SetupError for what cannot be read, a server of another name, a database that is in
        use, other signing keys. Then nothing has changed.
        """
        sydent = SydentConfig.find(path)
        if sydent.server_name != str(self._config.server.name):
            raise SetupError(
                f"The Sydent is {sydent.server_name}, and [server] name is "
                f"{self._config.server.name}: what it signed would be another server's"
            )
        with open_source(sydent) as source:
            self._check_target(sydent.key)
            if not dry_run:
                return self._import(self._config, sydent, source, progress)
            with tempfile.TemporaryDirectory(prefix="import-sydent-") as folder:
                config = _elsewhere(self._config, Path(folder))
                return self._import(config, sydent, source, progress)

    def _check_target(self, key: SigningKey) -> None:
        """Raises: SetupError; nothing is made."""
        path = self._config.signing_keys_path
        if path.exists():
            held = keyfile.read_signing_keys(path).get(key.key_id)
            if held is None or held.public_key != key.public_key:
                raise SetupError(
                    f"{path} holds another signing key than the Sydent's; a server that takes "
                    "one over starts with its key: remove that file and the database it belongs to"
                )
        database = sqlite_path(self._config.database_url)
        if database is not None and not database.exists():
            return
        if schema.find_revision(self._config.database_url) is None:
            return
        opened = open_database(self._config, self._clock, migrate=False).database
        try:
            opened.read(_require_empty)
        finally:
            opened.close()

    def _import(
        self, config: Config, sydent: SydentConfig, source: Source, progress: Progress
    ) -> Report:
        config.signing_keys_path.parent.mkdir(parents=True, exist_ok=True)
        keyfile.create_signing_keys(config.signing_keys_path, {sydent.key.key_id: sydent.key})
        database = open_database(config, self._clock, migrate=False).database
        try:
            progress.total(source.count())
            transfer = _Transfer(config, sydent, source, database, self._clock, progress.advance)
            return database.write(transfer.run, patient=True)
        finally:
            database.close()


class _Transfer:
    """The transaction, piece by piece."""

    def __init__(
        self,
        config: Config,
        sydent: SydentConfig,
        source: Source,
        database: Database,
        clock: Clock,
        advance: Callable[[int], None],
    ) -> None:
        self._sydent = sydent
        self._source = source
        self._database = database
        self._advance = advance
        self._now_ms = clock.now_ms()
        self._lifetime_ms = config.invites.lifetime // timedelta(milliseconds=1)
        signing_keys = SigningKeys(database, config.signing_keys_path, clock)
        self._associations = Associations(database, signing_keys, sydent.server_name, clock)
        self._report = Report()

    def run(self, tx: Transaction) -> Report:
        self._report = Report()
        _require_empty(tx)
        # Whoever changes the index holds the lock of an origin.
        associations_store.lock_origins(tx)
        # What follows is indexed under it.
        self._take_pepper(tx)
        peers = self._take_peers(tx)
        self._take_own(tx)
        self._take_foreign(tx, peers)
        self._take_accounts(tx)
        self._take_invites(tx)
        return self._report

    def _take_pepper(self, tx: Transaction) -> None:
        pepper = conversion.pepper(self._source.pepper())
        if pepper is None:
            self._report.notes.append("the pepper cannot be used here; there is a new one")
            return
        store.set_first_pepper(tx, pepper)
        self._count("pepper")

    def _take_peers(self, tx: Transaction) -> dict[str, Peer]:
        taken = {}
        last_id = self._source.last_own_id()
        for row in self._counted(self._source.peers()):
            url = row.url(self._sydent.peer_urls)
            peer = self._try("peers", row.row, lambda row=row, url=url: conversion.peer(row, url))  # type: ignore[misc]
            if peer is None:
                continue
            replication_store.put_peer(tx, peer, self._now_ms)
            # Null: it was never sent anything.
            sent = row.last_sent if isinstance(row.last_sent, int) else 0
            store.set_cursor(tx, peer.name, min(sent, last_id))
            taken[peer.name] = peer
            self._count("peers")
        return taken

    def _take_own(self, tx: Transaction) -> None:
        name, head = self._sydent.server_name, EMPTY_HEAD
        moved: list[Own] = []

        def kept() -> Iterator[Logged]:
            for row in self._counted(self._source.own()):
                one = self._take_one(row)
                if one is not None and one.moved:
                    moved.append(one)
                elif one is not None:
                    yield Logged(name, row.origin_id, one.statement, one.signed)

        def renumbered() -> Iterator[Logged]:
            last_id = self._source.last_own_id()
            for origin_id, one in enumerate(moved, start=last_id + 1):
                yield Logged(name, origin_id, one.statement, one.signed)

        for entries in (kept(), renumbered()):
            for batch in _batches(entries):
                for entry in batch:
                    head = next_head(head, entry.origin_id, entry.leaf)
                self._append(tx, batch)
        last_id = self._source.last_own_id() + len(moved)
        associations_store.set_origin(tx, name, last_id, head)

    def _take_one(self, row: Stated) -> Own | None:
        table = "local_threepid_associations"
        one = self._try(table, row.row, lambda: conversion.own(row, self._sydent.key))
        if one is None:
            return None
        if one.repaired is not None:
            self._report.repaired[table, one.repaired].append(row.row)
        self._count("own revocations" if one.statement.mxid is None else "own associations")
        return one

    def _take_foreign(self, tx: Transaction, peers: dict[str, Peer]) -> None:
        table, last_ids, unchecked = "global_threepid_associations", {}, 0
        for rows in _batches(self._counted(self._source.foreign())):
            entries = []
            for row in rows:
                one = self._try(
                    table,
                    row.row,
                    lambda row=row: conversion.foreign(row, peers, self._now_ms),  # type: ignore[misc]
                )
                if one is not None:
                    entries.append(one.logged)
                    unchecked += not one.checked
            for entry in entries:
                last_ids[entry.origin] = entry.origin_id
            for origin in {entry.origin for entry in entries}:
                associations_store.ensure_origin(tx, origin)
            self._append(tx, entries)
            self._count("associations of others", len(entries))
        for origin, last_id in last_ids.items():
            associations_store.set_origin(tx, origin, last_id, EMPTY_HEAD)
        if unchecked:
            self._report.notes.append(
                f"{unchecked} associations are of servers that are no peers, so their signatures "
                "could not be checked"
            )

    def _append(self, tx: Transaction, entries: list[Logged]) -> None:
        keys = self._database.keys
        blinds = {keys.blind_index(entry.statement.threepid) for entry in entries}
        held = associations_store.lock_current(tx, list(blinds))
        associations_store.append(tx, keys, entries)
        self._associations.follow(tx, entries, held, tell=False)

    def _take_accounts(self, tx: Transaction) -> None:
        for number, (user_id, created_ms) in enumerate(self._counted(self._source.accounts()), 1):
            user = self._try("accounts", number, lambda u=user_id: conversion.account(u))  # type: ignore[misc]
            if user is not None:
                at_ms = created_ms if isinstance(created_ms, int) else self._now_ms
                accounts_store.ensure_account(tx, str(user), at_ms)
                accounts_store.ensure_homeserver(tx, user.server.host, at_ms)
                self._count("accounts")
        for number, row in enumerate(self._counted(self._source.tokens()), start=1):
            held = self._try("tokens", number, lambda row=row: conversion.token(*row))  # type: ignore[misc]
            if held is not None:
                token, user = held
                token_hash = hash_token(self._database.keys, token)
                accounts_store.insert_token(tx, token_hash, str(user), self._now_ms)
                self._count("access tokens")
        for number, row in enumerate(self._counted(self._source.terms()), start=1):
            terms = self._try(
                "accepted_terms_urls",
                number,
                lambda row=row: conversion.accepted(*row),  # type: ignore[misc]
            )
            if terms is not None:
                user, url = terms
                terms_store.accept(tx, str(user), [url], self._now_ms)
                self._count("accepted terms")

    def _take_invites(self, tx: Transaction) -> None:
        keys = self._database.keys
        paired: dict[bytes, bytes] = {}
        waiting, without_key = set(), 0
        for row in self._counted(self._source.invites()):
            invite = self._try("invite_tokens", row.row, lambda row=row: conversion.invite(row))  # type: ignore[misc]
            if invite is None:
                continue
            # As identity.invites hashes them.
            token_hash = keys.keyed_hash("invite token", invite.token)
            blind = keys.blind_index(invite.threepid)
            store.insert_invite(
                tx,
                invite,
                token_hash=token_hash,
                threepid=blind,
                key_id=self._sydent.key.key_id,
                # Nobody who got one was told that it ends, so all have the whole time from now on.
                expires_at_ms=self._now_ms + self._lifetime_ms,
            )
            self._count("invitations")
            if invite.key is not None:
                paired[invite.key] = token_hash
            if invite.delivered_at_ms is None:
                waiting.add(blind)
                without_key += invite.key is None
        for number, (text, created_s) in enumerate(
            self._counted(self._source.ephemeral_keys()), start=1
        ):
            key = self._try(
                "ephemeral_public_keys",
                number,
                lambda text=text: conversion.ephemeral_key(text),  # type: ignore[misc]
            )
            if key is not None:
                # One of which no invitation is known stays valid, and is nobody's.
                token_hash = paired.get(key) or keys.keyed_hash("no invite", key.hex())
                at_ms = created_s * 1_000 if isinstance(created_s, int) else self._now_ms
                store.insert_ephemeral_key(tx, key, token_hash, at_ms)
                self._count("ephemeral keys")
        if without_key:
            self._report.notes.append(
                f"{without_key} invitations have no key, so the links in their mails do not work; "
                "they are delivered when the address is bound"
            )
        self._tell(tx, waiting)

    def _tell(self, tx: Transaction, waiting: Iterable[bytes]) -> None:
        """Of bindings that came from peers, for which a Sydent delivers no invitations."""
        for blind in waiting:
            current = associations_store.find_current(tx, blind)
            if current is None or current.mxid is None or not current.is_live(self._now_ms):
                continue
            logged = associations_store.find_logged(tx, current.version)
            if logged is not None:
                outbox.follow(
                    tx,
                    blind,
                    logged,
                    previous_mxid=current.mxid,
                    ours=False,
                    now_ms=self._now_ms,
                )
                self._count("invitations to be delivered")

    def _counted(self, rows: Iterable[T]) -> Iterator[T]:
        for row in rows:
            yield row
            self._advance(1)

    def _try(self, table: str, number: int, convert: Callable[[], T]) -> T | None:
        try:
            return convert()
        except LeftOut as fault:
            self._report.left_out[table, fault.reason].append(number)
            return None

    def _count(self, kind: str, count: int = 1) -> None:
        self._report.taken[kind] += count


def _require_empty(tx: Transaction) -> None:
    if not store.is_empty(tx):
        raise SetupError("The database is in use; a Sydent is taken over into a new one")


def _elsewhere(config: Config, folder: Path) -> Config:
    """The same with a database and keys in `folder`."""
    return config.model_copy(
        update={
            "server": config.server.model_copy(update={"data_dir": folder}),
            "database": config.database.model_copy(
                update={"url": SecretStr(""), "read_url": SecretStr("")}
            ),
            "keys": config.keys.model_copy(update={"signing_keys": None, "storage_keys": None}),
        }
    )


def _batches(entries: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(entries)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
