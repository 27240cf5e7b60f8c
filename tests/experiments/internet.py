"""A server with the whole Internet before it, in namespaces, where each SYN it sends is counted.

Every address leads to the one device; behind it there is one public host, with a homeserver and
the name server for all names. The kernel counts the SYNs, so those to loopback count as well.
"""

import contextlib
import itertools
import json
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.message
import dns.rrset
from parts import namespaces
from parts.homeserver import FakeHomeserver
from parts.namespaces import Host, Network
from parts.processes import RunningServer
from run import NOT_RUN

PUBLIC = "1.2.3.4"
CALLERS = 4
_OWN = "5.6.7.8"
_COUNTERS = """
table inet seen {{
    counter allowed {{
    }}
    counter denied {{
    }}
    counter loopback {{
    }}
    chain output {{
        type filter hook output priority 0
        meta l4proto != tcp accept
        tcp flags & (syn | ack) != syn accept
        ip daddr 127.0.0.1 tcp dport {own_port} accept
        ip daddr {public} counter name allowed accept
        oifname "lo" counter name loopback
        counter name denied drop
    }}
}}
"""
# The public host takes both ports of a homeserver to the one where ours listens.
_PORTS = """
table ip homeserver {{
    chain prerouting {{
        type nat hook prerouting priority -100
        tcp dport {{ 443, 8448 }} redirect to :{port}
    }}
}}
"""


def say_not_run(reason: str) -> None:
    print(reason)
    sys.exit(NOT_RUN)


class NameServer:
    """Over UDP, in a thread. Names have records by type; several answers go round and round."""

    def __init__(self, address: str) -> None:
        self.asked = 0
        self._answers: dict[tuple[str, str], Iterator[list[str]]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def put(self, name: str, kind: str, *answers: list[str]) -> None:
        self._answers[name, kind] = itertools.cycle(answers)

    def host(self, name: str, address: str) -> None:
        self.put(name, "AAAA" if ":" in address else "A", [address])

    def _serve(self) -> None:
        while True:
            data, sender = self._socket.recvfrom(4096)
            query = dns.message.from_wire(data)
            question = query.question[0]
            kind = dns.rdatatype.to_text(question.rdtype)
            name = question.name.to_text(omit_final_dot=True).lower()
            answer = dns.message.make_response(query)
            if (name, kind) in self._answers:
                self.asked += 1
                records = next(self._answers[name, kind])
                answer.answer.append(dns.rrset.from_text(question.name, 0, "IN", kind, *records))
            self._socket.sendto(answer.to_wire(), sender)


@dataclass
class Internet:
    """What an experiment has to do with."""

    server: RunningServer
    server_host: Host
    homeserver: FakeHomeserver
    names: NameServer
    tries: int = 0
    _local: threading.local = field(default_factory=threading.local)

    def register(self, homeserver: str) -> int:
        """Have the server call `homeserver`; the status that it answers its client."""
        body = {"access_token": "token", "matrix_server_name": homeserver}
        self.tries += 1
        with self.server_host.entered():
            return self.server.post("/account/register", json=body).status

    def syns(self) -> dict[str, int]:
        """How many the server has sent: `allowed`, `denied`, and of these over `loopback`."""
        listed: dict[str, Any] = json.loads(self.server_host.run("nft", "-j", "list", "counters"))
        counters = [item["counter"] for item in listed["nftables"] if "counter" in item]
        return {counter["name"]: counter["packets"] for counter in counters}

    def try_without_policy(self, addresses: list[str]) -> None:
        """What a client that judges nothing does with them."""
        with self.server_host.entered():
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                with socket.socket(family, socket.SOCK_STREAM) as client:
                    client.setblocking(False)
                    # What cannot be reached at all is refused here.
                    with contextlib.suppress(OSError):
                        client.connect((address, 8448))


@contextlib.contextmanager
def internet() -> Iterator[Internet]:
    """Or end the program where namespaces or nft are missing."""
    if reason := namespaces.missing() or (None if shutil.which("nft") else "needs nft (nftables)"):
        say_not_run(reason)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        network = stack.enter_context(Network())
        server_host, public_host = network.host(_OWN), network.host(PUBLIC)
        server_host.name_server(PUBLIC)
        with public_host.entered():
            homeserver = stack.enter_context(FakeHomeserver("*.hs.test", bind=PUBLIC))
            names = NameServer(PUBLIC)
        homeserver.openid_users["token"] = "@alice:hs.test"
        settings = {
            "FEDERATION__CA_FILE": str(homeserver.ca_file),
            "FEDERATION__TIMEOUT": "5s",
            "RATE_LIMITS__ENABLED": "false",
            # Of which a quarter may call homeservers: no caller is sent away for want of a place.
            "SERVER__THREADS": str(4 * CALLERS),
        }
        server = RunningServer(folder / "server", settings, prefix=server_host.command)
        server_host.run(
            "nft", "-f", "-", stdin=_COUNTERS.format(own_port=server.port, public=PUBLIC)
        )
        public_host.run("nft", "-f", "-", stdin=_PORTS.format(port=homeserver.port))
        with server_host.entered():
            server.start()
        stack.callback(server.close)
        yield Internet(server, server_host, homeserver, names)
