"""Lookups while 32 clients wait for a homeserver that never answers, and 32 for such an SMTP host.

    benchmarks/black_holes.py [--rounds 5] [--seconds 4]

Prints the p99 of lookups in turns in one run: alone, beside as many clients that ask as often for
something that needs nobody else, and beside those who wait. The last two as a ratio say what the
waiting costs, the first two what any crowd does. Lookups come
at a fixed rate, below what the server can do, so that the figures are of waiting and not of how the
connections happen to share out among the processes. A client that is told to come back later does
so after a second.
"""

import argparse
import http.client
import json
import random
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

import load
from lookup import BIN, lookup_request, running, settings
from seed import seed

from identity import logs
from identity.config import load as load_config

CLIENTS = 32
SETTLING_SECONDS = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--associations", type=int, default=1_000)
    parser.add_argument("--addresses", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--rate", type=float, default=50.0, help="lookups a second of each")
    parser.add_argument("--database", default="")
    arguments = parser.parse_args()
    logs.configure("warning", "console")
    with tempfile.TemporaryDirectory() as folder, BlackHole() as hole:
        environ = settings(Path(folder), arguments.database) | {
            "IDENTITY_SERVER__WORKERS": "2",
            "IDENTITY_EMAIL__SMTP_HOST": "127.0.0.1",
            "IDENTITY_EMAIL__SMTP_PORT": str(hole.port),
            "IDENTITY_FEDERATION__ALLOW_PRIVATE_ADDRESSES": "true",
            "IDENTITY_RATE_LIMITS__LIMITS": "{"
            + ", ".join(f'{name} = "86400000/d"' for name in WIDE)
            + "}",
        }
        config = load_config(None, environ)
        seed(config, arguments.associations)
        request = lookup_request(config, arguments)
        with running([str(BIN / "identity"), "serve"], environ, request.port):
            compare(request, hole.port, arguments)


WIDE = (
    "lookup_account",
    "register_ip",
    "register_homeserver",
    "userinfo_host",
    "email_recipient",
    "email_account",
    "email_ip",
    "email_domain",
    "email_global",
)


def compare(request: load.Request, hole: int, arguments) -> None:
    token = request.data.partition(b"Bearer ")[2].partition(b"\r\n")[0].decode()
    load.run(request, arguments.connections, 2, arguments.rate)
    rows = []
    for _ in range(arguments.rounds):
        alone = load.run(request, arguments.connections, arguments.seconds, arguments.rate)
        crowded = []
        for waits in (False, True):
            with Crowd(request.port, hole, token, waits=waits) as crowd:
                time.sleep(2 * SETTLING_SECONDS)
                crowded.append(
                    load.run(request, arguments.connections, arguments.seconds, arguments.rate)
                )
        rows.append((alone, *crowded, crowd.answers))
    for name, index in (("alone", 0), ("crowd", 1), ("waiting", 2)):
        p50 = statistics.median(row[index].percentile(0.5) for row in rows) * 1e3
        p99 = statistics.median(row[index].percentile(0.99) for row in rows) * 1e3
        rate = statistics.median(row[index].rate for row in rows)
        print(f"{name:8} {rate:6.0f} req/s  p50 {p50:6.2f} ms  p99 {p99:6.2f} ms")
    for name, upper, lower in (("waiting / crowd", 2, 1), ("waiting / alone", 2, 0)):
        ratios = [row[upper].percentile(0.99) / row[lower].percentile(0.99) for row in rows]
        print(
            f"p99 {name}: median {statistics.median(ratios):.2f}"
            f" (min {min(ratios):.2f}, max {max(ratios):.2f})"
        )
    print("answers to the waiting clients in the last round:", rows[-1][3])


class BlackHole:
    """Accepts connections and says nothing."""

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self._listener.getsockname()[1]
        self._held = []
        threading.Thread(target=self._hold, daemon=True).start()
        return self

    def _hold(self) -> None:
        try:
            while True:
                self._held.append(self._listener.accept()[0])
        except OSError:
            return

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for connection in self._held:
            connection.close()


class Crowd:
    """32 clients that register, 32 that ask for a mail, each again and again; or, if they are not
    to wait, 64 that ask who they are."""

    def __init__(self, port: int, hole: int, token: str, *, waits: bool) -> None:
        self._port, self._hole, self._token, self._waits = port, hole, token, waits
        self._over = threading.Event()
        self.answers: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self):
        for number in range(CLIENTS):
            name = f"127.0.0.1:{self._hole}"
            self._start("/account/register", {"access_token": "x", "matrix_server_name": name})
            address = {"email": f"user{number}@example.org", "client_secret": f"s{number}"}
            self._start("/validate/email/requestToken", {**address, "send_attempt": 1})
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _start(self, path: str, body: dict[str, object]) -> None:
        threading.Thread(target=self._ask, args=(path, body), daemon=True).start()

    def _ask(self, path: str, body: dict[str, object]) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        self._over.wait(random.uniform(0.0, SETTLING_SECONDS))
        while not self._over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            try:
                if self._waits:
                    target = f"/_matrix/identity/v2{path}"
                    connection.request("POST", target, json.dumps(body), headers)
                else:
                    connection.request("GET", "/_matrix/identity/v2/account", headers=headers)
                answer = connection.getresponse()
                answer.read()
            except OSError:
                return
            finally:
                connection.close()
            with self._lock:
                key = f"{path if self._waits else '/account'} {answer.status}"
                self.answers[key] = self.answers.get(key, 0) + 1
            # Strangers do not come back in step.
            self._over.wait(random.uniform(0.5, 1.5))


if __name__ == "__main__":
    main()
