"""The listener for Sydent peers, as it runs: mutual TLS, certificates, slow and silent clients."""

import json
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from parts.processes import RunningServer, free_port, identity, wait_until
from parts.sydent import Certificates, FakeListener, Sydent

from identity.replication import store
from identity.replication.sydent.wire import PATH

DEADLINE_S = 30


@pytest.fixture
def certificates(tmp_path):
    (tmp_path / "certificates").mkdir()
    return Certificates(tmp_path / "certificates")


@pytest.fixture
def sydent():
    return Sydent()


@pytest.fixture
def make_running(tmp_path):
    """Makes servers, not yet started, on SQLite: what is tried here comes before any database."""
    made = []

    def make(settings):
        made.append(RunningServer(tmp_path / f"running{len(made)}", settings))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def server(make_running, certificates, sydent):
    """One that knows the peer, and listens for it."""
    port = free_port()
    server = make_running(
        {
            "SERVER__NAME": "id.test",
            "SERVER__WORKERS": "1",
            "REPLICATION__LISTEN": f"127.0.0.1:{port}",
            **certificates.settings("id.test"),
        }
    )
    server.peer_port = port
    server.start()
    add(server, sydent.peer("https://127.0.0.1:1"))
    return server


def add(server, peer):
    server.inside.database.write(lambda tx: store.put_peer(tx, peer, 0))


def ask(server, context, pushed, *, path=PATH):
    """One request by hand, as a Sydent makes it; (status, JSON)."""
    body = json.dumps({"sgAssocs": pushed}).encode()
    with (
        socket.create_connection(("127.0.0.1", server.peer_port), DEADLINE_S) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as stream,
    ):
        stream.sendall(
            f"POST {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
            f"Content-Type: application/json\r\nUser-Agent: Sydent\r\n"
            f"Host: 127.0.0.1:{server.peer_port}\r\n\r\n".encode()
            + body
        )
        return parse(read(stream))


def read(stream):
    received = b""
    while piece := stream.recv(65_536):
        received += piece
    return received


def parse(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_peer_with_its_certificate_is_served(server, certificates, sydent, version):
    context = certificates.client_context(certificates.issue("sydent.test"))
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    pushed = {"1": sydent.bound("a@example.test", "@a:hs.test")}
    assert ask(server, context, pushed) == (200, {"success": True})
    token = server.token("@b:hs.test")
    details = server.get("/hash_details", token=token).json()
    assert details["lookup_pepper"]
    assert server.inside.found("a@example.test") == "@a:hs.test"


def test_certificate_without_a_common_name_is_known_by_its_dns_name(server, certificates, sydent):
    context = certificates.client_context(certificates.issue(None, "sydent.test"))
    assert ask(server, context, {}) == (200, {"success": True})


def test_stranger_with_a_good_certificate_is_told_that_it_is_unknown(server, certificates, sydent):
    context = certificates.client_context(certificates.issue("stranger.test"))
    pushed = {str(n): sydent.bound(f"a{n}@example.test", "@a:hs.test") for n in range(1, 1_000)}
    status, told = ask(server, context, pushed)
    assert (status, told["errcode"]) == (403, "M_UNKNOWN_PEER")
    assert server.inside.rows("statements") == []


def handshake_fails(server, context):
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        ask(server, context, {})


def test_client_without_a_certificate_gets_no_further(server, certificates):
    handshake_fails(server, certificates.client_context(None))
    server.wait_for_log("tls_failed")
    assert "request_failed" not in server.log


def test_certificate_of_another_authority_is_refused(server, certificates, tmp_path):
    (tmp_path / "other").mkdir()
    pair = Certificates(tmp_path / "other").issue("sydent.test")
    handshake_fails(server, certificates.client_context(pair))


def test_old_tls_is_refused(server, certificates):
    context = certificates.client_context(certificates.issue("sydent.test"))
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    handshake_fails(server, context)


def test_plain_http_gets_no_answer(server):
    with socket.create_connection(("127.0.0.1", server.peer_port), DEADLINE_S) as plain:
        plain.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP/1.1 200" not in read_to_the_end(plain)


def read_to_the_end(plain):
    try:
        return read(plain)
    except ConnectionResetError:
        return b""


def test_certificate_of_the_peer_itself_may_be_pinned(make_running, certificates, tmp_path, sydent):
    """In place of an authority: the very certificate, whoever has signed it."""
    (tmp_path / "other").mkdir()
    others = Certificates(tmp_path / "other")
    pinned, another = others.issue("sydent.test"), others.issue("sydent.test")
    port = free_port()
    settings = {
        **certificates.settings("id.test"),
        "REPLICATION__LISTEN": f"127.0.0.1:{port}",
        "REPLICATION__CA_FILE": str(pinned[0]),
        "SERVER__NAME": "id.test",
        "SERVER__WORKERS": "1",
    }
    server = make_running(settings)
    server.peer_port = port
    server.start()
    add(server, sydent.peer("https://127.0.0.1:1"))
    assert ask(server, certificates.client_context(pinned), {}) == (200, {"success": True})
    handshake_fails(server, certificates.client_context(another))


def test_silent_clients_keep_nobody_waiting(server, certificates, sydent):
    context = certificates.client_context(certificates.issue("sydent.test"))
    silent = [socket.create_connection(("127.0.0.1", server.peer_port)) for _ in range(20)]
    began = time.monotonic()
    try:
        assert ask(server, context, {}) == (200, {"success": True})
        assert time.monotonic() - began < 25
    finally:
        for plain in silent:
            plain.close()


def test_client_that_drips_its_body_is_cut_off(server, certificates):
    context = certificates.client_context(certificates.issue("sydent.test"))
    began = time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", server.peer_port), DEADLINE_S) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as stream,
    ):
        stream.sendall(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            "Content-Type: application/json\r\n\r\n".encode()
        )
        cut_off = threading.Event()

        def drip():
            while not cut_off.wait(0.2):
                try:
                    stream.sendall(b" ")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            read(stream)
        except OSError:
            pass
        finally:
            cut_off.set()
            dripping.join()
    assert 5 < time.monotonic() - began < 20


