"""Signing JSON with Ed25519, and checking such signatures. No files, no database.

Source: Matrix specification, appendices, "Signing JSON"; the work itself is signedjson's.
"""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Self

import nacl.exceptions
import nacl.signing
from signedjson.key import decode_signing_key_base64
from signedjson.sign import sign_json
from signedjson.types import SigningKey as SignedJsonKey
from unpaddedbase64 import decode_base64, encode_base64

from identity.strict_json import canonical, encode_canonical

ALGORITHM: Final = "ed25519"
SEED_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A long-term key: `key_id` is `ed25519:<version>`, the version 1 to 32 of [0-9A-Za-z_]."""

    key_id: str
    _key: SignedJsonKey = field(repr=False)

    @classmethod
    def from_seed(cls, key_id: str, seed: bytes) -> Self:
        """`seed`: 32 bytes."""
        version = key_id.removeprefix(f"{ALGORITHM}:")
        return cls(key_id, decode_signing_key_base64(ALGORITHM, version, encode_base64(seed)))

    @classmethod
    def generate(cls, key_id: str) -> Self:
        return cls.from_seed(key_id, secrets.token_bytes(SEED_BYTES))

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        return bytes(self._key.verify_key)

    @property
    def seed(self) -> bytes:
        """32 bytes, secret."""
        return bytes(self._key)

    def sign(self, value: dict[str, Any], server_name: str) -> dict[str, Any]:
        """A copy of `value` with our signature added to those it has.

        `signatures` and `unsigned` are no part of what is signed.
        Raises: ValueError for what canonical JSON cannot hold.
        """
        signed: dict[str, Any] = sign_json(canonical(value), server_name, self._key)
        return signed

    def sign_message(self, message: bytes) -> str:
        """Our signature over `message`, unpadded base64. For what is encoded already."""
        return encode_base64(self._key.sign(message).signature)


def is_signed_by(
    value: dict[str, Any],
    server_name: str,
    keys: dict[str, bytes],
    encode: Callable[[Any], bytes] = encode_canonical,
) -> bool:
    """Whether `value` carries a good signature of `server_name` by one of `keys`.

    `keys`: key id to public key (32 bytes). One good signature suffices; unknown key ids,
    unknown algorithms and undecodable signatures are passed over. `encode`: to canonical JSON.
    Source: appendices, "Checking for a Signature".
    """
    signatures = value.get("signatures")
    ours = signatures.get(server_name) if isinstance(signatures, dict) else None
    if not isinstance(ours, dict):
        return False
    try:
        message = encode(
            {name: item for name, item in value.items() if name not in ("signatures", "unsigned")}
        )
    except ValueError:
        return False
    return any(
        is_signature(message, signature, keys[key_id])
        for key_id, signature in ours.items()
        if key_id in keys and key_id.startswith(f"{ALGORITHM}:")
    )


def next_key_id(key_ids: Iterable[str]) -> str:
    """The key id for a new key: `ed25519:0` first, then one above the highest number."""
    numbers = [
        int(version) for key_id in key_ids if (version := key_id.partition(":")[2]).isdigit()
    ]
    return f"{ALGORITHM}:{max(numbers, default=-1) + 1}"


def parse_public_key(text: str) -> bytes | None:
    """The 32 bytes of a public key in any base64 a caller may send, or None.

    Standard or URL-safe alphabet, padded or not; a "+" may have arrived as a space.
    """
    try:
        key = decode_base64(text.replace(" ", "+"))
    except ValueError:
        return None
    return key if len(key) == PUBLIC_KEY_BYTES else None


def encode_public_key(key: bytes) -> str:
    """Standard unpadded base64, 43 characters."""
    return encode_base64(key)


def is_signature(message: bytes, signature: object, public_key: bytes) -> bool:
    """Whether `signature`, base64 in any encoding, is that key's over `message`."""
    if not isinstance(signature, str):
        return False
    try:
        nacl.signing.VerifyKey(public_key).verify(message, decode_base64(signature))
    except (ValueError, TypeError, nacl.exceptions.CryptoError):
        return False
    return True
