"""One request over a real TLS connection: who may be connected to, and what an answer may cost."""

import gzip
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest
import trustme
from parts.homeserver import FakeHomeserver, Reply

from identity.errors import SetupError
from identity.federation.transport import (
    CallError,
    ConnectError,
    Deadline,
    Destination,
    Transport,
)

PUBLIC = "1.2.3.4"
HS = Destination("hs.test", 8448, "hs.test", "hs.test")
MAX_BODY_BYTES = 5 * 1024


@pytest.fixture
def silent_server() -> Iterator[tuple[str, int]]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()


@pytest.fixture
def plain_server() -> Iterator[tuple[str, int]]:
    """Speaks HTTP without TLS, once."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()
        thread.join()


def get(transport, destination=HS, timeout_s=5.0, target="/x"):
    return transport.get(destination, target, MAX_BODY_BYTES, Deadline.after(timeout_s))


def failure_of(transport, destination=HS, timeout_s=5.0):
    with pytest.raises(CallError) as caught:
        get(transport, destination, timeout_s)
    return caught.value


class TestRequest:
    @pytest.mark.requirement("FED-02")
    def test_request_has_the_given_host_and_no_more_than_it_needs(self, make_transport, homeserver):
        homeserver.answers["/a/b"] = Reply.json([1])
        destination = Destination("hs.test", 8448, "HS.test:8449", "hs.test")
        response = get(make_transport(), destination, target="/a/b?c=%2F&d=")
        assert (response.status, response.body) == (200, b"[1]")
        (request,) = homeserver.requests
        assert (request.method, request.target, request.body) == ("GET", "/a/b?c=%2F&d=", b"")
        assert dict(request.headers) == {
            "Host": "HS.test:8449",
            "User-Agent": "matrix-identity",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        assert homeserver.sni_names == ["hs.test"]

    def test_request_ignores_proxies_of_the_environment(
        self, make_transport, homeserver, network, monkeypatch
    ):
        for variable in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, "http://127.0.0.1:1")
        homeserver.answers["/x"] = Reply()
        assert get(make_transport()).status == 200
        assert network.connects == [(PUBLIC, 8448)]

    @pytest.mark.requirement("AUTH-08")
    def test_redirect_is_not_followed(self, make_transport, homeserver):
        homeserver.answers["/x"] = Reply(302, headers={"Location": "https://hs.test:8448/y"})
        assert get(make_transport()).status == 302
        assert homeserver.paths() == ["/x"]

    def test_target_that_would_break_the_request_is_not_sent(self, make_transport, homeserver):
        for target in ("/x y", "/x\r\nA: b", "/é"):
            with pytest.raises(CallError):
                get(make_transport(), target=target)
        assert homeserver.requests == []


@pytest.mark.requirement("FED-01")
class TestIpLiteral:
    @pytest.mark.parametrize("bind", ["127.0.0.1", "::1"])
    def test_certificate_for_the_address_is_accepted_without_sni(self, settings, resolver, bind):
        with FakeHomeserver(bind, bind=bind) as homeserver:
            homeserver.answers["/x"] = Reply()
            destination = Destination(bind, homeserver.port, "as given", bind)
            transport = Transport(settings(allow_private_addresses=True), resolver)
            assert get(transport, destination).status == 200
        assert homeserver.sni_names == [None]
        assert homeserver.requests[0].headers["Host"] == "as given"
        assert resolver.asked == []

    def test_certificate_for_another_address_is_refused(self, settings, resolver):
        with FakeHomeserver("127.0.0.2", "localhost") as homeserver:
            destination = Destination("127.0.0.1", homeserver.port, "127.0.0.1", "127.0.0.1")
            transport = Transport(settings(allow_private_addresses=True), resolver)
            assert failure_of(transport, destination).reason == "certificate not valid"
        assert homeserver.requests == []


@pytest.mark.requirement("FED-07")
class TestCertificate:
    def refused(self, homeserver, make_transport, network):
        network.routes[PUBLIC, 8448] = ("127.0.0.1", homeserver.port)
        failure = failure_of(make_transport())
        assert isinstance(failure, ConnectError)
        assert homeserver.requests == []
        return failure.reason

    def test_valid_chain_for_another_name_is_refused(self, make_transport, network):
        with FakeHomeserver("other.test") as homeserver:
            reason = self.refused(homeserver, make_transport, network)
        assert reason == "certificate not valid"

    def test_expired_certificate_is_refused(self, make_transport, network):
        with FakeHomeserver(expired=True) as homeserver:
            reason = self.refused(homeserver, make_transport, network)
        assert reason == "certificate not valid"

    def test_certificate_of_unknown_ca_is_refused(self, make_transport, network):
        with FakeHomeserver(trusted=False) as homeserver:
            reason = self.refused(homeserver, make_transport, network)
        assert reason == "certificate not valid"

    @pytest.mark.requirement("AMB-25")
    def test_switch_for_tests_accepts_any_certificate(self, make_transport, network):
        with FakeHomeserver("other.test", trusted=False) as homeserver:
            homeserver.answers["/x"] = Reply()
            network.routes[PUBLIC, 8448] = ("127.0.0.1", homeserver.port)
            assert get(make_transport(verify_certificates=False)).status == 200

    def test_old_tls_version_is_refused(self, make_transport, network):
        with FakeHomeserver() as homeserver:
            homeserver.tls.set_ciphers("DEFAULT@SECLEVEL=0")
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                homeserver.tls.maximum_version = ssl.TLSVersion.TLSv1_1
            reason = self.refused(homeserver, make_transport, network)
        assert reason == "TLS failed"

    def test_ca_file_adds_to_the_default_store(
        self, make_transport, homeserver, monkeypatch, tmp_path
    ):
        """The default store is the system's; here it holds our CA, and `ca_file` another one."""
        monkeypatch.setenv("SSL_CERT_FILE", str(homeserver.ca_file))
        another = tmp_path / "another.pem"
        trustme.CA().cert_pem.write_to_path(another)
        homeserver.answers["/x"] = Reply()
        for ca_file in (None, another):
            assert get(make_transport(ca_file=ca_file)).status == 200

    def test_default_store_without_the_ca_refuses(self, make_transport, monkeypatch, tmp_path):
        another = tmp_path / "another.pem"
        trustme.CA().cert_pem.write_to_path(another)
        monkeypatch.setenv("SSL_CERT_FILE", str(another))
        assert failure_of(make_transport(ca_file=None)).reason == "certificate not valid"

    @pytest.mark.parametrize("content", [None, "no certificate"])
    def test_ca_file_that_cannot_be_read_is_a_setup_error(self, make_transport, tmp_path, content):
        path = tmp_path / "ca.pem"
        if content is not None:
            path.write_text(content)
        with pytest.raises(SetupError, match=r"federation\.ca_file"):
            make_transport(ca_file=path)

    def test_plain_http_server_is_a_failure(self, make_transport, network, plain_server):
        network.routes[PUBLIC, 8448] = plain_server
        assert failure_of(make_transport()).reason == "TLS failed"


