"""A load generator: keep-alive connections that send one prepared request again and again.

It parses no more of an answer than its end, so that it costs little beside the server.
"""

import multiprocessing
import random
import socket
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    host: str
    port: int
    data: bytes

    @classmethod
    def post(cls, host: str, port: int, path: str, body: bytes, **headers: str) -> "Request":
        lines = [f"POST {path} HTTP/1.1", f"Host: {host}:{port}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return cls(host, port, ("\r\n".join(lines) + "\r\n\r\n").encode() + body)


@dataclass(frozen=True)
class Result:
    """`seconds`: latencies of all requests, sorted."""

    requests: int
    elapsed: float
    seconds: list[float]

    @property
    def rate(self) -> float:
        return self.requests / self.elapsed

    def percentile(self, share: float) -> float:
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def run(request: Request, connections: int, seconds: float, rate: float = 0.0) -> Result:
    """Load from `connections` processes for so long; `rate`: requests a second of each, else as
    many as are answered. Raises: RuntimeError for any answer but 200."""
    with multiprocessing.Pool(connections) as pool:
        began = time.perf_counter()
        latencies = pool.starmap(_client, [(request, seconds, rate)] * connections)
        elapsed = time.perf_counter() - began
    merged = sorted(latency for each in latencies for latency in each)
    return Result(len(merged), elapsed, merged)


def _client(request: Request, seconds: float, rate: float) -> list[float]:
    latencies: list[float] = []
    with socket.create_connection((request.host, request.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Apart from each other, as strangers are.
        start = time.perf_counter() + (random.random() / rate if rate else 0.0)
        while (began := time.perf_counter()) < start + seconds:
            if rate:
                due = start + len(latencies) / rate
                if began < due:
                    time.sleep(due - began)
                    due = time.perf_counter()
                # From when it was due: what a slow answer holds up counts as slow, too.
                began = due
            exchange(connection, request)
            latencies.append(time.perf_counter() - began)
    return latencies


def exchange(connection: socket.socket, request: Request) -> None:
    """Send it and read its answer. Raises: RuntimeError for any answer but 200."""
    connection.sendall(request.data)
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(data.decode(errors="replace"))
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += _receive(connection)


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    if not data:
        raise RuntimeError("the server closed the connection")
    return data
