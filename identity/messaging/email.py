"""Composing mails: from a brand's templates to an RFC 5322 message.

A mail of a kind is three templates, `<kind>.subject.j2`, `<kind>.txt.j2` and `<kind>.html.j2`.
On the wire it has CRLF line ends, lines within 998 octets, and 7-bit content, which no relay
has a reason to change. Nothing that a caller wrote becomes a header or ends one.

Source: MAIL-10; RFC 5322; RFC 3834 for Auto-Submitted; RFC 6531 for non-ASCII local parts.
"""

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import idna

from identity.clock import Clock
from identity.errors import EmailNotSent
from identity.messaging.brands import Brands
from identity.messaging.text import ascii_domain

if TYPE_CHECKING:
    from identity.config import Config

MAX_SUBJECT_CHARACTERS: Final = 150
# RFC 5322, section 2.1.1, without the CRLF.
MAX_LINE_BYTES: Final = 998


class Composer:
    """Makes mails that come from the configured sender."""

    def __init__(self, brands: Brands, config: "Config", clock: Clock) -> None:
        self._brands = brands
        self._sender = config.email.from_
        self._server_name = str(config.server.name)
        self._host = mail_host(config.server.public_url)
        self._clock = clock

    def compose(
        self, kind: str, recipient: str, brand: str | None, variables: Mapping[str, object]
    ) -> EmailMessage:
        """A mail of `kind` to `recipient`, a canonical e-mail address.

        The templates get `variables` and `server_name`. Raises: EmailNotSent where mail cannot
        carry the address.
        """
        local, _, domain = envelope_address(recipient).rpartition("@")
        ascii_only = local.isascii() and self._sender.username.isascii()
        message = EmailMessage(policy=SMTP if ascii_only else SMTPUTF8)
        shown = {"server_name": self._server_name, **variables}
        subject = self._brands.render(brand, f"{kind}.subject.j2", shown)
        message["From"] = self._sender
        message["To"] = Address(username=local, domain=domain)
        message["Subject"] = _one_line(subject)
        message["Date"] = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)
        message["Message-ID"] = f"<{secrets.token_hex(16)}@{self._host}>"
        message["Auto-Submitted"] = "auto-generated"
        text = self._brands.render(brand, f"{kind}.txt.j2", shown).strip() + "\n"
        html = self._brands.render(brand, f"{kind}.html.j2", shown).strip() + "\n"
        message.set_content(text, cte=_transfer_encoding(text))
        message.add_alternative(html, subtype="html", cte=_transfer_encoding(html))
        return message


def envelope_address(address: str) -> str:
    """An e-mail address as SMTP carries it: the domain in A-labels.

    Raises: EmailNotSent where it cannot be carried.
    """
    local, _, domain = address.rpartition("@")
    # "=?" is allowed in a local part, but the email package decodes it as an encoded word
    # (RFC 2047) even there, line breaks included.
    if not local or "=?" in local or not address.isprintable():
        raise EmailNotSent
    try:
        return f"{local}@{ascii_domain(domain)}"
    except idna.IDNAError:
        raise EmailNotSent from None


def mail_host(public_url: str) -> str:
    """The host of our public URL, as it stands in a Message-ID and in EHLO.

    An IP literal is in brackets. Source: RFC 5321 section 4.1.3.
    """
    host = urlsplit(public_url).hostname or "localhost"
    if ":" in host:
        return f"[IPv6:{host}]"
    return f"[{host}]" if host.replace(".", "").isdigit() else ascii_domain(host)


def _one_line(subject: str) -> str:
    # The email package would decode an encoded word that a caller wrote; see envelope_address.
    words = subject.replace("=?", "= ?").split()
    return " ".join(words)[:MAX_SUBJECT_CHARACTERS]


def _transfer_encoding(body: str) -> str:
    """Plain where every line can pass as it is, so that links in the source stay whole."""
    plain = body.isascii() and max(map(len, body.splitlines())) <= MAX_LINE_BYTES
    return "7bit" if plain else "quoted-printable"
