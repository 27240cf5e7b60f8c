"""A real Sydent: installed into an environment of its own, configured, started, killed, looked into.

Its files lie in one folder. It talks to peers on loopback and to nobody else: the homeservers of the
MXIDs that are bound are nowhere.
"""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import urllib3
from parts.processes import free_port, wait_until
from parts.sydent import Certificates
from unpaddedbase64 import encode_base64

from identity.associations.statement import Statement
from identity.mxid import UserId
from identity.signing import SigningKey
from identity.threepid import ThreePid

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
ENVIRONMENT = HERE.parents[2] / ".venv-sydent"
STARTING_S = 60
# Between its pushes; see launch.py.
TICK_S = 0.5
LOOKUP = "/_matrix/identity/api/v1/lookup"
INTERNAL = "/_matrix/identity/internal"
_BUSY_S = 30


def install() -> str:
    """Make the environment unless it is there already; what Sydent says its version is."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".installed"
    wanted = REQUIREMENTS.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        pip = [python, "-m", "pip", "--quiet", "--quiet"]
        subprocess.run([*pip, "install", "--requirement", REQUIREMENTS], check=True)
        # Written last, so that an interrupted install is done again.
        stamp.write_text(wanted)
    told = "from importlib.metadata import version; print(version('matrix-sydent'))"
    return subprocess.run(
        [python, "-c", told], check=True, capture_output=True, text=True
    ).stdout.strip()


class Sydent:
    """One of them. `peers`: name to the URL where each listens."""

    def __init__(
        self, folder: Path, name: str, certificates: Certificates, peers: dict[str, str], port: int
    ) -> None:
        """`port`: where it listens for peers."""
        folder.mkdir(parents=True)
        self.name = name
        self.folder = folder
        self.url = f"https://127.0.0.1:{port}"
        self.key = SigningKey.generate("ed25519:0")
        self.certificate = certificates.issue(name)
        self.database = folder / "sydent.db"
        self.config = folder / "sydent.conf"
        self.log_file = folder / "log"
        self._client_port, self._internal_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._http = urllib3.PoolManager(retries=False, timeout=_BUSY_S)
        both = folder / "both.pem"
        both.write_text("".join(path.read_text() for path in self.certificate))
        (folder / "res").mkdir()
        self.config.write_text(
            "\n".join(
                [
                    "[general]",
                    f"server.name = {name}",
                    f"pidfile.path = {folder / 'pid'}",
                    f"templates.path = {folder / 'res'}",
                    "terms.path =",
                    "log.path =",
                    "[db]",
                    f"db.file = {self.database}",
                    "[crypto]",
                    f"ed25519.signingkey = ed25519 0 {encode_base64(self.key.seed)}",
                    "[http]",
                    "clientapi.http.bind_address = 127.0.0.1",
                    f"clientapi.http.port = {self._client_port}",
                    "internalapi.http.bind_address = 127.0.0.1",
                    f"internalapi.http.port = {self._internal_port}",
                    f"replication.https.certfile = {both}",
                    f"replication.https.cacert = {certificates.ca_file}",
                    "replication.https.bind_address = 127.0.0.1",
                    f"replication.https.port = {port}",
                    *(
                        line
                        for peer, url in peers.items()
                        for line in (f"[peer.{peer}]", f"base_replication_url = {url}")
                    ),
                    "",
                ]
            )
        )

    def start(self) -> None:
        """Until it answers."""
        environ = {"PATH": os.environ["PATH"], "SYDENT_CONF": str(self.config)}
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [ENVIRONMENT / "bin" / "python", HERE / "launch.py", str(TICK_S)],
                cwd=self.folder,
                env=environ,
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers, STARTING_S)

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"Sydent has ended; see {self.log_file}"
        try:
            return self._get(self._client_port, "/_matrix/identity/api/v1").status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._http.clear()

    def add_peer(self, name: str, public_key: bytes) -> None:
        with self.rows() as rows:
            rows.execute("INSERT INTO peers (name, active) VALUES (?, 1)", [name])
            rows.execute(
                "INSERT INTO peer_pubkeys (peername, alg, key) VALUES (?, 'ed25519', ?)",
                [name, encode_base64(public_key)],
            )

    @contextlib.contextmanager
    def rows(self) -> Iterator[sqlite3.Connection]:
        """Its database; what the block does is committed."""
        connection = sqlite3.connect(self.database, timeout=_BUSY_S)
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def bind(self, address: str, mxid: str, medium: str = "email") -> dict[str, Any]:
        return self._internal("bind", medium, address, mxid)

    def fill(self, bound: dict[str, str]) -> None:
        """Bind many at once, into the database of one that does not run: 50 a second else."""
        now_ms = int(time.time() * 1_000)
        with self.rows() as rows:
            for address, mxid in bound.items():
                made = Statement.make(ThreePid.email(address), UserId.parse(mxid), now_ms, None)
                said = made.to_json()
                times = (said["ts"], said["not_before"], said["not_after"])
                stated = ("email", address, mxid, *times)
                origin_id = rows.execute(
                    "INSERT INTO local_threepid_associations "
                    "(medium, address, mxid, ts, notBefore, notAfter) VALUES (?, ?, ?, ?, ?, ?)",
                    stated,
                ).lastrowid
                signed = json.dumps(self.key.sign(said, self.name))
                rows.execute(
                    "INSERT INTO global_threepid_associations (medium, address, mxid, ts, "
                    "notBefore, notAfter, originServer, originId, sgAssoc) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*stated, self.name, origin_id, signed),
                )

    def unbind(self, address: str, mxid: str, medium: str = "email") -> None:
        self._internal("unbind", medium, address, mxid)

    def signed(self, address: str, medium: str = "email") -> dict[str, Any]:
        """What it gives out; empty if nobody is bound."""
        query = {"medium": medium, "address": address}
        return self._get(self._client_port, LOOKUP, fields=query).json()

    def found(self, address: str, medium: str = "email") -> str | None:
        return self.signed(address, medium).get("mxid")

    def count_of(self, origin: str) -> int:
        """How many associations of that server it has."""
        with self.rows() as rows:
            query = "SELECT count(*) FROM global_threepid_associations WHERE originServer = ?"
            return rows.execute(query, [origin]).fetchone()[0]

    def sent_to(self, peer: str) -> int:
        with self.rows() as rows:
            query = "SELECT coalesce(lastSentVersion, 0) FROM peers WHERE name = ?"
            return rows.execute(query, [peer]).fetchone()[0]

    def last_id(self) -> int:
        with self.rows() as rows:
            query = "SELECT max(seq) FROM sqlite_sequence WHERE name LIKE 'local%'"
            return rows.execute(query).fetchone()[0] or 0

    def _internal(self, verb: str, medium: str, address: str, mxid: str) -> dict[str, Any]:
        body = {"medium": medium, "address": address, "mxid": mxid}
        url = f"http://127.0.0.1:{self._internal_port}{INTERNAL}/{verb}"
        answer = self._http.request("POST", url, json=body)
        assert answer.status == 200, answer.data
        return answer.json()

    def _get(self, port: int, path: str, **arguments: Any) -> urllib3.BaseHTTPResponse:
        return self._http.request("GET", f"http://127.0.0.1:{port}{path}", **arguments)
