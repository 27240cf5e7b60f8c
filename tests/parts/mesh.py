"""Servers that replicate: each `identity serve` with processes, a database and a port of its own.

    a, b = mesh.servers("a.test", "b.test")     # running, and peers of each other
    a.bind("alice@example.com", "@alice:hs.test")
    b.wait_for("alice@example.com", "@alice:hs.test")

What is stated goes straight into a server's database; what is found is asked of its public port.
"""

import time
from collections.abc import Iterable

from parts.processes import RunningServer, wait_until

from identity.associations.service import OriginDigest
from identity.lookup.hashing import encode_hash, lookup_hash
from identity.mxid import UserId
from identity.replication import cursors, store
from identity.replication.peer import Peer, Protocol
from identity.threepid import ThreePid

SETTINGS = {"SERVER__WORKERS": "1", "RATE_LIMITS__ENABLED": "false"}
# Far more than it takes, as machines that run tests are busy. A lease that a crash left behind is
# waited for, too.
CONVERGES_S = 90


class MeshServer(RunningServer):
    """One of them."""

    def __init__(self, folder, name, settings=None) -> None:
        super().__init__(folder, {**SETTINGS, "SERVER__NAME": name, **(settings or {})})
        self.name = name
        self._asking: tuple[str, str] | None = None

    @property
    def database(self):
        return self.inside.database

    @property
    def as_peer(self) -> Peer:
        """What an operator tells the others of it."""
        keys = self.inside.services.signing_keys.all_public()
        return Peer(self.name, self.base_url, Protocol.V2, keys)

    def add_peer(self, peer: Peer) -> None:
        now_ms = self.inside.clock.now_ms()
        self.database.write(lambda tx: store.put_peer(tx, peer, now_ms))

    def bind(self, address: str, mxid: str) -> None:
        self.inside.bind_directly(address, mxid)

    def bind_all(self, bound: dict[str, str]) -> None:
        """Many at once, in one transaction, of which no homeserver hears."""
        wanted = {ThreePid.email(address): UserId.parse(mxid) for address, mxid in bound.items()}
        associations = self.inside.services.associations
        self.database.write(lambda tx: associations.publish_all(tx, wanted, tell=False))

    def unbind(self, address: str, mxid: str) -> bool:
        unbind = self.inside.services.associations.unbind
        return unbind(ThreePid.email(address), UserId.parse(mxid))

    def found(self, address: str) -> str | None:
        """Who a client finds by hash, over the network."""
        if self._asking is None:
            token = self.token("@stranger:elsewhere.test")
            self._asking = (token, self.get("/hash_details", token=token).json()["lookup_pepper"])
        token, pepper = self._asking
        asked = encode_hash(lookup_hash(address, "email", pepper))
        body = {"algorithm": "sha256", "pepper": pepper, "addresses": [asked]}
        answer = self.post("/lookup", token=token, json=body)
        assert answer.status == 200, answer.data
        return answer.json()["mappings"].get(asked)

    def wait_for(self, address: str, mxid: str | None, timeout_s: float = CONVERGES_S) -> float:
        """Until a client finds that; how long it took, in seconds."""
        began = time.monotonic()
        wait_until(lambda: self.found(address) == mxid, timeout_s)
        return time.monotonic() - began

    def digests(self) -> dict[str, OriginDigest]:
        """Of every origin that has stated anything."""
        held = self.inside.services.associations.digest()
        return {one.origin: one for one in held if one.last_id}

    def acknowledged(self, peer: str) -> int:
        status = self.database.read(lambda tx: store.find_status(tx, peer))
        return status.acknowledged_id

    def last_error(self, peer: str) -> str | None:
        return self.database.read(lambda tx: store.find_status(tx, peer)).last_error

    def compare_with(self, peer: str) -> None:
        """Ask for a comparison now, as the operator can."""
        now_ms = self.inside.clock.now_ms()
        self.database.write(lambda tx: cursors.demand_comparison(tx, peer, now_ms))

    def copy_database(self) -> dict[str, bytes]:
        """Its SQLite files, as a backup of a server that does not run."""
        assert not self.is_running
        # Whoever closes one of the files ends all locks that this process has on it.
        self.forget_inside()
        folder = self.folder / "data"
        return {path.name: path.read_bytes() for path in folder.glob("identity.db*")}

    def restore_database(self, files: dict[str, bytes]) -> None:
        assert not self.is_running
        self.forget_inside()
        for path in (self.folder / "data").glob("identity.db*"):
            path.unlink()
        for name, content in files.items():
            (self.folder / "data" / name).write_bytes(content)

    def forget_inside(self) -> None:
        """The test's own connections."""
        if self._inside is not None:
            self._inside.close()
            self._inside = None


class Mesh:
    """Makes servers in `folder`; `make_database` gives the settings of a new database."""

    def __init__(self, folder, make_database) -> None:
        self._folder = folder
        self._make_database = make_database
        self.made: list[MeshServer] = []

    def make(self, name: str, settings=None) -> MeshServer:
        """A server that is not started."""
        settings = {**self._make_database(), **(settings or {})}
        self.made.append(MeshServer(self._folder / name, name, settings))
        return self.made[-1]

    def servers(self, *names: str, settings=None) -> list[MeshServer]:
        """Servers that run, and are peers of each other."""
        made = [self.make(name, settings) for name in names]
        for server in made:
            server.start(wait=False)
        for server in made:
            server.wait_until_ready()
        join(made)
        return made

    def close(self) -> None:
        for server in self.made:
            server.close()


def join(servers: Iterable[MeshServer]) -> None:
    """Each is a peer of each other one."""
    servers = list(servers)
    for server in servers:
        for other in servers:
            if other is not server:
                server.add_peer(other.as_peer)


def wait_until_equal(servers: Iterable[MeshServer], timeout_s: float = CONVERGES_S) -> None:
    """Until all hold the same of every origin."""
    servers = list(servers)

    def are_equal() -> bool:
        first, *others = [server.digests() for server in servers]
        return all(other == first for other in others)

    wait_until(are_equal, timeout_s)
