"""Lookups, beside a bare Flask app on the same gunicorn, in turns in one run.

    benchmarks/lookup.py [--associations 100000] [--addresses 10] [--rounds 5] [--database URL]

Prints requests a second and CPU time a request of both, and their ratios round by round: the
ratio of CPU times hardly depends on what else the machine does.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import load
from seed import seed

from identity import logs
from identity.clock import SystemClock
from identity.config import load as load_config
from identity.lookup.hashing import encode_hash, lookup_hash
from identity.mxid import UserId
from identity.opening import open_database
from identity.services import assemble

WORKERS, THREADS = 1, 8
BIN = Path(sys.executable).parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--associations", type=int, default=100_000)
    parser.add_argument("--addresses", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=2)
    parser.add_argument("--database", default="")
    arguments = parser.parse_args()
    logs.configure("warning", "console")
    with tempfile.TemporaryDirectory() as folder:
        environ = settings(Path(folder), arguments.database)
        config = load_config(None, environ)
        seed(config, arguments.associations)
        request = lookup_request(config, arguments)
        compare(environ, request, arguments)


def settings(folder: Path, database: str) -> dict[str, str]:
    port = free_port()
    return {
        "IDENTITY_SERVER__DATA_DIR": str(folder),
        "IDENTITY_SERVER__LISTEN": f"127.0.0.1:{port}",
        "IDENTITY_SERVER__WORKERS": str(WORKERS),
        "IDENTITY_SERVER__THREADS": str(THREADS),
        "IDENTITY_DATABASE__URL": database,
        # The limit is in force and pays its way; it is only too wide to be reached.
        "IDENTITY_RATE_LIMITS__LIMITS": '{lookup_account = "86400000/d"}',
    }


def lookup_request(config, arguments) -> load.Request:
    services = assemble(
        config, open_database(config, SystemClock(), migrate=False).database, SystemClock()
    )
    token = services.accounts.issue_token(UserId.parse("@bench:example.org"))
    pepper, _ = services.lookups.hash_details()
    services.close()
    step = max(1, arguments.associations // arguments.addresses)
    # Half of them are bound, half are not.
    addresses = [
        f"{'user' if n % 2 else 'nobody'}{n * step}@example.org" for n in range(arguments.addresses)
    ]
    hashes = [encode_hash(lookup_hash(address, "email", pepper)) for address in addresses]
    body = json.dumps({"algorithm": "sha256", "pepper": pepper, "addresses": hashes}).encode()
    path = "/_matrix/identity/v2/lookup"
    return load.Request.post(
        "127.0.0.1", config.server.listen.port, path, body, Authorization=f"Bearer {token}"
    )


def compare(environ: dict[str, str], request: load.Request, arguments) -> None:
    bare_port = free_port()
    bare = [str(BIN / "gunicorn"), "-k", "gthread", "--workers", str(WORKERS)]
    bare += ["--threads", str(THREADS), "--bind", f"127.0.0.1:{bare_port}", "--keep-alive", "5"]
    bare += ["--chdir", str(Path(__file__).parent), "--no-control-socket", "bare:app"]
    body = request.data.partition(b"\r\n\r\n")[2]
    bare_request = load.Request.post("127.0.0.1", bare_port, "/", body)
    ready = f"http://127.0.0.1:{request.port}/ready"
    with (
        running([str(BIN / "identity"), "serve"], environ, request.port) as identity,
        running(bare, {}, bare_port) as ceiling,
    ):
        urllib.request.urlopen(ready).close()
        rows = [
            (measure(identity, request, arguments), measure(ceiling, bare_request, arguments))
            for _ in range(arguments.rounds + 1)
        ]
    report(rows[1:], arguments)  # The first round warms up.


def measure(
    process: subprocess.Popen, request: load.Request, arguments
) -> tuple[load.Result, float]:
    before = cpu_seconds(process.pid)
    result = load.run(request, arguments.connections, arguments.seconds)
    return result, (cpu_seconds(process.pid) - before) / result.requests


def report(rows, arguments) -> None:
    print(f"{arguments.associations} associations, {arguments.addresses} addresses a lookup")
    print(f"{WORKERS} worker, {THREADS} threads, {arguments.connections} connections")
    print(
        f"{'':12}{'req/s':>8}{'p50 ms':>8}{'p99 ms':>8}{'CPU µs':>8}   each the median of {len(rows)}"
    )
    for name, index in (("lookup", 0), ("bare Flask", 1)):
        results = [row[index] for row in rows]
        rate = statistics.median(result.rate for result, _ in results)
        p50 = statistics.median(result.percentile(0.5) for result, _ in results) * 1e3
        p99 = statistics.median(result.percentile(0.99) for result, _ in results) * 1e3
        cpu = statistics.median(cpu for _, cpu in results) * 1e6
        print(f"{name:12}{rate:8.0f}{p50:8.2f}{p99:8.2f}{cpu:8.0f}")
    rates = [ours.rate / bare.rate for (ours, _), (bare, _) in rows]
    cpus = [bare_cpu / our_cpu for (_, our_cpu), (_, bare_cpu) in rows]
    for name, ratios in (("req/s", rates), ("CPU", cpus)):
        print(
            f"ratio {name}: median {statistics.median(ratios):.2f}"
            f" (min {min(ratios):.2f}, max {max(ratios):.2f})"
        )


@contextmanager
def running(command: list[str], environ: dict[str, str], port: int) -> Iterator[subprocess.Popen]:
    log = tempfile.TemporaryFile()  # noqa: SIM115 - it is gone with the process
    process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=log, stderr=log)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        else:
            log.seek(0)
            raise RuntimeError(log.read().decode())
        yield process
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all that descend from it."""
    total = 0.0
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        total += cpu_seconds(int(child))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return total + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


if __name__ == "__main__":
    main()
