"""What the storage keys are for: sealing columns, blind indexes, keyed hashes.

Rules:
- An address or a signed statement is stored sealed (XChaCha20-Poly1305). The column's name
  is authenticated with it, so a sealed value cannot be moved to another column.
- It is found through a blind index: a keyed hash of medium and address. Its key is never
  rotated, since every row would have to be found by it first.
- A secret that we only compare is stored as a keyed hash: tokens, client secrets, codes.
- Sealing keys are rotated by adding one: the newest seals, all of them unseal.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from identity.threepid import ThreePid

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
_NUMBER_BYTES: Final = 2


class SealBroken(Exception):
    """A stored value cannot be unsealed: a key is missing, or the value was tampered with."""


@dataclass(frozen=True, slots=True)
class StorageKeys:
    """The secrets that never enter the database.

    `index`: 32 bytes, for keyed hashes. `seals`: number (1 to 65535) to 32-byte key.
    """

    index: bytes = field(repr=False)
    seals: Mapping[int, bytes] = field(repr=False)

    def seal(self, column: str, value: bytes) -> bytes:
        """Key number (2 bytes), nonce (24), ciphertext and tag (`len(value)` + 16)."""
        number = max(self.seals)
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(
            value, column.encode(), nonce, self.seals[number]
        )
        return number.to_bytes(_NUMBER_BYTES) + nonce + sealed

    def unseal(self, column: str, sealed: bytes) -> bytes:
        """Raises: SealBroken."""
        key = self.seals.get(int.from_bytes(sealed[:_NUMBER_BYTES]))
        if key is None:
            raise SealBroken(f"{column}: sealed with a key that this host does not have")
        nonce_end = _NUMBER_BYTES + NONCE_BYTES
        nonce, ciphertext = sealed[_NUMBER_BYTES:nonce_end], sealed[nonce_end:]
        try:
            return bytes(
                crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, column.encode(), nonce, key)
            )
        except (CryptoError, ValueError):
            raise SealBroken(f"{column}: the sealed value does not verify") from None

    def keyed_hash(self, purpose: str, *parts: str) -> bytes:
        """32 bytes. `purpose`, at most 16 bytes, keeps the hashes of one use apart from others."""
        digest = hashlib.blake2b(digest_size=32, key=self.index, person=purpose.encode())
        for part in parts:
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8))
            digest.update(encoded)
        return digest.digest()

    def blind_index(self, threepid: ThreePid) -> bytes:
        """32 bytes by which a 3PID is found, and which say nothing without the key."""
        return self.keyed_hash("3pid", threepid.medium, threepid.address)

    def lookup_key(self, pepper: str) -> bytes:
        """The key of the lookup index under one pepper: it changes whenever the pepper does."""
        return self.keyed_hash("lookup", pepper)

    @staticmethod
    def lookup_tag(lookup_key: bytes, lookup_hash: bytes) -> bytes:
        """What the lookup index stores in place of a client's SHA-256 hash; all 32 bytes.

        Keyed BLAKE2b is a MAC as HMAC is (RFC 7693, section 2.9), at a third of its time.
        """
        return hashlib.blake2b(lookup_hash, digest_size=32, key=lookup_key).digest()

    def fingerprints(self) -> dict[str, bytes]:
        """Name of each key to a hash that tells keys apart and says nothing about them."""
        named = {"index": self.index} | {f"seal:{n}": key for n, key in self.seals.items()}
        return {
            name: hashlib.blake2b(key, digest_size=16, person=b"fingerprint").digest()
            for name, key in named.items()
        }
