"""Telling a homeserver of a binding: one request, and nothing but its status counts."""

import itertools
import threading
import time

import pytest
from parts.homeserver import ONBIND, WELL_KNOWN, FakeHomeserver, Reply

from identity.errors import HomeserversBusy, HomeserverUnreachable
from identity.federation.resolver import Service
from identity.mxid import ServerName

PUBLIC = "1.2.3.4"
OTHER_PUBLIC = "1.2.3.5"
HS = ServerName.parse("hs.test")
BODY = '{"mxid":"@älice:hs.test"}'.encode()


@pytest.mark.requirement("ONB-06")
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_body_arrives_as_json_without_authorization(make_client, homeserver, method):
    assert make_client().send_onbind(HS, BODY, method) == 200
    request = homeserver.requests[-1]
    assert (request.method, request.target, request.body) == (method, ONBIND, BODY)
    assert dict(request.headers) == {
        "Host": "hs.test",
        "User-Agent": "matrix-identity",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(BODY)),
    }


def test_body_larger_than_the_buffers_of_a_socket_arrives(make_client, homeserver):
    body = b" " * 4_000_000
    assert make_client().send_onbind(HS, body, "POST") == 200
    assert homeserver.requests[-1].body == body


@pytest.mark.requirement("ONB-01")
def test_delegated_homeserver_is_told(make_client, homeserver, resolver, network):
    homeserver.well_known = Reply.json({"m.server": "b.hs.test:8449"})
    resolver.host("b.hs.test", OTHER_PUBLIC)
    with FakeHomeserver("b.hs.test") as delegated:
        network.routes[OTHER_PUBLIC, 8449] = ("127.0.0.1", delegated.port)
        assert make_client().send_onbind(HS, BODY, "POST") == 200
    assert homeserver.paths() == [WELL_KNOWN]
    assert delegated.paths() == [ONBIND]


@pytest.mark.parametrize("status", [200, 201, 204, 302, 400, 403, 404, 405, 429, 500, 501, 503])
def test_status_is_returned_whatever_it_is(make_client, homeserver, status):
    body = b"" if status == 204 else b"{}"
    homeserver.onbind = Reply(status, body, {"Location": f"https://hs.test:8448{ONBIND}"})
    assert make_client().send_onbind(HS, BODY, "POST") == status
    assert homeserver.paths() == [WELL_KNOWN, ONBIND]


@pytest.mark.parametrize(
    "rest",
    [
        [],
        [b"Content-Length: 9\r\n\r\n{"],
        [b"Content-Encoding: gzip\r\n\r\n{}"],
        [b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
        itertools.chain([b"\r\n"], itertools.repeat(b"a" * 65536)),
    ],
    ids=["nothing", "cut short", "compressed", "odd chunk", "endless"],
)
def test_odd_body_after_a_status_changes_nothing(make_client, homeserver, rest):
    """A delivery that succeeded must never be taken for a failure: it would be repeated."""
    head = b"HTTP/1.1 200 OK\r\n" if rest else b"HTTP/1.1 200 OK\r\n\r\n"
    homeserver.onbind = Reply(raw=itertools.chain([head], rest))
    assert make_client().send_onbind(HS, BODY, "POST") == 200
    assert homeserver.sent_bytes < 16 * 1024 * 1024


def test_dripped_body_is_not_waited_for(make_client, homeserver):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"
    homeserver.onbind = Reply(raw=itertools.chain([head], homeserver.drip(b" " * 999)))
    started = time.monotonic()
    assert make_client(timeout="10s").send_onbind(HS, BODY, "POST") == 200
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("raw", [[], [b"HTTP/1.1 2"], [b"no HTTP\r\n\r\n"]])
def test_request_without_a_status_is_unreachable_and_not_sent_again(
    make_client, homeserver, resolver, network, raw
):
    resolver.host("first.test", OTHER_PUBLIC)
    resolver.host("second.test", PUBLIC)
    resolver.service(
        "_matrix-fed._tcp.hs.test",
        Service(10, 0, 8448, "first.test"),
        Service(20, 0, 8448, "second.test"),
    )
    with FakeHomeserver() as first:
        first.onbind = Reply(raw=raw)
        network.routes[OTHER_PUBLIC, 8448] = ("127.0.0.1", first.port)
        with pytest.raises(HomeserverUnreachable):
            make_client().send_onbind(HS, BODY, "POST")
        assert first.paths() == [ONBIND]
    assert homeserver.paths() == [WELL_KNOWN]


def test_next_address_is_used_while_nothing_was_sent(make_client, homeserver, resolver, network):
    resolver.host("hs.test", OTHER_PUBLIC, PUBLIC)
    assert make_client().send_onbind(HS, BODY, "POST") == 200
    assert network.connects[-2:] == [(OTHER_PUBLIC, 8448), (PUBLIC, 8448)]


def test_homeserver_that_hangs_is_unreachable_in_bounded_time(make_client, homeserver):
    homeserver.hold = threading.Event()
    started = time.monotonic()
    with pytest.raises(HomeserverUnreachable):
        make_client(timeout="300ms").send_onbind(HS, BODY, "POST")
    assert time.monotonic() - started < 2
    homeserver.hold.set()


def test_homeserver_that_does_not_read_is_unreachable_in_bounded_time(make_client, homeserver):
    """More than fits into the buffers of two sockets, and nobody takes it."""
    homeserver.deaf = threading.Event()
    started = time.monotonic()
    with pytest.raises(HomeserverUnreachable):
        make_client(timeout="300ms").send_onbind(HS, b" " * 20_000_000, "POST")
    assert time.monotonic() - started < 2
    homeserver.deaf.set()


def test_call_beyond_the_share_of_threads_is_refused_at_once(make_client, homeserver):
    client = make_client(threads=4)
    homeserver.hold = threading.Event()
    caller = threading.Thread(target=client.send_onbind, args=(HS, BODY, "POST"))
    caller.start()
    homeserver.wait_for_requests(1)
    with pytest.raises(HomeserversBusy):
        client.send_onbind(HS, BODY, "POST")
    homeserver.hold.set()
    caller.join()
    assert homeserver.paths() == [WELL_KNOWN, ONBIND]
