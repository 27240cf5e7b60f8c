"""E13: a peer with a good key that does whatever it can think of.

It may speak for evil.example and replace its own statements only. Each case is one request, from
one that is not HTTP to one that is nearly right. Pass: nothing it sends is applied or answered
with 500, no process grows by more than 50 MB, and what a good peer states goes on
arriving as before.
"""

import gzip
import http.client
import json
import socket
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import NO_HOMESERVER, LagWatch, Replica, Writer, cluster, wait_until_equal

from identity.federation import xmatrix
from identity.replication.peer import Peer, Protocol, Scope, Supersede
from identity.signing import SigningKey
from identity.strict_json import encode_canonical

EVIL = "evil.example.org"
PREFIX = "/_matrix/identity/replicate/v2/"
VICTIM = "victim@example.org"
SHARED = "shared@evil.example"
MAX_GROWTH_BYTES = 50_000_000
MIB = 1024 * 1024
REFUSED = frozenset({400, 401, 403, 409, 413})
TAKEN = frozenset({200})

KEY = SigningKey.generate("ed25519:evil")
OTHER_KEY = SigningKey.generate("ed25519:evil")


@dataclass(frozen=True)
class Case:
    """A request, and what it may be answered with. `raw`: bytes that replace it altogether."""

    name: str
    body: bytes = b"{}"
    path: str = "push"
    allowed: frozenset[int] = REFUSED
    headers: dict[str, str] = field(default_factory=dict)
    signed_as: bytes | None = None
    raw: Callable[[str, int], int] | None = None


def main() -> None:
    quick = "--quick" in sys.argv
    with cluster(2) as (target, good):
        target.bind(VICTIM, f"@victim:{NO_HOMESERVER}")
        good.bind(SHARED, f"@shared:{NO_HOMESERVER}")
        wait_until_equal([target, good], 60)
        scope = Scope.parse(media=["email"], domains=["evil.example"])
        keys = {KEY.key_id: KEY.public_key}
        target.meet(Peer(EVIL, "http://127.0.0.1:1", Protocol.V2, keys, Supersede.OWN, scope))

        usual_s = lag_while(good, target, lambda: time.sleep(5 if quick else 20))
        before_bytes = memory_bytes(target)
        answers: Counter[int] = Counter()
        wrong: list[str] = []

        def attack() -> None:
            # The second time it finds what the first has left.
            for _ in range(1 if quick else 3):
                for case in cases(target):
                    status = send(target, case)
                    answers[status] += 1
                    if status not in case.allowed:
                        wrong.append(f"{case.name}: {status}")

        attacked_s = lag_while(good, target, attack)
        grown_bytes = max(
            after - before_bytes.get(pid, after) for pid, after in memory_bytes(target).items()
        )
        count = len(list(cases(target)))
        applied = [
            row for row in target.running.inside.rows("associations") if row["origin"] == EVIL
        ]
        kept = [
            row
            for row in target.running.inside.rows("statements")
            if row["origin"] == EVIL and row["signed"] is not None
        ]
        victims = [target.running.inside.found(address) for address in (VICTIM, SHARED)]
    print(
        f"{len(applied)} applied of {sum(answers.values())} requests in {count} cases, answered "
        f"{dict(sorted(answers.items()))}; memory of the process that grew most {grown_bytes / 1e6:+.1f} MB; lag of the good peer "
        f"p50 {usual_s:.2f} s before, {attacked_s:.2f} s meanwhile"
    )
    assert not wrong, wrong
    assert not applied
    assert not kept
    assert victims == [f"@victim:{NO_HOMESERVER}", f"@shared:{NO_HOMESERVER}"]
    assert grown_bytes <= MAX_GROWTH_BYTES
    # A fifth more, or what one round of polling makes.
    assert attacked_s <= max(1.2 * usual_s, usual_s + 0.2)


def lag_while(sender: Replica, receiver: Replica, act: Callable[[], None]) -> float:
    """The median, in seconds, of what `sender` states meanwhile."""
    with LagWatch(sender, receiver) as watch, Writer(sender, 0.2):
        act()
    return watch.percentile_s(0.5)


def memory_bytes(server: Replica) -> dict[int, int]:
    """Resident, by process."""
    found = {}
    for pid in [server.running.pid, *server.running.descendants()]:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                found[pid] = 1024 * int(line.split()[1])
    return found


# --- cases --------------------------------------------------------------------------------


def cases(target: Replica) -> Iterator[Case]:
    yield from bad_authorizations(target)
    yield from bad_bodies()
    yield from bad_batches()
    yield from bad_statements(target)
    yield from bad_questions()


