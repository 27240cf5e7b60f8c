"""Key files: one key a line, readable by their owner only.

`signing.keys` holds `ed25519 <version> <seed>` lines, `storage.keys` holds `index <key>` and
`seal <number> <key>` lines; seeds and keys are 32 bytes in unpadded base64, `#` starts a
comment. A file is made or replaced as a whole and is on disk before anyone relies on it; of
several processes that make the first one at once, one does.
"""

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from unpaddedbase64 import decode_base64, encode_base64

from identity.errors import SetupError
from identity.sealing import KEY_BYTES, StorageKeys
from identity.signing import ALGORITHM, SEED_BYTES, SigningKey

MODE: Final = 0o600
_VERSION: Final = re.compile(r"[0-9A-Za-z_]{1,32}", re.ASCII)
_MAX_SEAL_NUMBER: Final = 65_535


def read_signing_keys(path: Path) -> dict[str, SigningKey]:
    """Key id to key, in the order of the file. Raises: SetupError."""
    keys: dict[str, SigningKey] = {}
    for number, words in _lines(path):
        match words:
            case [algorithm, version, seed] if algorithm == ALGORITHM and _VERSION.fullmatch(
                version
            ):
                key_id = f"{ALGORITHM}:{version}"
                if key_id in keys:
                    raise SetupError(f"{path}, line {number}: {key_id} appears twice")
                seed_bytes = _decode(path, number, seed, SEED_BYTES)
                keys[key_id] = SigningKey.from_seed(key_id, seed_bytes)
            case _:
                raise SetupError(f"{path}, line {number}: expected `ed25519 VERSION SEED`")
    if not keys:
        raise SetupError(f"{path} holds no key")
    return keys


def create_signing_keys(path: Path, keys: dict[str, SigningKey]) -> bool:
    """False where the file exists; it is left as it is."""
    return _create(path, _signing_keys_text(keys))


def write_signing_keys(path: Path, keys: dict[str, SigningKey]) -> None:
    _replace(path, _signing_keys_text(keys))


def read_storage_keys(path: Path) -> StorageKeys:
    """Raises: SetupError."""
    index: bytes | None = None
    seals: dict[int, bytes] = {}
    for number, words in _lines(path):
        match words:
            case ["index", key] if index is None:
                index = _decode(path, number, key, KEY_BYTES)
            case ["seal", seal, key] if (
                seal.isascii() and seal.isdigit() and 1 <= int(seal) <= _MAX_SEAL_NUMBER
            ):
                seals[int(seal)] = _decode(path, number, key, KEY_BYTES)
            case _:
                raise SetupError(
                    f"{path}, line {number}: expected `index KEY` or `seal NUMBER KEY`"
                )
    if index is None or not seals:
        raise SetupError(f"{path} must hold one index key and at least one seal key")
    return StorageKeys(index, seals)


def create_storage_keys(path: Path, keys: StorageKeys) -> bool:
    """False where the file exists; it is left as it is."""
    return _create(path, _storage_keys_text(keys))


def write_storage_keys(path: Path, keys: StorageKeys) -> None:
    _replace(path, _storage_keys_text(keys))


def generate_storage_keys() -> StorageKeys:
    return StorageKeys(secrets.token_bytes(KEY_BYTES), {1: secrets.token_bytes(KEY_BYTES)})


def add_seal(keys: StorageKeys) -> StorageKeys:
    """The same keys and a new one that seals from now on."""
    number = max(keys.seals) + 1
    return StorageKeys(keys.index, {**keys.seals, number: secrets.token_bytes(KEY_BYTES)})


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise SetupError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{path} cannot be read: {type(error).__name__}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise SetupError(f"{path} can be read by others; run: chmod 600 {path}")
    for number, line in enumerate(text.splitlines(), start=1):
        if words := line.partition("#")[0].split():
            yield number, words


def _decode(path: Path, number: int, text: str, size_bytes: int) -> bytes:
    try:
        value: bytes = decode_base64(text)
    except ValueError:
        value = b""
    if len(value) != size_bytes:
        raise SetupError(f"{path}, line {number}: not a key of {size_bytes} bytes in base64")
    return value


def _signing_keys_text(keys: dict[str, SigningKey]) -> str:
    lines = [
        "# Signing keys. Whoever has them can sign as this server.",
        *(
            f"{ALGORITHM} {key.key_id.partition(':')[2]} {encode_base64(key.seed)}"
            for key in keys.values()
        ),
    ]
    return "\n".join([*lines, ""])


def _storage_keys_text(keys: StorageKeys) -> str:
    lines = [
        "# Storage keys. Without them the database cannot be read: keep a copy.",
        f"index {encode_base64(keys.index)}",
        *(f"seal {number} {encode_base64(key)}" for number, key in sorted(keys.seals.items())),
    ]
    return "\n".join([*lines, ""])


def _create(path: Path, text: str) -> bool:
    with _written_beside(path, text) as new:
        try:
            # Of several processes that come this far only one succeeds, and none sees a file
            # that is not complete.
            path.hardlink_to(new)
        except FileExistsError:
            return False
    return True


def _replace(path: Path, text: str) -> None:
    with _written_beside(path, text) as new:
        new.replace(path)


@contextmanager
def _written_beside(path: Path, text: str) -> Iterator[Path]:
    """A file on disk that the block gives its name; that name is on disk afterwards, too."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield new
    finally:
        new.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
