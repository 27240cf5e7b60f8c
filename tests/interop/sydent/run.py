"""Lets this server and real Sydents replicate with each other: `make test-sydent`.

    .venv/bin/python tests/interop/sydent/run.py

The first run installs Sydent into .venv-sydent, which needs a package index; after that only
loopback is used. Exit status 0 if every step passed; else the files are kept, and named.
"""

import contextlib
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import click

HERE = Path(__file__).parent
sys.path.insert(1, str(HERE.parents[1]))  # as pytest does: for parts

from flows import FLOWS, Stage  # noqa: E402 - the path comes first
from parts.mesh import MeshServer  # noqa: E402
from parts.processes import free_port  # noqa: E402
from parts.sydent import Certificates  # noqa: E402
from process import Sydent, install  # noqa: E402

OURS, SYDENT, SECOND = "id.test", "sydent.test", "second.test"


def main() -> int:
    # Ended from outside, it stops what it has started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    click.echo(f"Sydent {install()}")
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="test-sydent-"))
    with contextlib.ExitStack() as running:
        stage = set_up(folder, running)
        for flow in FLOWS:
            stage.run(flow)
    if stage.failed:
        click.echo(f"files: {folder}")
    else:
        shutil.rmtree(folder)
    click.echo(f"in {time.monotonic() - started:.0f} s")
    click.echo(f"{stage.passed} passed, {stage.failed} failed")
    return 1 if stage.failed else 0


def set_up(folder: Path, running: contextlib.ExitStack) -> Stage:
    """A server of ours and two Sydents, each a peer of the others; `running` stops them."""
    (folder / "certificates").mkdir()
    certificates = Certificates(folder / "certificates")
    ports = {name: free_port() for name in (OURS, SYDENT, SECOND)}
    urls = {name: f"https://127.0.0.1:{port}" for name, port in ports.items()}
    settings = {
        "REPLICATION__LISTEN": f"127.0.0.1:{ports[OURS]}",
        **certificates.settings(OURS),
    }
    server = MeshServer(folder / OURS, OURS, settings)
    running.callback(server.close)
    server.start()

    sydents = []
    for name in (SYDENT, SECOND):
        peers = {peer: url for peer, url in urls.items() if peer != name}
        sydents.append(Sydent(folder / name, name, certificates, peers, ports[name]))
        running.callback(sydents[-1].kill)
        sydents[-1].start()
    first, second = sydents
    keys = {
        OURS: server.inside.services.signing_keys.get_active().public_key,
        SYDENT: first.key.public_key,
        SECOND: second.key.public_key,
    }
    for sydent in sydents:
        for name, key in keys.items():
            if name != sydent.name:
                sydent.add_peer(name, key)
    return Stage(folder, certificates, server, first, second, running)


if __name__ == "__main__":
    sys.exit(main())