def bad_authorizations(target: Replica) -> Iterator[Case]:
    body, uri = batch(0), PREFIX + "push"
    good = authorization(target.name, uri, body)
    for name, header in {
        "no authorization": "",
        "another scheme": "Bearer abc",
        "no parameters": "X-Matrix",
        "nonsense": "X-Matrix origin=,key=,sig=",
        "a long header": "X-Matrix " + "a" * 7_000,
        "signature cut off": good[:-20] + '"',
        "another key": authorization(target.name, uri, body, key=OTHER_KEY),
        "an unknown key id": good.replace("ed25519:evil", "ed25519:other"),
        "for another server": authorization("other.example.org", uri, body),
        "for another path": authorization(target.name, PREFIX + "pull", body),
        "for another body": authorization(target.name, uri, batch(1)),
        "by an unknown server": authorization(target.name, uri, body, origin="x.example.org"),
        "by a good peer": authorization(target.name, uri, body, origin="b.example.org"),
        "by the target": authorization(target.name, uri, body, origin=target.name),
        "without a destination": good.replace(f'destination="{target.name}",', ""),
        "an origin in upper case": good.replace(EVIL, EVIL.upper()),
        "an origin twice": good.replace("X-Matrix ", f'X-Matrix origin="{EVIL}",'),
    }.items():
        yield Case(f"authorization: {name}", body, headers={"Authorization": header})


