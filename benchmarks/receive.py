"""Replication: what a receiver takes in, and how soon what is stated is found elsewhere.

    benchmarks/receive.py [--statements 20000] [--rounds 3] [--join 100000] [--binds 200]
                          [--database URL] [--profile FILE]

Three figures, in one run:
- statements a second that are received from one peer, from the bytes of a push to the commit, as
  a ratio to signedjson.sign.verify_signed_json alone over the same statements: on one core, in
  turns, by CPU time and by the clock;
- the time in which a new peer gets everything, two `identity serve` over loopback;
- from the answer to a bind to the lookup on the peer that finds it.
"""

import argparse
import cProfile
import gc
import gzip
import json
import random
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flask.testing import FlaskClient
from lookup import BIN, free_port, running
from rich.progress import track
from seed import seed
from signedjson.key import decode_verify_key_bytes
from signedjson.sign import verify_signed_json

from identity import logs
from identity.app import create_app
from identity.associations.statement import Statement, encode_signed
from identity.associations.store import find_origin
from identity.clock import SystemClock
from identity.config import load as load_config
from identity.federation import xmatrix
from identity.lookup.hashing import encode_hash, lookup_hash
from identity.mxid import UserId
from identity.opening import open_database
from identity.replication.batch import MAX_ITEMS, Batch, Item, cut
from identity.replication.chain import EMPTY_HEAD, next_head
from identity.replication.client import COMPRESSED_FROM_BYTES, PATH
from identity.replication.peer import Peer, Protocol
from identity.services import Services, assemble
from identity.signing import SigningKey
from identity.threepid import ThreePid

RECEIVER, SENDER = "b.example.org", "a.example.org"
# Of a user whose homeserver is never called: the address is not allowed.
HOMESERVER = "127.0.0.1:1"
V2 = "/_matrix/identity/v2"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--statements", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--join", type=int, default=100_000)
    parser.add_argument("--binds", type=int, default=200)
    parser.add_argument("--database", default="", help="of the receiver; used for the first figure")
    parser.add_argument("--profile", type=Path, help="write a profile of the first figure there")
    arguments = parser.parse_args()
    logs.configure("warning", "console")
    receive(arguments)
    if arguments.join or arguments.binds:
        with tempfile.TemporaryDirectory() as folder:
            between_servers(Path(folder), arguments)


# --- receiving beside bare verification ---------------------------------------------------


def receive(arguments) -> None:
    key = SigningKey.generate("ed25519:0")
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        opened(settings(Path(folder), RECEIVER, arguments.database)) as services,
    ):
        keys = {key.key_id: key.public_key}
        services.peers.add(Peer(SENDER, "http://127.0.0.1:1", Protocol.V2, keys))
        client = create_app(services).test_client()
        head = EMPTY_HEAD
        for number in track(range(arguments.rounds), "Receiving"):
            # Each round brings other people, so none has less to do than the first.
            items = make_items(key, number * arguments.statements, arguments.statements)
            requests = []
            for batch in batches(items, head):
                requests.append(make_request(key, batch))
                head = batch.head
            texts = [item.signed for item in items]
            # What the benchmark itself holds is no garbage to look through, as in a web process
            # what was loaded is not.
            gc.collect()
            gc.freeze()
            ours = timed(lambda requests=requests: push(client, requests), arguments.profile)
            rows.append((ours, timed(lambda texts=texts: verify(key, texts))))
    count = arguments.statements
    print(f"{count} statements in batches of {MAX_ITEMS}, each the median of {len(rows)}")
    for name, index in (("received", 0), ("verified only", 1)):
        wall_s = statistics.median(row[index].wall_s for row in rows)
        cpu_s = statistics.median(row[index].cpu_s for row in rows)
        print(f"{name:14}{count / wall_s:8.0f}/s{cpu_s / count * 1e6:8.0f} µs CPU each")
    for name, ratios in (
        ("by the clock", [bare.wall_s / ours.wall_s for ours, bare in rows]),
        ("CPU", [bare.cpu_s / ours.cpu_s for ours, bare in rows]),
    ):
        print(
            f"ratio {name}: median {statistics.median(ratios):.2f}"
            f" (min {min(ratios):.2f}, max {max(ratios):.2f})"
        )


def make_items(key: SigningKey, first: int, count: int) -> list[Item]:
    now_ms = SystemClock().now_ms()
    items = []
    for number in range(count):
        threepid = ThreePid.email(f"user{first + number}@example.org")
        user = UserId.parse(f"@user{first + number}:{HOMESERVER}")
        value = Statement.make(threepid, user, now_ms, None).to_json()
        items.append(Item.of(first + number + 1, encode_signed(key.sign(value, SENDER))))
    return items


def batches(items: list[Item], head: bytes) -> Iterator[Batch]:
    """`head`: of the chain before the first."""
    after = items[0].origin_id - 1
    while items:
        chosen = cut(items)
        items = items[len(chosen) :]
        for item in chosen:
            head = next_head(head, item.origin_id, item.leaf)
        yield Batch(after, chosen, head)
        after = chosen[-1].origin_id


def push(client: FlaskClient, requests: list[tuple[dict[str, str], bytes]]) -> None:
    for headers, body in requests:
        answer = client.post(PATH + "push", headers=headers, data=body)
        if answer.status_code != 200 or answer.json["refused"]:
            raise RuntimeError(answer.text[:500])


