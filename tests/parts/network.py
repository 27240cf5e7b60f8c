"""The network between a client and the addresses it connects to, for tests.

Every attempt is recorded. An address leads where `routes` says, always to loopback, so that
names may resolve to public addresses and to ports such as 443; any other refuses.
"""

import socket


class FakeNetwork:
    def __init__(self) -> None:
        self.routes: dict[tuple[str, int], tuple[str, int]] = {}
        self.black_holes: set[tuple[str, int]] = set()  # never answer: an attempt times out
        self.connects: list[tuple[str, int]] = []

    def __call__(self, address: tuple[str, int], timeout_s: float) -> socket.socket:
        self.connects.append(address)
        if address in self.black_holes:
            raise TimeoutError
        if address not in self.routes:
            raise ConnectionRefusedError
        connection = socket.create_connection(self.routes[address], timeout_s)
        # What follows is to be bounded by the caller, not by what is left of connecting.
        connection.settimeout(10)
        return connection
