"""Certificate files: whether they can be used, and for how long.

A certificate and its key are tried by a handshake with ourselves over memory, which is what
they are for, and tells the dates without a parser of our own.
"""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from identity.check.report import Line, fail, ok, warn
from identity.clock import DAY_MS

# When a renewal that should have happened has not. Source: security.md, "cert alarm".
WARN_BEFORE_DAYS: Final = 30

# X509_V_FLAG_NO_CHECK_TIME, which ssl has no name for: the dates are judged here, to say more.
_NO_CHECK_TIME: Final = 0x200000
_MAX_FLIGHTS: Final = 10


def probe_pair(certificate: Path, private_key: Path, name: str, now_ms: int) -> Iterator[Line]:
    """A server's certificate and its private key. `name`: the host that it should be for."""
    unreadable = [
        fail(f"[replication] {key}: {file} cannot be read: {reason}")
        for key, file in (("certificate", certificate), ("private_key", private_key))
        if (reason := _why_unreadable(file))
    ]
    if unreadable:
        yield from unreadable
        return
    where = f"[replication] certificate: {certificate}"
    try:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without a password an encrypted key would ask for one on the terminal.
        server.load_cert_chain(certificate, private_key, password="")
        details = _show_to_ourselves(server, certificate)
    except ssl.SSLError as error:
        yield fail(f"{where}: {_why_unusable(error)}")
    else:
        yield _dates(where, details, now_ms)
        names = [value for kind, value in details.get("subjectAltName", ()) if kind == "DNS"]
        if name not in names:
            yield warn(f"{where}: is not for {name}, so peers that check the name will refuse it")


def probe_authorities(where: str, file: Path, now_ms: int) -> Iterator[Line]:
    """A file of certificates that are trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(file)
    except ssl.SSLError as error:
        yield fail(f"{where}: {file}: {_why_unusable(error)}")
    except OSError as error:
        yield fail(f"{where}: {file} cannot be read: {error.strerror}")
    else:
        authorities = context.get_ca_certs()
        for details in authorities:
            yield _dates(f"{where}: {file}", details, now_ms)
        if not authorities:
            yield warn(f"{where}: {file} holds no certificate of an authority")


def _show_to_ourselves(server: ssl.SSLContext, certificate: Path) -> dict[str, Any]:
    """What a client sees in the certificate. Raises: ssl.SSLError when it would not accept it."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(certificate)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(_MAX_FLIGHTS):
        waiting = [end for end in ends if not _shake(end)]
        if not waiting:
            break
    return ends[0].getpeercert() or {}


def _shake(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _dates(where: str, details: dict[str, Any], now_ms: int) -> Line:
    begins_at_ms = ssl.cert_time_to_seconds(details["notBefore"]) * 1_000
    ends_at_ms = ssl.cert_time_to_seconds(details["notAfter"]) * 1_000
    days = (ends_at_ms - now_ms) // DAY_MS
    if now_ms < begins_at_ms:
        return fail(f"{where}: is not valid before {details['notBefore']}")
    if now_ms > ends_at_ms:
        return fail(f"{where}: has expired on {details['notAfter']}")
    text = f"{where}: valid for {days} more days"
    return warn(text) if days < WARN_BEFORE_DAYS else ok(text)


def _why_unreadable(file: Path) -> str | None:
    """Asked for each file, because an SSLContext does not say which one it could not open."""
    try:
        with file.open("rb"):
            return None
    except OSError as error:
        return error.strerror


def _why_unusable(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"is refused: {error.verify_message}"
    if error.reason == "KEY_VALUES_MISMATCH":
        return "does not belong to the private_key"
    return f"is not usable PEM ({error.reason or 'no certificate or key in it'})"
