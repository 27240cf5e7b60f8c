"""From a homeserver's name to the places where it may be reached, best first.

The six steps of the specification: IP literal; explicit port; well-known delegation, whose
result goes through the same steps but for a second delegation; SRV of the current and of the
deprecated service; the name itself on port 8448. A delegation that cannot be had or read is
none: whoever answers in the end must show a certificate for the name, so nothing is lost.

No step before the request takes more than half of the time that is left.

Source: Matrix server-server API, "Server discovery"; MSC4040; RFC 2782.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Final
from urllib.parse import urldefrag, urljoin, urlsplit

from identity.clock import Clock
from identity.errors import InvalidRequest
from identity.federation import wellknown
from identity.federation.resolver import Resolver, Service
from identity.federation.transport import CallError, Deadline, Destination, Response
from identity.lru import LruCache
from identity.mxid import ServerName

DEFAULT_PORT: Final = 8448
HTTPS_PORT: Final = 443
MAX_REDIRECTS: Final = 5
MAX_DESTINATIONS: Final = 8
MAX_CACHED_NAMES: Final = 10_000

_SERVICES: Final = ("_matrix-fed._tcp.", "_matrix._tcp.")
_NOT_OFFERED: Final = "."
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

Get = Callable[[Destination, str, int, Deadline], Response]


@dataclass(frozen=True, slots=True)
class _Delegation:
    """What was learned from a well-known. `server` is None after a failure, `failures` counts them."""

    server: ServerName | None
    failures: int
    learned_at_ms: int
    expires_at_ms: int


class Discovery:
    """Finds homeservers, and remembers delegations for this process."""

    def __init__(self, get: Get, resolver: Resolver, clock: Clock, random: Random) -> None:
        self._get = get
        self._resolver = resolver
        self._clock = clock
        self._random = random
        self._delegations: LruCache[str, _Delegation] = LruCache(MAX_CACHED_NAMES)

    def find(self, server: ServerName, deadline: Deadline) -> list[Destination]:
        """At most `MAX_DESTINATIONS`; empty when the name says it offers no such service."""
        name = server
        if not _is_final(name):
            name = self._find_delegate(server, deadline) or server
        if not _is_final(name):
            services = self._find_services(name, deadline)
            if services:
                destinations = (
                    Destination(service.target, service.port, str(name), name.host)
                    for service in order_services(services, self._random)
                    if service.target != _NOT_OFFERED
                )
                return list(islice(destinations, MAX_DESTINATIONS))
        return [Destination.direct(name, DEFAULT_PORT)]

    def _find_services(self, name: ServerName, deadline: Deadline) -> list[Service]:
        for service in _SERVICES:
            try:
                found = self._resolver.services(service + name.host, deadline.half().left_s())
            except OSError:
                continue
            if found:
                return found
        return []

    def _find_delegate(self, server: ServerName, deadline: Deadline) -> ServerName | None:
        now_ms = self._clock.now_ms()
        known = self._delegations.find(server.host)
        # A clock that was set back must not keep an entry alive beyond its lifetime.
        if known and known.learned_at_ms <= now_ms < known.expires_at_ms:
            return known.server
        jitter = self._random.uniform(0, wellknown.MAX_JITTER)
        try:
            response = self._fetch(server, deadline.half())
            delegate = wellknown.parse(response.body)
        except (CallError, InvalidRequest):
            failures = known.failures + 1 if known else 1
            lifetime_ms = wellknown.failure_lifetime_ms(failures, jitter)
            learned = _Delegation(None, failures, now_ms, now_ms + lifetime_ms)
        else:
            lifetime_ms = wellknown.lifetime_ms(response.headers, now_ms, jitter)
            learned = _Delegation(delegate, 0, now_ms, now_ms + lifetime_ms)
        self._delegations.put(server.host, learned)
        return learned.server

    def _fetch(self, server: ServerName, deadline: Deadline) -> Response:
        """Follows redirects, to https only. Raises: CallError for all but a 200."""
        url = f"https://{server}{wellknown.PATH}"
        seen: set[str] = set()
        while url not in seen:
            if len(seen) > MAX_REDIRECTS:
                raise CallError("too many redirects")
            seen.add(url)
            destination, target = _split(url)
            response = self._get(destination, target, wellknown.MAX_BODY_BYTES, deadline)
            if response.status == 200:
                return response
            if response.status not in _REDIRECTS:
                raise CallError("no well-known")
            try:
                url = urldefrag(urljoin(url, response.headers.get("Location", ""))).url
            except ValueError:
                raise CallError("malformed redirect") from None
        raise CallError("redirect loop")


def order_services(services: Iterable[Service], random: Random) -> Iterator[Service]:
    """By priority; within one priority at random, in proportion to weight (RFC 2782)."""
    # Weight 0 goes first within its priority, so that it has a small chance and not none.
    waiting = sorted(services, key=lambda service: (service.priority, service.weight))
    while waiting:
        rivals = [service for service in waiting if service.priority == waiting[0].priority]
        mark = random.randint(0, sum(service.weight for service in rivals))
        for chosen in rivals:
            mark -= chosen.weight
            if mark <= 0:
                break
        yield chosen
        waiting.remove(chosen)


def _is_final(name: ServerName) -> bool:
    return name.is_ip_literal or name.port is not None


def _split(url: str) -> tuple[Destination, str]:
    """Whom to ask for what. Raises: CallError when the URL is not one that we follow."""
    try:
        parts = urlsplit(url)
        # The grammar of server names leaves no room for user names and other tricks.
        name = ServerName.parse(parts.netloc)
    except (ValueError, InvalidRequest):
        raise CallError("malformed redirect") from None
    if parts.scheme != "https":
        raise CallError("redirect to another scheme")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Destination.direct(name, HTTPS_PORT), target
