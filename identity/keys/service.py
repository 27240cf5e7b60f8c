"""Use cases of the server's keys.

Rules:
- Keys are made only together with a new database, which records their fingerprints. A host
  that lacks a recorded key does not start: it would sign or seal what others cannot read.
- A rotated signing key is published at once, and signs once every live host holds it.
- A public key stays published and valid until it is revoked by name.
"""

from pathlib import Path
from typing import Final

import structlog

from identity.clock import MINUTE_MS, Clock
from identity.database import Database, Transaction
from identity.errors import KeyNotFound, SetupError
from identity.keys import keyfile, store
from identity.sealing import StorageKeys
from identity.signing import SigningKey, encode_public_key, next_key_id, parse_public_key

log = structlog.get_logger(__name__)

# A host that has not reported for this long is taken to be gone.
HOST_SILENCE_MS: Final = MINUTE_MS


class SigningKeys:
    """The long-term keys by which this server signs."""

    def __init__(self, database: Database, path: Path, clock: Clock) -> None:
        self._database = database
        self._path = path
        self._clock = clock
        self._held = keyfile.read_signing_keys(path)

    def active(self, tx: Transaction) -> SigningKey:
        """The key to sign with, as the caller's transaction sees it."""
        key_id = store.find_active_key_id(tx)
        if key_id is None:
            raise SetupError("Every signing key is revoked; run: identity keys rotate")
        return self._hold(key_id)

    def get_active(self) -> SigningKey:
        """The key to sign with now, outside of a transaction."""
        return self._database.read(self.active)

    def all_public(self) -> dict[str, bytes]:
        """Key id to 32 bytes of every key that ever was ours, as far as this host knows."""
        rows = self._database.read(store.signing_key_rows)
        published = {row.key_id: bytes(row.public_key) for row in rows}
        return {key_id: key.public_key for key_id, key in self._held.items()} | published

    def all_held(self, key_id: str) -> list[SigningKey]:
        """The key of that id, if this host still holds it, and the active one; each once."""
        active = self._database.read(self.active)
        named = self._held.get(key_id)
        return [active] if named is None or named.key_id == active.key_id else [named, active]

    def find_held(self, key_id: str) -> SigningKey | None:
        """The key of that id, if this host holds it and it is not revoked."""
        rows = self._database.read(store.signing_key_rows)
        if not any(row.key_id == key_id and row.revoked_at_ms is None for row in rows):
            return None
        return self._held.get(key_id)

    def public_keys(self) -> dict[str, str]:
        """Key id to unpadded base64 of every published key, oldest first, revoked ones too."""
        rows = self._database.read(store.signing_key_rows)
        return {row.key_id: encode_public_key(bytes(row.public_key)) for row in rows}

    def get_public_key(self, key_id: str) -> str:
        """Unpadded base64. Raises: KeyNotFound."""
        key = self._database.read(lambda tx: store.find_public_key(tx, key_id))
        if key is None:
            raise KeyNotFound
        return encode_public_key(bytes(key))

    def is_valid(self, public_key: str) -> bool:
        """Whether it is one of our long-term keys, in any encoding, and not revoked."""
        key = parse_public_key(public_key)
        return key is not None and self._database.read(
            lambda tx: store.is_valid_public_key(tx, key)
        )

    def rotate(self) -> str:
        """Make a new key and publish it; returns its key id.

        It signs at once when no server is running, else as soon as every host holds it.
        """
        now_ms = self._clock.now_ms()
        held = keyfile.read_signing_keys(self._path)
        published = self._database.read(store.signing_key_rows)
        key = SigningKey.generate(next_key_id([*held, *(row.key_id for row in published)]))
        # First the file: a recorded key that no file holds could never be used.
        keyfile.write_signing_keys(self._path, {**held, key.key_id: key})

        def record(tx: Transaction) -> None:
            store.forget_hosts(tx, seen_before_ms=now_ms - HOST_SILENCE_MS)
            alone = not store.keys_of_hosts(tx)
            store.insert_signing_key(tx, key.key_id, key.public_key, now_ms, active=alone)

        self._database.write(record)
        return key.key_id

    def revoke(self, key_id: str) -> None:
        """From now on the key is not valid. Raises: KeyNotFound, SetupError for the only key."""
        now_ms = self._clock.now_ms()

        def work(tx: Transaction) -> None:
            if not store.revoke_signing_key(tx, key_id, now_ms):
                raise KeyNotFound
            if store.find_active_key_id(tx) is None:
                raise SetupError("The only active key cannot be revoked; rotate first")

        self._database.write(work)

    def report(self, host_id: str) -> None:
        """The heartbeat of one host: says which keys it holds, activates what all hosts hold."""
        now_ms = self._clock.now_ms()
        held = keyfile.read_signing_keys(self._path)

        def work(tx: Transaction) -> list[str]:
            store.report_host(tx, host_id, held, now_ms)
            store.forget_hosts(tx, seen_before_ms=now_ms - HOST_SILENCE_MS)
            everywhere = frozenset(held).intersection(*store.keys_of_hosts(tx))
            waiting = [
                row.key_id
                for row in store.signing_key_rows(tx)
                if row.active_at_ms is None and row.key_id in everywhere
            ]
            for key_id in waiting:
                store.activate_signing_key(tx, key_id, now_ms)
            return waiting

        for key_id in self._database.write(work):
            log.info("signing_key_active", key_id=key_id)

    def leave(self, host_id: str) -> None:
        """The host stops: nobody need wait for it."""
        self._database.write(lambda tx: store.forget_host(tx, host_id))

    def _hold(self, key_id: str) -> SigningKey:
        if key_id not in self._held:
            # Rotated since we started; it became active because our host's file has it.
            self._held = keyfile.read_signing_keys(self._path)
        if key_id not in self._held:
            raise SetupError(f"{self._path} lacks the active key {key_id}")
        return self._held[key_id]


