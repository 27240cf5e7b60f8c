"""Mutual TLS with Sydent peers: the same certificate of ours in both directions.

Whom to believe is `replication.ca_file`: authorities, or certificates of peers themselves, which
pins them. Without it, the authorities that the system trusts. Who a peer is its certificate only
claims; its statements are verified by the keys that are pinned for it.
"""

import ssl
from pathlib import Path

from identity.config import Replication
from identity.errors import SetupError


def server_context(settings: Replication) -> ssl.SSLContext:
    """For the listener: a client without a certificate that is believed gets no further.

    Raises: SetupError for files that cannot be used.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, settings)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(settings: Replication) -> ssl.SSLContext:
    """For pushes: the peer's certificate must be for the host of its URL, and ours is shown.

    Raises: SetupError for files that are missing or cannot be used.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, settings)
    context.hostname_checks_common_name = False
    return context


def _context(protocol: int, settings: Replication) -> ssl.SSLContext:
    if settings.certificate is None or settings.private_key is None:
        raise SetupError("Sydent peers need [replication] certificate and private_key")
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A certificate in ca_file is believed itself, whoever has signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        # Without a password an encrypted key would ask for one on the terminal.
        context.load_cert_chain(settings.certificate, settings.private_key, password="")
    except OSError as error:
        where = f"[replication] certificate: {settings.certificate}"
        raise SetupError(f"{where}: cannot be used with {settings.private_key}") from error
    _trust(context, settings.ca_file)
    return context


def _trust(context: ssl.SSLContext, ca_file: Path | None) -> None:
    if ca_file is None:
        context.load_default_certs()
        return
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:
        raise SetupError(f"[replication] ca_file: {ca_file}: holds no certificate") from error