def test_bad_certificate_is_found_before_anything_starts(make_running, certificates, tmp_path):
    certificate, _ = certificates.issue("id.test")
    _, other_key = certificates.issue("id.test")
    server = make_running(
        {
            "REPLICATION__LISTEN": f"127.0.0.1:{free_port()}",
            "REPLICATION__CERTIFICATE": str(certificate),
            "REPLICATION__PRIVATE_KEY": str(other_key),
        }
    )
    server.start(wait=False)
    assert server.wait() == 1
    assert "[replication] certificate" in server.log
    assert "Traceback" not in server.log


def test_renewed_certificate_is_shown_after_a_reload(server, certificates, sydent):
    context = certificates.client_context(certificates.issue("sydent.test"))

    def shown():
        with (
            socket.create_connection(("127.0.0.1", server.peer_port), DEADLINE_S) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as stream,
        ):
            return stream.getpeercert()["serialNumber"]

    before = shown()
    certificate, key = certificates.issue("id.test")
    for name, file in (("CERTIFICATE", certificate), ("PRIVATE_KEY", key)):
        Path(server.settings[f"REPLICATION__{name}"]).write_bytes(file.read_bytes())
    server.signal(1)
    wait_until(lambda: shown() != before)
    assert ask(server, context, {}) == (200, {"success": True})


def test_courier_pushes_to_a_sydent(server, certificates, sydent):
    with FakeListener(certificates, "sydent.test") as listener:
        add(server, sydent.peer(listener.url))
        done = identity(
            *("bind", "email", "a@example.test", "@a:hs.test"),
            folder=server.folder,
            settings=server.settings,
        )
        assert done.returncode == 0, done.stderr
        wait_until(lambda: listener.taken() == ["1"])


def test_first_key_cannot_be_revoked_while_there_is_a_sydent(server):
    def keys(*arguments):
        return identity("keys", *arguments, folder=server.folder, settings=server.settings)

    assert keys("rotate").returncode == 0
    wait_until(lambda: server.inside.services.signing_keys.get_active().key_id == "ed25519:1")
    refused = keys("revoke", "ed25519:0")
    assert (refused.returncode, "remove them first" in refused.stderr) == (1, True)
    server.inside.database.write(lambda tx: store.delete_peer(tx, "sydent.test"))
    assert keys("revoke", "ed25519:0").returncode == 0