def create_key_files(signing_path: Path, storage_path: Path) -> list[Path]:
    """Make the key files that do not exist yet; returns those that were made.

    Raises: SetupError where a folder cannot be written.
    """
    key = SigningKey.generate(next_key_id([]))
    made = []
    try:
        for path in (signing_path, storage_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        # Files that an operator provides may lie in a folder that is not ours to write.
        if not signing_path.exists() and keyfile.create_signing_keys(
            signing_path, {key.key_id: key}
        ):
            made.append(signing_path)
        if not storage_path.exists() and keyfile.create_storage_keys(
            storage_path, keyfile.generate_storage_keys()
        ):
            made.append(storage_path)
    except OSError as error:
        raise SetupError(f"The key files cannot be made: {error.strerror}") from None
    return made


def record_or_check(
    tx: Transaction,
    signing: dict[str, SigningKey],
    storage: StorageKeys,
    now_ms: int,
) -> None:
    """Record the keys of a new database, or check ours against what it has recorded.

    Raises: SetupError, naming the key that this host lacks.
    """
    ours = storage.fingerprints()
    # Of several hosts that record theirs at once, the first counts, and the others check theirs.
    if not store.storage_fingerprints(tx) and store.insert_storage_keys(tx, ours, now_ms):
        for key_id, key in signing.items():
            store.insert_signing_key(tx, key_id, key.public_key, now_ms, active=True)
        return
    for name, fingerprint in store.storage_fingerprints(tx).items():
        if ours.get(name) != fingerprint:
            raise SetupError(
                f"This host lacks the storage key {name!r} that the database was written with; "
                "copy the storage key file from another host or from its backup"
            )
    for row in store.signing_key_rows(tx):
        held = signing.get(row.key_id)
        if row.revoked_at_ms is None and (held is None or held.public_key != bytes(row.public_key)):
            raise SetupError(
                f"This host lacks the signing key {row.key_id!r} that the database has recorded; "
                "copy the signing key file from another host or from its backup"
            )