@pytest.mark.requirement("FED-11")
class TestBounds:
    """Size, total time, and what is kept in memory, whatever the homeserver does."""

    def test_body_of_the_maximum_is_read_and_one_byte_more_is_not(self, make_transport, homeserver):
        homeserver.answers["/x"] = Reply(body=b"a" * MAX_BODY_BYTES)
        assert len(get(make_transport()).body) == MAX_BODY_BYTES
        homeserver.answers["/x"] = Reply(body=b"a" * (MAX_BODY_BYTES + 1))
        assert failure_of(make_transport()).reason == "answer too large"

    def test_chunked_body_is_read_whole(self, make_transport, homeserver):
        chunks = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (b"[1,", b"2]", b"")]
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        homeserver.answers["/x"] = Reply(raw=[head, *chunks])
        assert get(make_transport()).body == b"[1,2]"

    @pytest.mark.parametrize(
        "head",
        [
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40000000\r\n",
            b"HTTP/1.1 200 OK\r\nX: ",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"",
        ],
        ids=["endless", "1 GB", "chunk of 1 GB", "header", "headers", "continue", "status"],
    )
    @pytest.mark.requirement("AUTH-08")
    def test_endless_answer_is_given_up_early(self, make_transport, homeserver, head):
        piece = b"X-Filler: " + b"a" * 1000 + b"\r\n"
        homeserver.answers["/x"] = Reply(raw=itertools.chain([head], itertools.repeat(piece)))
        failure = failure_of(make_transport())
        assert failure.reason in {"answer too large", "malformed answer"}
        assert not failure.timed_out
        # What fits into the buffers of two sockets, far from what the server would send.
        assert homeserver.sent_bytes < 16 * 1024 * 1024

    @pytest.mark.parametrize(
        "raw",
        [
            [b"HTTP/1.1 200 OK\r\n", *[b"X: " + b"a" * 1000 + b"\r\n"] * 30, b"\r\n"],
            itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
        ],
        ids=["30 KB of headers", "continue for ever"],
    )
    def test_more_around_the_body_than_is_needed_is_refused(self, make_transport, homeserver, raw):
        homeserver.answers["/x"] = Reply(raw=raw)
        assert failure_of(make_transport()).reason == "answer too large"

    def test_body_of_an_error_is_not_read(self, make_transport, homeserver):
        homeserver.answers["/x"] = Reply(401, itertools.repeat(b"a" * 65536))
        response = get(make_transport())
        assert (response.status, response.body) == (401, b"")

    def test_body_cut_short_is_refused(self, make_transport, homeserver):
        for head in (b"Content-Length: 9", b"Transfer-Encoding: chunked"):
            raw = [b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n", b"2\r\n{}"]
            homeserver.answers["/x"] = Reply(raw=raw)
            assert failure_of(make_transport()).reason in {"answer cut short", "malformed answer"}

    @pytest.mark.parametrize("coding", ["gzip", "deflate, br", "identity, gzip"])
    def test_compressed_body_is_refused_unread(self, make_transport, homeserver, coding):
        bomb = gzip.compress(b"a" * 3_000_000)
        assert len(bomb) < MAX_BODY_BYTES
        homeserver.answers["/x"] = Reply(body=bomb, headers={"Content-Encoding": coding})
        assert failure_of(make_transport()).reason == "content encoding not asked for"

    def test_body_named_identity_is_read(self, make_transport, homeserver):
        homeserver.answers["/x"] = Reply(headers={"Content-Encoding": "Identity"})
        assert get(make_transport()).body == b"{}"

    @pytest.mark.parametrize(
        "raw", [b"", b"\0\1\2\r\n", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n"]
    )
    def test_answer_that_is_not_http_is_refused(self, make_transport, homeserver, raw):
        homeserver.answers["/x"] = Reply(raw=[raw])
        assert failure_of(make_transport()).reason in {"malformed answer", "connection lost"}

    @pytest.mark.requirement("AUTH-08")
    @pytest.mark.parametrize("dripped", ["status", "headers", "body", "chunks"])
    def test_dripped_answer_ends_with_the_deadline(self, make_transport, homeserver, dripped):
        at_once, slowly = {
            "status": (b"", b"HTTP/1.1 200 OK\r\n" * 99),
            "headers": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 999),
            "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b" " * 999),
            "chunks": (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"1\r\na\r\n" * 99,
            ),
        }[dripped]
        homeserver.answers["/x"] = Reply(raw=itertools.chain([at_once], homeserver.drip(slowly)))
        started = time.monotonic()
        failure = failure_of(make_transport(), timeout_s=0.4)
        assert 0.3 < time.monotonic() - started < 2
        assert failure.timed_out
        assert homeserver.sent_bytes > len(at_once)

    def test_silent_handshake_ends_with_the_deadline(self, make_transport, network, silent_server):
        network.routes[PUBLIC, 8448] = silent_server
        started = time.monotonic()
        failure = failure_of(make_transport(), timeout_s=0.3)
        assert time.monotonic() - started < 2
        assert isinstance(failure, ConnectError)
        assert failure.timed_out

    def test_connecting_is_given_five_seconds_of_the_deadline(self, settings, resolver):
        given: list[float] = []

        def connect(address: tuple[str, int], timeout_s: float):
            given.append(timeout_s)
            raise TimeoutError

        transport = Transport(settings(), resolver, connect)
        for timeout_s in (60, 3):
            assert failure_of(transport, timeout_s=timeout_s).timed_out
        assert given[0] == 5
        assert 2.5 < given[1] <= 3

    def test_past_deadline_connects_to_nothing(self, make_transport, network):
        assert failure_of(make_transport(), timeout_s=-1).timed_out
        assert network.connects == []
