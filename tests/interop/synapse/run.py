"""Drives this server and a real Synapse together, as an ordinary client: `make test-synapse`.

    .venv/bin/python tests/interop/synapse/run.py

The first run installs Synapse into .venv-synapse, which needs a package index; after that only
loopback is used. Exit status 0 if every step passed; else the logs are kept, and named.
"""

import contextlib
import shutil
import signal
import ssl
import sys
import tempfile
import time
from pathlib import Path

import click

HERE = Path(__file__).parent
sys.path.insert(1, str(HERE.parents[1]))  # as pytest does: for parts

from client import Http, World  # noqa: E402 - the path comes first
from flows import FLOWS, Stage  # noqa: E402
from homeserver import Synapse, install  # noqa: E402
from parts.homeserver import authority, ca_file  # noqa: E402
from parts.mailserver import MailServer  # noqa: E402
from parts.processes import RunningServer  # noqa: E402
from tls_proxy import TlsProxy  # noqa: E402

TERMS = """\
docs:
  privacy_policy:
    version: "1"
    langs:
      en: {name: Privacy policy, url: "https://example.org/privacy-1"}
"""


def main() -> int:
    # Ended from outside, it stops what it has started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    click.echo(f"Synapse {install()}")
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="test-synapse-"))
    with contextlib.ExitStack() as running:
        stage = set_up(folder, running)
        for flow in FLOWS:
            stage.run(flow)
    if stage.failed:
        click.echo(f"logs: {stage.server.log_file} {stage.synapse.log_file}")
    else:
        shutil.rmtree(folder)
    click.echo(f"in {time.monotonic() - started:.0f} s")
    click.echo(f"{stage.passed} passed, {stage.failed} failed")
    return 1 if stage.failed else 0


def set_up(folder: Path, running: contextlib.ExitStack) -> Stage:
    """Everything that is started is stopped by `running`."""
    certificate = folder / "certificate.pem"
    issued = authority().issue_cert("localhost", "127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    (folder / "terms.yaml").write_text(TERMS)

    mail = running.enter_context(MailServer(tls="starttls"))
    proxy = running.enter_context(TlsProxy(context))
    name = f"localhost:{proxy.port}"
    server = RunningServer(
        folder / "identity",
        {
            "SERVER__NAME": name,
            "SERVER__PUBLIC_URL": f"https://{name}",
            "EMAIL__FROM": "Identity <identity@example.org>",
            "EMAIL__SMTP_HOST": "localhost",
            "EMAIL__SMTP_PORT": str(mail.port),
            "EMAIL__SMTP_CA_FILE": str(ca_file()),
            "FEDERATION__CA_FILE": str(ca_file()),
            "FEDERATION__ALLOW_PRIVATE_ADDRESSES": "true",
            "TERMS__FILE": str(folder / "terms.yaml"),
        },
    )
    running.callback(server.close)
    proxy.upstream_port = server.port
    server.start()

    synapse = Synapse(
        folder / "synapse",
        certificate=certificate,
        ca_file=ca_file(),
        smtp_port=mail.port,
        identity_server=f"https://{name}",
    )
    running.callback(synapse.stop)
    synapse.start()
    world = World(Http(ca_file()), synapse.url, name, mail)
    return Stage(world, synapse, server)


if __name__ == "__main__":
    sys.exit(main())
