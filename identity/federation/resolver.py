"""Names to addresses and services.

Addresses come from the system (hosts file, search domains and all), SRV records from its
name servers. Nothing is kept here: how long a record lives is between the name servers and
whoever set its TTL, and an answer is used for one call only.

Source: RFC 2782.
"""

import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, Protocol

import dns.exception
import dns.resolver

from identity.federation.addresses import IPAddress

MAX_LOOKUP_S: Final = 5.0

# The system's look-up cannot be interrupted. One that hangs keeps its thread until the system
# gives up, so that many may be left behind and no more.
MAX_LOOKUPS: Final = 32


@dataclass(frozen=True, slots=True)
class Service:
    """An SRV record. `target` has no final dot, except that "." means: not offered here."""

    priority: int
    weight: int
    port: int
    target: str


class Resolver(Protocol):
    """Both ask for at most `timeout_s`, and never longer than `MAX_LOOKUP_S`."""

    def addresses(self, host: str, timeout_s: float) -> list[IPAddress]:
        """IPv4 and IPv6, best first. Raises: OSError; TimeoutError, which is one."""

    def services(self, name: str, timeout_s: float) -> list[Service]:
        """Empty where there are none. Raises: OSError; TimeoutError, which is one."""


class SystemResolver:
    """Asks the operating system, and the name servers it is set up with."""

    def __init__(
        self,
        getaddrinfo: Callable[..., list[Any]] = socket.getaddrinfo,
        dns_resolver: Callable[[], dns.resolver.Resolver] = dns.resolver.Resolver,
    ) -> None:
        self._getaddrinfo = getaddrinfo
        self._dns_resolver = dns_resolver
        self._free_lookups = threading.BoundedSemaphore(MAX_LOOKUPS)

    def addresses(self, host: str, timeout_s: float) -> list[IPAddress]:
        if not self._free_lookups.acquire(blocking=False):
            raise OSError("Too many name look-ups are under way")
        answers: queue.SimpleQueue[list[IPAddress] | OSError] = queue.SimpleQueue()
        threading.Thread(target=self._look_up, args=(host, answers), daemon=True).start()
        try:
            answer = answers.get(timeout=min(timeout_s, MAX_LOOKUP_S))
        except queue.Empty:
            raise TimeoutError("The name look-up took too long") from None
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _look_up(self, host: str, answers: "queue.SimpleQueue[list[IPAddress] | OSError]") -> None:
        try:
            found = self._getaddrinfo(host, None, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(ip_address(entry[4][0]) for entry in found)))
        except OSError as error:
            answers.put(error)
        except ValueError:
            answers.put(OSError("The name cannot be looked up"))
        finally:
            self._free_lookups.release()

    def services(self, name: str, timeout_s: float) -> list[Service]:
        try:
            # Made anew each time, so that a change of name servers needs no restart.
            answer = self._dns_resolver().resolve(
                name,
                "SRV",
                lifetime=min(timeout_s, MAX_LOOKUP_S),
                search=False,
                raise_on_no_answer=False,
            )
        except dns.resolver.NXDOMAIN:
            return []
        except dns.exception.Timeout:
            raise TimeoutError("The SRV look-up took too long") from None
        except dns.exception.DNSException as error:
            raise OSError("The SRV look-up failed") from error
        return [
            Service(
                record.priority,
                record.weight,
                record.port,
                record.target.to_text(omit_final_dot=True),
            )
            for record in answer.rrset or ()
        ]
