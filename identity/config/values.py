"""What one value of the configuration may look like: text in, a type out, nothing else.

Pure: no file is touched and no name resolved. Each parser raises `Rejected`, which says what is
wrong and what is allowed without quoting the value, because whoever reports it knows whether
the value may be shown.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from email.headerregistry import Address
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, Self
from urllib.parse import SplitResult, quote, urlsplit

import idna

from identity.errors import InvalidParameter
from identity.limits.catalogue import CATALOGUE
from identity.limits.gcra import Rate
from identity.mxid import ServerName

MAX_DURATION: Final = timedelta(days=36_500)
MAX_URL_CHARACTERS: Final = 2_048
MAX_MAILBOX_CHARACTERS: Final = 320

_UNITS: Final = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
_SIZES: Final = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_DURATION: Final = re.compile(r"([0-9]{1,15})(ms|s|m|h|d)", re.ASCII)
_SIZE: Final = re.compile(r"([0-9]{1,12})(B|KiB|MiB|GiB|)", re.ASCII)
_MAILBOX: Final = re.compile(
    r"""(?: (?: "(?P<quoted>(?:[^"\\]|\\.)*)" | (?P<plain>[^"\\()<>\[\]:;@,]*) )\s*(?P<open><) )?
    (?P<local> [0-9A-Za-z!#$%&'*+/=?^_`{|}~-]+ (?: \.[0-9A-Za-z!#$%&'*+/=?^_`{|}~-]+ )* )
    @ (?P<domain>[^\s<>@]+) (?(open)>)""",
    re.VERBOSE,
)
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", re.ASCII)
_E164: Final = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)
_SENDER_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z ._&+-]{0,10}", re.ASCII)
_CALLING_CODE: Final = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)
_BRAND: Final = re.compile(r"[a-z0-9_-]{1,64}", re.ASCII)
_MATRIX_ROOM: Final = re.compile(r"[!#][^\s]{1,254}")


class Rejected(ValueError):
    """A value that cannot be used: `problem` continues a sentence that begins with the value."""

    def __init__(self, problem: str, allowed: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.allowed = allowed


def nearest(name: str, known: Iterable[str]) -> str:
    """What was probably meant, else everything that is known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"{close[0]} is the nearest" if close else ", ".join(known)


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen: a host name or IP literal without brackets; port 0 means any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "127.0.0.1:8090", "[::]:8090" or "localhost:8090". Raises: Rejected."""
        bad = Rejected("is not an address to listen on", 'host:port, as "127.0.0.1:8090"')
        host, colon, port = text.rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65535:
            raise bad
        name = _server_name(host, bad)
        if name.port is not None:
            raise bad
        return cls(name.host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_text(value: object) -> str:
    """A string of printable characters; what else there is comes from a slip of the editor."""
    if not isinstance(value, str):
        raise Rejected("is not a string", "a string, in quotes")
    if not value.isprintable():
        raise Rejected("holds a control character", "printable characters")
    return value


def parse_duration(value: object) -> timedelta:
    """Read "500ms", "30s", "10m", "24h" or "30d"; "0" alone needs no unit. Raises: Rejected."""
    if isinstance(value, timedelta):
        return value
    allowed = 'a string of a whole number and a unit (ms, s, m, h, d), as "24h"; or "0"'
    if value == "0" and isinstance(value, str):
        return timedelta(0)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise Rejected("is not a duration", allowed)
    count, unit = match.groups()
    if int(count) > MAX_DURATION / _UNITS[unit]:
        raise Rejected("is too long", "at most 36500d")
    return int(count) * _UNITS[unit]


def format_duration(duration: timedelta) -> str:
    """The shortest text that `parse_duration` reads back as `duration` (whole milliseconds)."""
    for unit in ("d", "h", "m", "s", "ms"):
        if duration and not duration % _UNITS[unit]:
            return f"{duration // _UNITS[unit]}{unit}"
    return "0"


def parse_size(value: object) -> int:
    """Read "1MiB", "512KiB" or a bare number of bytes, in quotes. Raises: Rejected."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise Rejected("is not a size", 'a string of a whole number and B, KiB, MiB or GiB: "1MiB"')
    count, unit = match.groups()
    return int(count) * _SIZES[unit]


def format_size(size_bytes: int) -> str:
    """The shortest text that `parse_size` reads back."""
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes and not size_bytes % _SIZES[unit]:
            return f"{size_bytes // _SIZES[unit]}{unit}"
    return f"{size_bytes}B"


def parse_path(value: object, base: Path) -> Path | None:
    """A path; a relative one lies in `base`. The empty string means that none is given."""
    if value is None or value == "":
        return None
    if isinstance(value, Path):
        return base / value
    return base / parse_text(value)


def parse_listen(value: object) -> Listen | None:
    """The empty string means: do not listen. Raises: Rejected."""
    if value is None or value == "":
        return None
    return parse_required_listen(value)


def parse_required_listen(value: object) -> Listen:
    """Raises: Rejected."""
    return value if isinstance(value, Listen) else Listen.parse(parse_text(value))


def parse_server_name(value: object) -> ServerName:
    """A Matrix server name, with or without a port. Raises: Rejected."""
    if isinstance(value, ServerName):
        return value
    bad = Rejected("is not a server name", 'a host name or IP literal, as "id.example.org"')
    return _server_name(parse_text(value), bad)


def parse_host(value: object) -> str:
    """A host name or IP literal without a port, in lower case; "" stays "". Raises: Rejected."""
    text = parse_text(value)
    bad = Rejected("is not a host name", 'a host name or IP literal without a port: "example.org"')
    if not text:
        return ""
    literal = f"[{text}]" if ":" in text else text
    # The networks of containers have names with underscores, which DNS does not mind.
    if _server_name(literal.replace("_", "-"), bad).port is not None:
        raise bad
    return text.lower()


def parse_domain_pattern(value: object) -> str:
    """An e-mail domain or "*." and one, in lower case and A-labels. Raises: Rejected."""
    bad = Rejected("is not a domain", '"example.org", or "*.example.org" for what is below it')
    text = parse_text(value).lower()
    star, domain = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    try:
        domain = domain if domain.isascii() else idna.encode(domain, uts46=True).decode()
    except idna.IDNAError:
        raise bad from None
    name = _server_name(domain, bad)
    if name.port is not None or name.is_ip_literal:
        raise bad
    return star + domain


def parse_network(value: object) -> IPv4Network | IPv6Network:
    """An IP network in CIDR form; a single address is a network of one. Raises: Rejected."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    try:
        return ip_network(parse_text(value))
    except ValueError:
        raise Rejected("is not a network", 'CIDR without host bits, as "10.0.0.0/8"') from None


def parse_public_url(value: object) -> str:
    """The base of links: http or https, a host, perhaps a path; no slash at the end."""
    text = parse_text(value)
    allowed = "http:// or https://, a host, and perhaps a port and a path"
    parts = _split_url(text, allowed)
    if "?" in text or "#" in text:
        raise Rejected("has a query or a fragment", allowed)
    return parts.geturl().rstrip("/")


def parse_endpoint(value: object) -> str:
    """An http or https URL that is called, query allowed; "" stays "". Raises: Rejected."""
    text = parse_text(value)
    allowed = 'an http or https URL, as "https://sms.example.org/send"'
    if not text:
        return ""
    if _split_url(text, allowed).fragment:
        raise Rejected("has a fragment", allowed)
    return text


def parse_mailbox(value: object) -> Address:
    """One mailbox as in a From header, "Name <local@domain>" or "local@domain".

    Raises: Rejected. Source: RFC 5322 section 3.4.
    """
    if isinstance(value, Address):
        return value
    bad = Rejected("is not one mailbox", '"Name <noreply@example.org>" or "noreply@example.org"')
    match = _MAILBOX.fullmatch(parse_text(value).strip())
    if match is None or len(match.string) > MAX_MAILBOX_CHARACTERS:
        raise bad
    name = re.sub(r"\\(.)", r"\1", match["quoted"]) if match["quoted"] else match["plain"] or ""
    domain = parse_domain_pattern(match["domain"])
    if domain.startswith("*"):
        raise bad
    return Address(name.strip(), match["local"], domain)


def parse_rates(value: object) -> tuple[Rate, ...]:
    """Rates that hold together, "5/h, 10/d". Raises: Rejected."""
    if isinstance(value, tuple) and all(isinstance(rate, Rate) for rate in value):
        return value
    allowed = '"<count>/<period>", several apart by commas, as "5/h, 10/d" (s, m, h, d)'
    try:
        return Rate.parse_list(parse_text(value))
    except Rejected:
        raise
    except ValueError:
        raise Rejected("is not a list of rates", allowed) from None


def parse_calling_code(value: object) -> str:
    """A calling code as people write it, without "+". Raises: Rejected."""
    text = parse_text(value)
    if not _CALLING_CODE.fullmatch(text):
        raise Rejected("is not a calling code", 'one to three digits without "+", as "44"')
    return text


def parse_calling_code_or_all(value: object) -> str:
    """A calling code, or "*" for every one. Raises: Rejected."""
    return "*" if value == "*" else parse_calling_code(value)


def parse_calling_code_or_default(value: object) -> str:
    """A calling code, or "default" for those that are not named. Raises: Rejected."""
    return "default" if value == "default" else parse_calling_code(value)


def parse_originator(value: object) -> str:
    """Who an SMS is from: E.164 with "+", a short code or a sender id; "" stays "".

    Raises: Rejected. Source: 3GPP TS 23.040 section 9.1.2.5 for the eleven characters.
    """
    text = parse_text(value)
    if text and not _E164.fullmatch(text) and not _SENDER_ID.fullmatch(text):
        raise Rejected(
            "cannot be a sender", 'an E.164 number, as "+12125550100", or up to 11 letters'
        )
    return text


def parse_room(value: object) -> str:
    """A room ID or alias. Raises: Rejected."""
    text = parse_text(value)
    if not _MATRIX_ROOM.fullmatch(text):
        raise Rejected("is not a room", 'a room ID or alias, as "!id:example.org"')
    return text


def parse_keyword(value: object) -> str:
    """A word to look for; an empty one would be found everywhere. Raises: Rejected."""
    text = parse_text(value).strip()
    if not text:
        raise Rejected("is empty", "at least one character")
    return text


def parse_brand(value: object) -> str:
    """The name of a brand, which is also that of a folder. Raises: Rejected."""
    text = parse_text(value)
    if not _BRAND.fullmatch(text):
        raise Rejected("is not a brand", 'a to z, digits, "-" and "_"; at most 64')
    return text


def parse_limit_name(value: object) -> str:
    """The name of a rate limit. Raises: Rejected."""
    text = parse_text(value)
    if text not in CATALOGUE:
        raise Rejected("is not the name of a limit", nearest(text, CATALOGUE))
    return text


def parse_header_name(value: object) -> str:
    """The name of an HTTP header. Raises: Rejected. Source: RFC 9110 section 5.1."""
    text = parse_text(value)
    if not _HEADER_NAME.fullmatch(text):
        raise Rejected("is not the name of a header", 'letters, digits and "-"')
    return text


def parse_database_url(value: str, base: Path) -> str:
    """Where the database is; "" stays "". A relative path to an SQLite file lies in `base`.

    A PostgreSQL URL is kept as it is: libpq reads it, several hosts included. Raises: Rejected.
    """
    allowed = "sqlite:///<path> or postgresql://user:password@host/database"
    if not value:
        return ""
    if not value.isprintable():
        raise Rejected("holds a control character", allowed)
    scheme, _, rest = value.partition("://")
    if scheme in ("postgresql", "postgres") and rest:
        _check_with_libpq(value)
        return value
    path = rest.removeprefix("/")
    if scheme != "sqlite" or path in ("", rest) or path.startswith((":memory:", "?", "file:")):
        raise Rejected("is not the URL of a database", allowed)
    return f"sqlite:///{Path(quote(str(base))) / path}"


def _check_with_libpq(url: str) -> None:
    """Ask the library that will read the URL, which connects to nothing for this."""
    import psycopg  # noqa: PLC0415 - a third of a second that only users of PostgreSQL spend

    try:
        psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        # Its message would quote the part that it does not understand, as the password.
        problem = "is not understood by libpq"
        raise Rejected(problem, 'a "%" in the password is written "%25", an "@" "%40"') from None


def parse_redis_url(value: str) -> str:
    """Where Redis is; "" stays "". Raises: Rejected."""
    scheme, separator, rest = value.partition("://")
    if value and (
        scheme not in ("redis", "rediss", "unix")
        or not separator
        or not rest
        or not value.isprintable()
    ):
        raise Rejected("is not the URL of a Redis server", "redis://, rediss:// or unix://")
    return value


def parse_header_value(value: str) -> str:
    """What follows a header's colon. Raises: Rejected. Source: RFC 9110 section 5.5."""
    if not value.isascii() or not value.isprintable() or value != value.strip():
        raise Rejected("cannot be sent as a header", "printable ASCII without outer spaces")
    return value


def parse_password(value: str) -> str:
    """Any characters but those that no protocol carries. Raises: Rejected."""
    if any(character in value for character in "\0\r\n"):
        raise Rejected("holds a line break or a NUL", "one line")
    return value


def _server_name(text: str, bad: Rejected) -> ServerName:
    try:
        return ServerName.parse(text)
    except InvalidParameter:
        raise bad from None


def _split_url(text: str, allowed: str) -> SplitResult:
    """An http or https URL with a host that is one, without user and password."""
    if len(text) > MAX_URL_CHARACTERS or any(character in text for character in ' \\"<>'):
        raise Rejected("is not a URL", allowed)
    bad = Rejected("is not an http or https URL", allowed)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise bad from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise bad
    if "@" in parts.netloc:
        raise Rejected("names a user", f"{allowed}, without user and password")
    # The grammar of server names, which has no room for an empty port, but for underscores.
    _server_name(parts.netloc.replace("_", "-"), bad)
    return parts
