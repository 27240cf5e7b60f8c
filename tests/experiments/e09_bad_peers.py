"""E9: a server with five peers, of which one is good.

One is down, one drops every packet, one sends its answers at a byte a second, one answers 500. Pass:
the lag of the good one is 15 seconds at most at p99, the courier's memory stays within 10 MB, and
each of the others is tried once for each step of its back-off.
"""

import sys
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

from cluster import LagWatch, Replica, Writer, cluster, need_namespaces, wait_until_equal
from parts.namespaces import Host, Network

from identity.replication.peer import Peer, Protocol
from identity.replication.schedule import FIRST_DELAY_MS, LONGEST_SOON_MS

EVERY_S = 0.2
MAX_LAG_S = 15
MAX_GROWTH_BYTES = 10_000_000
PORT = 8090


class Dripping(BaseHTTPRequestHandler):
    """Never comes to an end."""

    def do_POST(self) -> None:
        self.server.tried_at_s.append(time.monotonic())
        try:
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1_000:
                self.wfile.write(bytes([byte]))
                time.sleep(1)
        except OSError:
            pass  # The caller has had enough.

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


class Failing(Dripping):
    def do_POST(self) -> None:
        self.server.tried_at_s.append(time.monotonic())
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()


def main() -> None:
    seconds = 15 if "--quick" in sys.argv else 120
    need_namespaces()
    with Network() as network, cluster(2, network=network) as (sender, good):
        tries: dict[str, list[float]] = {}
        for number, (name, handler) in enumerate(
            {"down": None, "hole": None, "drip": Dripping, "failing": Failing}.items(), start=11
        ):
            host = network.host(f"10.0.0.{number}")
            if name == "hole":
                network.cut(sender.host, host)
            if handler:
                tries[name] = serve(host, handler)
            url = f"http://{host.address}:{PORT}"
            sender.meet(Peer(f"{name}.example.org", url, Protocol.V2, good.as_peer().keys))
        with ExitStack() as stack:
            # Connections and pools are made in the first seconds.
            stack.enter_context(Writer(sender, EVERY_S))
            time.sleep(seconds / 5)
            before_bytes = courier_bytes(sender)
            watch = stack.enter_context(LagWatch(sender, good))
            time.sleep(seconds)
            grown_bytes = courier_bytes(sender) - before_bytes
        heads = [server.heads()[sender.name] for server in (sender, good)]
        wait_until_equal([sender, good], MAX_LAG_S)
        failures = {
            row["peer"].partition(".")[0]: row["failures"]
            for row in sender.running.inside.rows("cursors")
        }
    gaps_s = [later - earlier for earlier, later in pairwise(tries["failing"])]
    print(
        f"lag of the good peer p50 {watch.percentile_s(0.5):.2f} s, "
        f"p99 {watch.percentile_s(0.99):.2f} s over {seconds} s and {heads[0][0]} statements; "
        f"memory of the courier {grown_bytes / 1e6:+.1f} MB; failures {failures}; "
        f"tries { ({name: len(times) for name, times in tries.items()}) }"
    )
    assert watch.percentile_s(0.99) <= MAX_LAG_S
    assert grown_bytes <= MAX_GROWTH_BYTES
    assert failures["b"] == 0
    assert all(failures[name] for name in ("down", "hole", "failing"))
    for step, gap_s in enumerate(gaps_s):
        # A quarter is taken off at random.
        delay_s = 0.75 * min(FIRST_DELAY_MS * 2**step, LONGEST_SOON_MS) / 1_000
        assert gap_s >= delay_s, f"try {step + 1} came after {gap_s:.1f} s"
    assert len(tries["drip"]) <= failures["drip"] + 1


def serve(host: Host, handler: type[BaseHTTPRequestHandler]) -> list[float]:
    """When it was tried, as time goes on."""
    with host.entered():
        server = ThreadingHTTPServer((str(host.address), PORT), handler)
    server.daemon_threads = True
    server.tried_at_s = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.tried_at_s


def courier_bytes(server: Replica) -> int:
    status = Path(f"/proc/{server.running.process('courier')}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return 1_024 * int(line.split()[1])


if __name__ == "__main__":
    main()
