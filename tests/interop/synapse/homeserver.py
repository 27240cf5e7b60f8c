"""A real Synapse: installed into an environment of its own, configured, started, stopped.

It stores in SQLite, speaks TLS on one loopback port to clients, identity server and homeservers,
and has nobody else to talk to.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import urllib3
from parts.processes import free_port, wait_until
from signedjson.key import generate_signing_key, write_signing_keys

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
ENVIRONMENT = HERE.parents[2] / ".venv-synapse"
STARTING_S = 90
STOPPING_S = 30


def install() -> str:
    """Make the environment unless it is there already; what Synapse says its version is."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".installed"
    wanted = REQUIREMENTS.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        pip = [python, "-m", "pip", "--quiet", "--quiet"]
        subprocess.run([*pip, "install", "--requirement", REQUIREMENTS], check=True)
        # Written last, so that an interrupted install is done again.
        stamp.write_text(wanted)
    told = "from importlib.metadata import version; print(version('matrix-synapse'))"
    return subprocess.run(
        [python, "-c", told], check=True, capture_output=True, text=True
    ).stdout.strip()


class Synapse:
    """One homeserver, named `localhost:<port>`, with its files in `folder`.

    certificate: a PEM file with the key and the certificate. `ca_file` is all that it trusts.
    """

    def __init__(
        self,
        folder: Path,
        *,
        certificate: Path,
        ca_file: Path,
        smtp_port: int,
        identity_server: str,
    ) -> None:
        folder.mkdir()
        self._folder = folder
        self._ca_file = ca_file
        self._process: subprocess.Popen[bytes] | None = None
        self._http = urllib3.PoolManager(ca_certs=str(ca_file), retries=False, timeout=5)
        port = free_port()
        self.name = f"localhost:{port}"
        self.url = f"https://{self.name}"
        self.log_file = folder / "log"
        with (folder / "signing.key").open("w") as file:
            write_signing_keys(file, [generate_signing_key("a_test")])
        config = self._config(port, certificate, smtp_port, identity_server)
        # JSON is YAML.
        (folder / "homeserver.yaml").write_text(json.dumps(config, indent=2))

    def _config(
        self, port: int, certificate: Path, smtp_port: int, identity_server: str
    ) -> dict[str, Any]:
        often = {"per_second": 1000, "burst_count": 1000}
        return {
            "server_name": self.name,
            "public_baseurl": f"{self.url}/",
            "default_identity_server": identity_server,
            "listeners": [
                {
                    "port": port,
                    "bind_addresses": ["127.0.0.1"],
                    "type": "http",
                    "tls": True,
                    "resources": [{"names": ["client", "federation"]}],
                }
            ],
            "tls_certificate_path": str(certificate),
            "tls_private_key_path": str(certificate),
            "database": {
                "name": "sqlite3",
                "args": {"database": str(self._folder / "homeserver.db")},
            },
            "media_store_path": str(self._folder / "media"),
            "pid_file": str(self._folder / "pid"),
            "signing_key_path": str(self._folder / "signing.key"),
            "macaroon_secret_key": "macaroon",
            "form_secret": "form",
            "bcrypt_rounds": 4,
            "enable_registration": True,
            "enable_registration_without_verification": True,
            "email": {
                "smtp_host": "localhost",
                "smtp_port": smtp_port,
                "require_transport_security": True,
                "notif_from": "Homeserver <homeserver@example.org>",
            },
            # Nobody outside: no key servers, no homeservers, no statistics; but loopback.
            "trusted_key_servers": [],
            "federation_domain_whitelist": [],
            "ip_range_blacklist": [],
            "report_stats": False,
            "presence": {"enabled": False},
            "rc_registration": often,
            "rc_login": {"address": often, "account": often, "failed_attempts": often},
            "rc_joins": {"local": often, "remote": often},
            "rc_joins_per_room": often,
            "rc_3pid_validation": often,
            "rc_invites": {"per_room": often, "per_user": often, "per_issuer": often},
            "rc_third_party_invite": often,
        }

    def start(self) -> None:
        """Until it answers."""
        python = ENVIRONMENT / "bin" / "python"
        # No proxy and no other certificates from whoever runs this.
        environ = {"PATH": os.environ["PATH"], "SSL_CERT_FILE": str(self._ca_file)}
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [python, "-m", "synapse.app.homeserver", "-c", self._folder / "homeserver.yaml"],
                cwd=self._folder,
                env=environ,
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers, STARTING_S)

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"Synapse has ended; see {self.log_file}"
        try:
            return self._http.request("GET", f"{self.url}/health").status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def stop(self) -> None:
        """Until it has ended, if it runs."""
        if self._process is None or self._process.poll() is not None:
            return
        self._http.clear()
        self._process.terminate()
        try:
            self._process.wait(STOPPING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
