"""How clients hash a 3PID for a lookup: pure.

Source: Matrix Identity Service API, "Association lookup"; MSC2134.
"""

import binascii
import hashlib
import re
import secrets
from typing import Final

from unpaddedbase64 import encode_base64

from identity.threepid import Medium, ThreePid

SHA256: Final = "sha256"
NONE: Final = "none"

# 32 bytes in URL-safe unpadded base64: the last character carries four bits and two zeros.
_HASH: Final = re.compile(r"[0-9A-Za-z_-]{42}[AEIMQUYcgkosw048]", re.ASCII)
_PEPPER_CHARACTERS: Final = 20
_PEPPER_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def new_pepper() -> str:
    """20 characters of [a-zA-Z0-9]: 119 bits, so nobody prepares tables for it in advance."""
    return "".join(secrets.choice(_PEPPER_ALPHABET) for _ in range(_PEPPER_CHARACTERS))


def lookup_hash(address: str, medium: str, pepper: str) -> bytes:
    """32 bytes: SHA-256 of `<address> <medium> <pepper>`."""
    return hashlib.sha256(f"{address} {medium} {pepper}".encode()).digest()


def encode_hash(value: bytes) -> str:
    """URL-safe unpadded base64, 43 characters."""
    return str(encode_base64(value, urlsafe=True))


def decode_hash(text: str) -> bytes | None:
    """The 32 bytes of a hash as the specification writes it; None for anything else.

    Padding, the other alphabet, or spare bits that are not zero simply match nothing.
    """
    if not _HASH.fullmatch(text):
        return None
    return binascii.a2b_base64(text.replace("-", "+").replace("_", "/") + "=")


def hashes_of(threepid: ThreePid, pepper: str) -> set[bytes]:
    """Every hash by which clients look for this 3PID: one, or two where lower-casing what was
    typed differs from folding it."""
    addresses = {threepid.address} | ({threepid.lowered} if threepid.lowered else set())
    return {lookup_hash(address, threepid.medium, pepper) for address in addresses}


def plain_hash(text: str, pepper: str) -> bytes | None:
    """The hash for one entry of a lookup with the algorithm `none`: `<address> <medium>`."""
    words = text.split(" ")
    if len(words) != 2 or words[1] not in {*Medium}:
        return None
    try:
        return lookup_hash(words[0], words[1], pepper)
    except UnicodeEncodeError:
        return None