def make_request(key: SigningKey, batch: Batch) -> tuple[dict[str, str], bytes]:
    content = batch.encode()
    uri = PATH + "push"
    message = xmatrix.signed_message("POST", uri, SENDER, RECEIVER, content)
    headers = {
        "Authorization": f'X-Matrix origin="{SENDER}",destination="{RECEIVER}",'
        f'key="{key.key_id}",sig="{key.sign_message(message)}"',
        "Content-Type": "application/json",
    }
    if len(content) <= COMPRESSED_FROM_BYTES:
        return headers, content
    return headers | {"Content-Encoding": "gzip"}, gzip.compress(content, 1, mtime=0)


def verify(key: SigningKey, texts: list[str]) -> None:
    verify_key = decode_verify_key_bytes(key.key_id, key.public_key)
    for text in texts:
        verify_signed_json(json.loads(text), SENDER, verify_key)


@dataclass(frozen=True)
class Times:
    wall_s: float
    cpu_s: float


def timed(work: Callable[[], None], profile: Path | None = None) -> Times:
    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    if profile is None:
        work()
    else:
        with cProfile.Profile() as profiler:
            work()
        profiler.dump_stats(profile)
    return Times(time.perf_counter() - began_s, time.process_time() - cpu_began_s)


# --- between two servers ------------------------------------------------------------------


def between_servers(folder: Path, arguments) -> None:
    environs = {name: settings(folder / name, name) for name in (SENDER, RECEIVER)}
    if arguments.join:
        seed(load_config(None, environs[SENDER]), arguments.join)
    with (
        opened(environs[SENDER]) as sender,
        opened(environs[RECEIVER]) as receiver,
        served(environs[SENDER]),
        served(environs[RECEIVER]),
    ):
        receiver.peers.add(as_peer(sender, environs[SENDER]))
        began_s = time.perf_counter()
        sender.peers.add(as_peer(receiver, environs[RECEIVER]))
        while last_id(receiver) < arguments.join:
            time.sleep(0.05)
        joined_s = time.perf_counter() - began_s
        if arguments.join:
            print(
                f"a new peer has {arguments.join} statements after {joined_s:.1f} s"
                f" ({arguments.join / joined_s:.0f}/s)"
            )
        if arguments.binds:
            report_delays(bind_and_find(environs, receiver, arguments.binds))


def report_delays(delays_s: list[float]) -> None:
    ordered = sorted(delays_s)
    p50_ms, p99_ms = (1e3 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
    print(
        f"from bind to found on the peer: p50 {p50_ms:.0f} ms, p99 {p99_ms:.0f} ms, n={len(ordered)}"
    )


def bind_and_find(
    environs: dict[str, dict[str, str]], receiver: Services, count: int
) -> list[float]:
    bind_url = (
        f"http://{environs[SENDER]['IDENTITY_INTERNAL__LISTEN']}/_matrix/identity/internal/bind"
    )
    lookup_url = f"http://{environs[RECEIVER]['IDENTITY_SERVER__LISTEN']}{V2}/lookup"
    token = receiver.accounts.issue_token(UserId.parse("@bench:example.org"))
    pepper, _ = receiver.lookups.hash_details()
    delays_s = []
    for number in track(range(count), "Binding"):
        address = f"bind{number}@example.org"
        # At any moment of the courier's round.
        time.sleep(random.uniform(0.05, 0.35))
        body = {"medium": "email", "address": address, "mxid": f"@u{number}:{HOMESERVER}"}
        post(bind_url, body)
        began_s = time.perf_counter()
        asked = encode_hash(lookup_hash(address, "email", pepper))
        wanted = {"algorithm": "sha256", "pepper": pepper, "addresses": [asked]}
        while not post(lookup_url, wanted, token)["mappings"]:
            time.sleep(0.002)
        delays_s.append(time.perf_counter() - began_s)
    return delays_s


def post(url: str, body: dict, token: str = "") -> dict:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def as_peer(services: Services, environ: dict[str, str]) -> Peer:
    name = environ["IDENTITY_SERVER__NAME"]
    url = f"http://{environ['IDENTITY_SERVER__LISTEN']}"
    return Peer(name, url, Protocol.V2, services.signing_keys.all_public())


def last_id(services: Services) -> int:
    """How much of the sender's log is held."""
    origin = services.database.read(lambda tx: find_origin(tx, SENDER))
    return 0 if origin is None else origin.last_id


@contextmanager
def opened(environ: dict[str, str]) -> Iterator[Services]:
    config = load_config(None, environ)
    database = open_database(config, SystemClock(), migrate=True).database
    with closing(assemble(config, database, SystemClock())) as services:
        yield services


@contextmanager
def served(environ: dict[str, str]) -> Iterator[None]:
    port = int(environ["IDENTITY_SERVER__LISTEN"].rpartition(":")[2])
    with running([str(BIN / "identity"), "serve"], environ, port):
        yield


def settings(folder: Path, name: str, database: str = "") -> dict[str, str]:
    return {
        "IDENTITY_SERVER__NAME": name,
        "IDENTITY_SERVER__DATA_DIR": str(folder),
        "IDENTITY_SERVER__LISTEN": f"127.0.0.1:{free_port()}",
        "IDENTITY_SERVER__WORKERS": "1",
        "IDENTITY_INTERNAL__LISTEN": f"127.0.0.1:{free_port()}",
        "IDENTITY_DATABASE__URL": database,
        "IDENTITY_RATE_LIMITS__ENABLED": "false",
    }


if __name__ == "__main__":
    main()
