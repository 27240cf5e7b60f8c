"""A redis-server that a test may kill, stop and start again."""

import signal
import socket
import subprocess
from pathlib import Path

import redis


class OwnRedis:
    """Keeps what it was given over a kill, as the documentation asks operators to set it up."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self._folder, "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "always"}
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        # The client tries again, at growing distances, until the server accepts connections.
        retry = redis.retry.Retry(redis.backoff.ExponentialBackoff(cap=0.2, base=0.01), 50)
        with redis.Redis.from_url(self.url, retry=retry) as client:
            client.ping()

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def fall_silent(self) -> None:
        """As behind a broken network: connections are taken, and nothing ever answers."""
        self._process.send_signal(signal.SIGSTOP)

    def speak_again(self) -> None:
        self._process.send_signal(signal.SIGCONT)