def bad_bodies() -> Iterator[Case]:
    for name, body in {
        "empty": b"",
        "no JSON": b"{",
        "null": b"null",
        "a list": b"[]",
        "a text": b'"x"',
        "a number": b"1",
        "NaN": b'{"after":NaN,"head":null,"statements":[]}',
        "infinite": b'{"after":1e999,"head":null,"statements":[]}',
        "a key twice": b'{"after":0,"after":0,"head":null,"statements":[]}',
        "a byte zero": b'{"after":0,"head":null,"statements":["\\u0000"]}',
        "half a character": b'{"after":0,"head":null,"statements":["\\ud800"]}',
        "no UTF-8": b'{"after":0,"head":"\xff","statements":[]}',
        "UTF-16": '{"after":0}'.encode("utf-16"),
        "100,000 deep": b'{"after":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "100,000 objects deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "a number of 10,000 digits": b'{"after":' + b"9" * 10_000 + b',"statements":[]}',
        "5 MiB": b'{"after":0,"x":"' + b"a" * (5 * MIB) + b'"}',
    }.items():
        yield Case(f"body: {name}", body)
    nothing = batch(0)
    bomb = gzip.compress(bytes(1024 * MIB // 8), 9)
    for name, encoding, sent in (
        ("gzip that is none", "gzip", nothing),
        ("gzip cut off", "gzip", gzip.compress(nothing)[:-9]),
        ("gzip with a tail", "gzip", gzip.compress(nothing) + b"tail"),
        ("gzip of 128 MiB", "gzip", bomb),
        ("gzip of gzip", "gzip, gzip", gzip.compress(bomb)),
        ("deflate", "deflate", zlib.compress(nothing)),
        ("an unknown encoding", "x", nothing),
    ):
        headers = {"Content-Encoding": encoding}
        yield Case(f"body: {name}", sent, headers=headers, signed_as=nothing)
    yield Case(
        "body: 1 GB that is announced", raw=announce_much, allowed=frozenset({413, 400, 401})
    )
    yield Case("body: 1 GB in chunks", raw=send_chunks, allowed=frozenset({0, 413, 400, 401}))
    yield Case("no HTTP", raw=send_nonsense, allowed=frozenset({0, 400}))


def bad_batches() -> Iterator[Case]:
    item = {"id": 1, "signed": statement()}
    for name, changes in {
        "nothing in it": None,
        "after as text": {"after": "0"},
        "after as a float": {"after": 0.5},
        "after as a boolean": {"after": False},
        "after negative": {"after": -1},
        "after 2^53": {"after": 2**53},
        "after in the future": {"after": 1_000_000},
        "head too short": {"head": "AAAA"},
        "head as a number": {"head": 1},
        "head that is no base64": {"head": "!" * 43},
        "statements missing": {"statements": None},
        "statements as an object": {"statements": {}},
        "1,001 statements": {"statements": [{"id": n, "leaf": "A" * 43} for n in range(1, 1_002)]},
        "ids that descend": {"statements": [{**item, "id": 2}, item]},
        "an id twice": {"statements": [item, item]},
        "an id of 0": {"statements": [{**item, "id": 0}]},
        "an id of 2^53": {"statements": [{**item, "id": 2**53}]},
        "an id as text": {"statements": [{**item, "id": "1"}]},
        "an id as a boolean": {"statements": [{**item, "id": True}]},
        "an id below after": {"after": 5, "statements": [item]},
        "a statement as a text": {"statements": ["x"]},
        "a statement without anything": {"statements": [{"id": 1}]},
        "a signed text": {"statements": [{"id": 1, "signed": "x"}]},
        "a leaf of one byte": {"statements": [{"id": 1, "leaf": "AA"}]},
    }.items():
        body = {} if changes is None else {"after": 0, "head": None, "statements": [], **changes}
        encoded = json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
        yield Case(f"batch: {name}", encoded)


def bad_statements(target: Replica) -> Iterator[Case]:
    """Each under an id of its own, and again under that id: refused, every time."""
    now_ms = time.time_ns() // 1_000_000
    changes: dict[str, dict[str, Any]] = {
        "an address out of scope": {"address": VICTIM},
        "a phone number": {"medium": "msisdn", "address": "447700900000"},
        "an address in upper case": {"address": "Alice@evil.example"},
        "an address with spaces": {"address": " alice@evil.example"},
        "an address that is none": {"address": "alice"},
        "an address as a number": {"address": 1},
        "an address of 10,000 characters": {"address": "a" * 10_000 + "@evil.example"},
        "a subdomain": {"address": "alice@sub.evil.example"},
        "a domain that ends alike": {"address": "alice@notevil.example"},
        "two at signs": {"address": "a@evil.example@example.org"},
        "an unknown medium": {"medium": "pigeon"},
        "no medium": {"medium": None},
        "an MXID that is none": {"mxid": "alice"},
        "an MXID as a number": {"mxid": 1},
        "an empty MXID": {"mxid": ""},
        "a long MXID": {"mxid": "@" + "a" * 300 + ":evil.example"},
        "ts 2^53-1": {"ts": 2**53 - 1},
        "ts in an hour": {"ts": now_ms + 3_600_000},
        "ts negative": {"ts": -1},
        "ts as text": {"ts": "1"},
        "ts as a boolean": {"ts": True},
        "no ts": {"ts": None},
        "not_before missing": {"not_before": None},
        "not_after as text": {"not_after": "1"},
        "a revocation with times": {"mxid": None},
        "a revocation of another's 3PID": {
            "address": VICTIM,
            "mxid": None,
            "not_before": None,
            "not_after": None,
        },
        "a binding that replaces another's": {"address": SHARED},
        "a revocation that replaces another's": {
            "address": SHARED,
            "mxid": None,
            "not_before": None,
            "not_after": None,
        },
        "a seventh key": {"extra": 1},
        "unsigned": {"unsigned": {}},
    }
    bad = {name: statement(**change) for name, change in changes.items()}
    whole = statement()
    bad |= {
        "no signature": {**whole, "signatures": {}},
        "no signatures": {key: value for key, value in whole.items() if key != "signatures"},
        "signatures as a list": {**whole, "signatures": []},
        "signatures nested": {**whole, "signatures": {EVIL: {KEY.key_id: {"a": {"b": {}}}}}},
        "signed by another key": statement(key=OTHER_KEY),
        "signed by another server": statement(signer="b.example.org"),
        "signed in the target's name": statement(signer=target.name),
        "changed after it was signed": {**whole, "mxid": f"@mallory:{NO_HOMESERVER}"},
        "ten thousand signatures": {
            **whole,
            "signatures": {EVIL: {f"ed25519:{n}": "A" * 86 for n in range(10_000)}},
        },
    }
    for number, (name, signed) in enumerate(bad.items(), start=1):
        # All ids up to this one are said to be known, or are filled up with bare leaves.
        yield Case(f"statement: {name}", batch(number - 1, (number, signed)), allowed=TAKEN)
    fork = batch(0, (1, statement(address="fork@evil.example")))
    yield Case("statement: another one under a known id", fork, allowed=TAKEN)
    for name, body in {
        "ts 2^53": {**whole, "ts": 2**53},
        "ts as a float": {**whole, "ts": 1.5},
    }.items():
        items = [{"id": len(bad) + 1, "signed": body}]
        content = {"after": len(bad), "head": None, "statements": items}
        encoded = json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
        yield Case(f"statement: {name}", encoded, allowed=REFUSED | TAKEN)


def bad_questions() -> Iterator[Case]:
    leaf = "A" * 43
    for path, name, content in (
        ("pull", "after 2^53", b'{"after":9007199254740992}'),
        ("pull", "after negative", b'{"after":-1}'),
        ("pull", "after missing", b"{}"),
        ("compare", "nothing", b"{}"),
        ("compare", "ranges as a list", b'{"last_id":0,"ranges":[]}'),
        ("compare", "a range of 7", b'{"last_id":0,"ranges":{"7":"ab"}}'),
        ("compare", "a range that is negative", b'{"last_id":0,"ranges":{"-1000":"ab"}}'),
        ("compare", "a range of 5,000 digits", b'{"last_id":0,"ranges":{"' + b"9" * 5_000 + b'":"ab"}}'),
        ("repair", "nothing", b"{}"),
        ("repair", "a range of 7", b'{"first":7,"last_id":9,"live":[]}'),
        ("repair", "an id elsewhere", f'{{"first":0,"last_id":9,"live":[{{"id":5000,"leaf":"{leaf}"}}]}}'.encode()),
        ("repair", "a leaf of nothing", b'{"first":0,"last_id":9,"live":[{"id":1,"leaf":""}]}'),
        ("repair", "live as an object", b'{"first":0,"last_id":9,"live":{}}'),
        ("nothing", "an unknown question", b"{}"),
    ):  # fmt: skip
        allowed = REFUSED | {404} if path == "nothing" else REFUSED
        yield Case(f"{path}: {name}", content, path, allowed)
    drop_all = b'{"first":0,"last_id":9007199254740991,"live":[]}'
    yield Case("repair: drop everything", drop_all, "repair", TAKEN)
    yield Case("pull: what others stated", b'{"after":0}', "pull", TAKEN)


# --- making and sending -------------------------------------------------------------------


def statement(*, signer: str = EVIL, key: SigningKey = KEY, **changes: Any) -> dict[str, Any]:
    """A good one, but for the changes."""
    now_ms = time.time_ns() // 1_000_000
    value = {
        "address": "alice@evil.example",
        "medium": "email",
        "mxid": f"@evil:{NO_HOMESERVER}",
        "not_after": now_ms + 10**12,
        "not_before": now_ms,
        "ts": now_ms,
        **changes,
    }
    return key.sign(value, signer)


def batch(after: int, *items: tuple[int, dict[str, Any]]) -> bytes:
    statements = [{"id": origin_id, "signed": signed} for origin_id, signed in items]
    return encode_canonical({"after": after, "head": None, "statements": statements})


def authorization(
    destination: str, uri: str, body: bytes, *, origin: str = EVIL, key: SigningKey = KEY
) -> str:
    message = xmatrix.signed_message("POST", uri, origin, destination, body)
    return (
        f'X-Matrix origin="{origin}",destination="{destination}",'
        f'key="{key.key_id}",sig="{key.sign_message(message)}"'
    )


def send(target: Replica, case: Case) -> int:
    """The status; 0 where the connection ended without one."""
    if case.raw is not None:
        return case.raw(target.name, target.running.port)
    uri = PREFIX + case.path
    signed = case.body if case.signed_as is None else case.signed_as
    headers = {"Authorization": authorization(target.name, uri, signed), **case.headers}
    connection = http.client.HTTPConnection("127.0.0.1", target.running.port, timeout=30)
    try:
        connection.request("POST", uri, case.body, headers)
        return connection.getresponse().status
    except (http.client.HTTPException, OSError):
        # Cut off while it was still sending: the answer may be there, and may not.
        return 413 if len(case.body) > 4 * MIB else 0
    finally:
        connection.close()


def announce_much(name: str, port: int) -> int:
    head = f"Content-Length: {2**30}\r\n"
    return exchange(name, port, head, (b"a" * MIB for _ in range(1_024)))


def send_chunks(name: str, port: int) -> int:
    chunk = b"100000\r\n" + b"a" * MIB + b"\r\n"
    return exchange(name, port, "Transfer-Encoding: chunked\r\n", (chunk for _ in range(1_024)))


def send_nonsense(_name: str, port: int) -> int:
    return talk(port, b"\x16\x03\x01" + bytes(range(256)) * 16, ())


def exchange(name: str, port: int, header: str, pieces: Any) -> int:
    uri = PREFIX + "push"
    head = (
        f"POST {uri} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n"
        f"Authorization: {authorization(name, uri, b'{}')}\r\n{header}\r\n"
    )
    return talk(port, head.encode(), pieces)


def talk(port: int, head: bytes, pieces: Any) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            connection.sendall(head)
            for piece in pieces:
                connection.sendall(piece)
        except OSError:
            pass  # It has heard enough; what it said is still to be read.
        try:
            return int((connection.recv(64).split() or [b"", b"0"])[1])
        except (OSError, IndexError, ValueError):
            return 0


if __name__ == "__main__":
    main()
