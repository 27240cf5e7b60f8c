"""Matrix user IDs and server names: parsed once, then used as types.

Source: Matrix specification, appendices, "Server Name" and "User Identifiers".
"""

import functools
import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from identity.errors import InvalidParameter

MAX_USER_ID_BYTES = 255
MAX_SERVER_NAME_CHARACTERS = 255

# A DNS name by the grammar of the specification: letters, digits, "-" and ".".
_DNS_NAME = re.compile(r"[0-9A-Za-z.-]{1,255}", re.ASCII)
_DNS_LABEL = re.compile(r"[0-9A-Za-z-]{1,63}", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ServerName:
    """A homeserver's name: host and optional port, kept exactly as it was written.

    Names are case-sensitive as identifiers (`str(name)`); `host` is what DNS, caches and
    allow-lists use, in lower case, without the brackets of an IPv6 literal.
    """

    text: str
    host: str
    port: int | None
    is_ip_literal: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises: InvalidParameter when `text` does not satisfy the server-name grammar."""
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_SERVER_NAME_CHARACTERS:
            raise InvalidParameter("The server name is not valid")
        return cls._parse(text)

    @classmethod
    @functools.lru_cache(maxsize=10_000)
    def _parse(cls, text: str) -> Self:
        if text.startswith("["):
            bracketed, closed, rest = text[1:].partition("]")
            host, port_text = bracketed, rest.removeprefix(":")
            if not closed or (rest and not rest.startswith(":")) or rest == ":":
                raise InvalidParameter("The server name is not valid")
            is_ip_literal = _is_ip(host, version=6)
            valid_host = is_ip_literal
        else:
            host, colon, port_text = text.partition(":")
            if colon and not port_text:
                raise InvalidParameter("The server name is not valid")
            is_ip_literal = _is_ip(host, version=4)
            valid_host = is_ip_literal or _is_dns_name(host)
        if not valid_host or (port_text and not _PORT.fullmatch(port_text)):
            raise InvalidParameter("The server name is not valid")
        port = int(port_text) if port_text else None
        if port is not None and not 1 <= port <= 65535:
            raise InvalidParameter("The server name is not valid")
        return cls(text, host.lower(), port, is_ip_literal)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class UserId:
    """An MXID, `@localpart:server`, at most 255 bytes; historical localparts are accepted."""

    text: str
    server: ServerName

    @classmethod
    @functools.lru_cache(maxsize=10_000)
    def parse(cls, text: str) -> Self:
        """Raises: InvalidParameter when `text` is not a user ID."""
        if not isinstance(text, str) or not text.startswith("@"):
            raise InvalidParameter("The Matrix user ID is not valid")
        localpart, colon, server = text[1:].partition(":")
        try:
            size_bytes = len(text.encode())
        except UnicodeEncodeError:
            raise InvalidParameter("The Matrix user ID is not valid") from None
        if not localpart or not colon or size_bytes > MAX_USER_ID_BYTES:
            raise InvalidParameter("The Matrix user ID is not valid")
        # Historical localparts may hold any printable character but never a control one.
        if not localpart.isprintable():
            raise InvalidParameter("The Matrix user ID is not valid")
        try:
            return cls(text, ServerName.parse(server))
        except InvalidParameter:
            raise InvalidParameter("The Matrix user ID is not valid") from None

    def __str__(self) -> str:
        return self.text


def _is_ip(host: str, *, version: int) -> bool:
    try:
        return ipaddress.ip_address(host).version == version and "%" not in host
    except ValueError:
        return False


def _is_dns_name(host: str) -> bool:
    if not _DNS_NAME.fullmatch(host):
        return False
    labels = host.removesuffix(".").split(".")
    # A name of digits and dots alone is a mistyped IPv4 literal, not a host name.
    return all(_DNS_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit()
