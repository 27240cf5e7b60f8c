"""Hosts on a network of a test's own: Linux namespaces, and the packets between them in our hands.

    with Network() as network:
        alice, bob = network.host("192.0.2.1"), network.host("192.0.2.2")
        with alice.entered():
            ... sockets made and processes started here are alice's ...
        network.cut(alice, bob)
        network.conditions = Conditions(delay_s=0.2, loss=0.05)

Nothing leaves it: a host's only way out is a TUN device whose packets a thread of this process
reads, and hands to the host that has the address, or to nobody. Needs root, `ip` and /dev/net/tun.
"""

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import secrets
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from typing import Final, Self

_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IPV4_DESTINATION: Final = slice(16, 20)
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def missing() -> str | None:
    """What is not there of that which namespaces need."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "needs ip (iproute2)"
    return None if Path("/dev/net/tun").exists() else "needs /dev/net/tun"


@dataclass(frozen=True)
class Conditions:
    """What befalls each packet, whatever its host. Shares are 0 to 1."""

    delay_s: float = 0.0
    jitter_s: float = 0.0  # up to so much more or less
    loss: float = 0.0
    duplicates: float = 0.0
    reorder: float = 0.0  # such a packet overtakes all that wait


class Host:
    """One namespace, with an address of its own and loopback."""

    def __init__(self, address: str) -> None:
        self.address = IPv4Address(address)
        self.name = f"idtest-{secrets.token_hex(4)}"
        _ip("netns", "add", self.name)
        try:
            with self.entered():
                self.device = _make_tun()
            _ip("-n", self.name, "link", "set", "lo", "up")
            _ip("-n", self.name, "link", "set", "tun0", "up")
            _ip("-n", self.name, "address", "add", f"{address}/32", "dev", "tun0")
            for family in ("-4", "-6"):
                _ip("-n", self.name, family, "route", "add", "default", "dev", "tun0")
        except BaseException:
            self.close()
            raise

    @property
    def command(self) -> list[str]:
        """Before a command line: it runs on this host, and finds names as `name_server` says."""
        return ["ip", "netns", "exec", self.name]

    def run(self, *command: str, stdin: str = "") -> str:
        return subprocess.run(
            [*self.command, *command], input=stdin, capture_output=True, text=True, check=True
        ).stdout

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is on the host: its new sockets and child processes are the host's."""
        own, theirs = Path("/proc/thread-self/ns/net"), Path("/run/netns") / self.name
        with own.open() as before, theirs.open() as inside:
            _set_namespace(inside.fileno())
            try:
                yield
            finally:
                _set_namespace(before.fileno())

    def name_server(self, address: str) -> None:
        """Who is asked for names, by what is started with `command`."""
        folder = Path("/etc/netns") / self.name
        folder.mkdir(parents=True)
        (folder / "resolv.conf").write_text(f"nameserver {address}\noptions timeout:1 attempts:1\n")
        (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")

    def close(self) -> None:
        if hasattr(self, "device"):
            os.close(self.device)
        subprocess.run(["ip", "netns", "delete", self.name], check=True)
        shutil.rmtree(Path("/etc/netns") / self.name, ignore_errors=True)


class Network:
    """Hosts, and the thread that carries their packets."""

    def __init__(self, seed: int = 1) -> None:
        self.conditions = Conditions()
        self.carried = self.lost = 0
        self._hosts: dict[bytes, Host] = {}
        self._cuts: set[frozenset[Host]] = set()
        self._random = Random(seed)
        self._waiting: list[tuple[float, int, int, bytes]] = []  # due, number, device, packet
        self._numbers = itertools.count()
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._carry)

    def host(self, address: str) -> Host:
        host = Host(address)
        self._hosts[host.address.packed] = host
        os.write(self._woken, b"+")
        return host

    def cut(self, *pair: Host) -> None:
        """Packets between these two vanish, as from now on."""
        self._cuts.add(frozenset(pair))

    def heal(self) -> None:
        """No two hosts are cut off any more."""
        self._cuts.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._woken, b"-")
        self._thread.join()
        for host in self._hosts.values():
            host.close()
        os.close(self._wake)
        os.close(self._woken)

    def _carry(self) -> None:
        while True:
            devices = {host.device: host for host in list(self._hosts.values())}
            due_s = self._waiting[0][0] - time.monotonic() if self._waiting else None
            timeout_s = None if due_s is None else max(0.0, due_s)
            readable, _, _ = select.select([self._wake, *devices], [], [], timeout_s)
            if self._wake in readable and os.read(self._wake, 1) == b"-":
                return
            for device in readable:
                if device in devices:
                    self._take(devices[device], os.read(device, 65_536))
            self._deliver()

    def _take(self, sender: Host, packet: bytes) -> None:
        receiver = self._hosts.get(packet[_IPV4_DESTINATION]) if packet[0] >> 4 == 4 else None
        if receiver is None:
            return
        chance, conditions = self._random.random, self.conditions
        if frozenset((sender, receiver)) in self._cuts or chance() < conditions.loss:
            self.lost += 1
            return
        for _ in range(1 + (chance() < conditions.duplicates)):
            delay_s = conditions.delay_s + conditions.jitter_s * (2 * chance() - 1)
            due_s = time.monotonic() + (0 if chance() < conditions.reorder else delay_s)
            waiting = (due_s, next(self._numbers), receiver.device, packet)
            heapq.heappush(self._waiting, waiting)

    def _deliver(self) -> None:
        now_s = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now_s:
            _, _, device, packet = heapq.heappop(self._waiting)
            os.write(device, packet)
            self.carried += 1


def _make_tun() -> int:
    """The file of a new TUN device in this thread's namespace."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN | _IFF_NO_PI))
    return device


def _set_namespace(file: int) -> None:
    if _LIBC.setns(file, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
