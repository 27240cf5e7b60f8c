"""Name resolution for tests: tables in place of the system, and a name server on loopback."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Self

import dns.message
import dns.rcode
import dns.resolver
import dns.rrset

from identity.federation.addresses import IPAddress
from identity.federation.resolver import Service


class FakeResolver:
    """Answers from tables. A host that is in none does not exist; nothing is asked elsewhere."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broken_services = False  # SRV look-ups fail, as with a dead name server
        self._hosts: dict[str, Iterator[list[IPAddress]]] = {}
        self._services: dict[str, list[Service]] = {}

    def host(self, name: str, *addresses: str) -> None:
        self.alternate(name, list(addresses))

    def alternate(self, name: str, *answers: list[str]) -> None:
        """Each look-up gets the next answer, round and round: how rebinding is done."""
        self._hosts[name] = itertools.cycle([[ip_address(text) for text in a] for a in answers])

    def service(self, name: str, *services: Service) -> None:
        self._services[name] = list(services)

    def addresses(self, host: str, timeout_s: float) -> list[IPAddress]:
        self.asked.append(host)
        if host not in self._hosts:
            raise OSError("no such host")
        return next(self._hosts[host])

    def services(self, name: str, timeout_s: float) -> list[Service]:
        self.asked.append(name)
        if self.broken_services:
            raise TimeoutError
        return self._services.get(name, [])


class FakeDnsServer:
    """A name server over UDP. `records` are master-file lines by name; `mute` sends no answer."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.rcode = dns.rcode.NOERROR
        self.mute = False
        self.queries = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # An empty datagram ends the loop; closing the socket would not wake it.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    @property
    def client(self) -> Callable[[], dns.resolver.Resolver]:
        """Makes resolvers that ask this server."""

        def make() -> dns.resolver.Resolver:
            resolver = dns.resolver.Resolver(configure=False)
            resolver.nameservers = ["127.0.0.1"]
            resolver.port = self._socket.getsockname()[1]
            return resolver

        return make

    def _serve(self) -> None:
        while True:
            data, sender = self._socket.recvfrom(4096)
            if not data:
                return
            self.queries += 1
            if self.mute:
                continue
            query = dns.message.from_wire(data)
            question = query.question[0]
            answer = dns.message.make_response(query)
            answer.set_rcode(self.rcode)
            lines = self.records.get(question.name.to_text(omit_final_dot=True))
            if lines:
                answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "SRV", *lines))
            elif lines is None and self.rcode == dns.rcode.NOERROR:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            self._socket.sendto(answer.to_wire(), sender)
