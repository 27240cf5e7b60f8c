"""A Sydent peer as far as tests need one: it signs, it has certificates, it takes pushes."""

import json
import socket
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import trustme

from identity.replication.peer import Peer, Protocol, Scope, Supersede
from identity.signing import SigningKey

KEY_ID = "ed25519:0"
AT_MS = 1_795_395_118_723
CENTURY_MS = 3_153_600_000_000


@dataclass
class Sydent:
    """Its name and its key, by which it signs what it states."""

    name: str = "sydent.test"
    key: SigningKey = field(default_factory=lambda: SigningKey.generate(KEY_ID))

    def bound(
        self, address: str, mxid: str, ts: int = AT_MS, medium: str = "email", **more: Any
    ) -> dict[str, Any]:
        return self.sign(
            {
                "medium": medium,
                "address": address,
                "mxid": mxid,
                "ts": ts,
                "not_before": ts,
                "not_after": ts + CENTURY_MS,
                **more,
            }
        )

    def unbound(self, address: str, ts: int = AT_MS, medium: str = "email") -> dict[str, Any]:
        validity = {"not_before": None, "not_after": None}
        return self.sign({"medium": medium, "address": address, "mxid": None, "ts": ts, **validity})

    def sign(self, value: dict[str, Any]) -> dict[str, Any]:
        return self.key.sign(value, self.name)

    def peer(
        self,
        url: str = "https://sydent.test:4434",
        supersede: Supersede = Supersede.ALL,
        scope: Scope | None = None,
    ) -> Peer:
        """As we know it."""
        keys = {KEY_ID: self.key.public_key}
        return Peer(self.name, url, Protocol.SYDENT, keys, supersede, scope or Scope())


class Certificates:
    """One authority, and leaves right under it, as PEM files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca_file)

    def issue(self, common_name: str | None, *names: str) -> tuple[Path, Path]:
        """(certificate, private key). `names`: DNS names and addresses besides."""
        wanted = names or ("127.0.0.1", *([common_name] if common_name else []))
        leaf = self._authority.issue_cert(*wanted, common_name=common_name)
        stem = f"{common_name}-{len(list(self._folder.iterdir()))}"
        certificate, key = self._folder / f"{stem}.pem", self._folder / f"{stem}.key"
        leaf.cert_chain_pems[0].write_to_path(certificate)
        leaf.private_key_pem.write_to_path(key)
        return certificate, key

    def settings(self, common_name: str, *names: str) -> dict[str, str]:
        """Of a server of ours with that certificate."""
        certificate, key = self.issue(common_name, *names)
        return {
            "REPLICATION__CERTIFICATE": str(certificate),
            "REPLICATION__PRIVATE_KEY": str(key),
            "REPLICATION__CA_FILE": str(self.ca_file),
        }

    def client_context(self, pair: tuple[Path, Path] | None) -> ssl.SSLContext:
        """Of a peer that connects to us, with a certificate or without."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if pair is not None:
            context.load_cert_chain(*pair)
        return context


class FakeListener:
    """Where a Sydent listens, on loopback: takes pushes, over mutual TLS, and answers them.

    `refuses`: these ids fail. `status`: of every answer, if not 200. `silent`: it never answers.
    """

    def __init__(self, certificates: Certificates, name: str, *names: str) -> None:
        certificate, key = certificates.issue(name, *names)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.verify_mode = ssl.CERT_REQUIRED
        self._tls.load_verify_locations(certificates.ca_file)
        self._tls.load_cert_chain(certificate, key)
        self.heads: list[bytes] = []
        self.pushes: list[dict[str, Any]] = []
        self.callers: list[dict[str, Any]] = []
        self.refuses: set[str] = set()
        self.status = 200
        self.answer: bytes | None = None
        self.silent = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def taken(self) -> list[str]:
        """The ids of what it took, in the order of arrival."""
        return [origin_id for push in self.pushes for origin_id in push]

    def _serve(self) -> None:
        held = []
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                break
            plain.settimeout(10)
            if self.silent:
                held.append(plain)
                continue
            try:
                with self._tls.wrap_socket(plain, server_side=True) as stream:
                    self._answer(stream)
            except OSError:
                plain.close()
        for plain in held:
            plain.close()

    def _answer(self, stream: ssl.SSLSocket) -> None:
        self.callers.append(stream.getpeercert())
        with stream.makefile("rb") as file:
            head = b"".join(iter(file.readline, b"\r\n"))
            length = next(
                int(line.partition(b":")[2])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            )
            body = file.read(length)
        self.heads.append(head)
        pushed = json.loads(body)["sgAssocs"]
        status, answer = self.status, self.answer or b'{"success": true}'
        failed = sorted(self.refuses & pushed.keys(), key=int)
        if failed:
            status = 400
            told = {"errcode": "M_VERIFICATION_FAILED", "error": "x", "failed_ids": failed}
            answer = json.dumps(told).encode()
        if 200 <= status < 300:
            self.pushes.append(pushed)
        stream.sendall(
            b"HTTP/1.1 %d X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
            % (status, len(answer), answer)
        )
