"""Clients that take their time, without a proxy in front: they are cut off, others served."""

import contextlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from parts.processes import RunningServer
from parts.server import V2

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"])

# A request may take 10 s to arrive, and an answer to leave; the rest is for a busy machine.
CUT_OFF_S = 20
ENDLESS_S = 60

HEAD = f"POST {V2}/account/register HTTP/1.1\r\nHost: id.test\r\nContent-Length: 1000\r\n"
SLOW = {
    "dripping body": (f"{HEAD}\r\n{{", 0.3),
    "stalled body": (f"{HEAD}\r\n{{", None),
    "dripping headers": (f"{HEAD}X-Long: ", 0.3),
    "stalled headers": (HEAD, None),
}

# More than the kernel keeps for two sockets. An alias spares the reader of the file.
LONG_ANSWER_BYTES = 12_000_000
LONG_TERMS = f"""
docs:
  tos:
    version: "1"
    langs:
      l0: &long {{name: {"x" * 60_000}, url: "https://example.org/"}}
""" + "".join(f"      l{number}: *long\n" for number in range(1, LONG_ANSWER_BYTES // 60_000))


def drip(server: RunningServer, start: str, *, every_s: float | None) -> tuple[float, bytes]:
    """Send `start`, then a space now and then, or nothing more; how long that went well, in
    seconds, and what was answered."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), 5) as client:
        client.sendall(start.encode())
        client.settimeout(every_s or ENDLESS_S)
        received = b""
        while time.monotonic() < began + ENDLESS_S:
            try:
                piece = client.recv(65536)
                received += piece
                if not piece:
                    break
            except TimeoutError:
                client.sendall(b" ")
            except ConnectionError:
                break
        return time.monotonic() - began, received


def begin_long_answer(server: RunningServer) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    client.sendall(f"GET {V2}/terms HTTP/1.1\r\nHost: id.test\r\n\r\n".encode())
    return client


def test_slow_clients_are_cut_off_and_do_not_hold_up_others(make_running, tmp_path):
    terms = tmp_path / "terms.yaml"
    terms.write_text(LONG_TERMS)
    # One thread more than there are slow clients.
    server = make_running(
        {"SERVER__WORKERS": "1", "SERVER__THREADS": "6", "TERMS__FILE": str(terms)}
    )
    server.start()
    with begin_long_answer(server) as taker, ThreadPoolExecutor() as threads:
        drips = {
            name: threads.submit(drip, server, start, every_s=every_s)
            for name, (start, every_s) in SLOW.items()
        }
        began = time.monotonic()
        for _ in range(20):
            assert server.get("/health").status == 200
        assert time.monotonic() - began < 5
        assert not any(outcome.done() for outcome in drips.values())
        outcomes = {name: outcome.result() for name, outcome in drips.items()}
        # It asked before the others, and took nothing for as long as they lasted.
        assert taken_bytes(taker) < LONG_ANSWER_BYTES
    for name, (lasted_s, received) in outcomes.items():
        assert lasted_s < CUT_OFF_S, name
        if "body" in name:
            head, _, body = received.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 "), name
            assert json.loads(body)["errcode"] == "M_UNKNOWN"
        else:
            assert received == b"", name
    assert "Traceback" not in server.log
    assert "crashed" not in server.log


def taken_bytes(client: socket.socket) -> int:
    taken = 0
    client.settimeout(ENDLESS_S)
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(1_000_000):
            taken += len(piece)
    return taken


def test_clients_that_do_not_hang_up_after_the_answer_do_not_hold_up_others(make_running):
    server = make_running({"SERVER__WORKERS": "1"})
    server.start()
    began = time.monotonic()
    clients = []
    for _ in range(10):
        clients.append(socket.create_connection(("127.0.0.1", server.port), 5))
        clients[-1].sendall(b"GET /health HTTP/1.0\r\n\r\n")
        while clients[-1].recv(65536):
            pass
    # gunicorn alone would wait 2 s for each to hang up, and serve nobody meanwhile.
    assert server.get("/health").status == 200
    assert time.monotonic() - began < 8
    for client in clients:
        client.close()
