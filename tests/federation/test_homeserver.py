"""Whole calls to a homeserver: found, reached over TLS, asked, believed or not."""

import socket
import threading
import time

import pytest
from parts.dns import FakeResolver
from parts.homeserver import USERINFO, WELL_KNOWN, FakeHomeserver, Reply
from structlog.testing import capture_logs

from identity.errors import (
    HomeserverRefusedToken,
    HomeserversBusy,
    HomeserverUnreachable,
    InvalidParameter,
)
from identity.federation.homeserver import HomeserverClient
from identity.federation.resolver import Service
from identity.mxid import ServerName

PUBLIC = "1.2.3.4"
OTHER_PUBLIC = "1.2.3.5"


def subject(client: HomeserverClient, server: str = "hs.test", token: str = "token") -> str:
    return str(client.get_openid_subject(ServerName.parse(server), token))


class TestOpenId:
    @pytest.mark.requirement("AUTH-04")
    def test_token_arrives_intact_and_unsigned(self, make_client, homeserver):
        homeserver.openid_users["a+b/c&d= é"] = "@alice:hs.test"
        assert subject(make_client(), token="a+b/c&d= é") == "@alice:hs.test"
        request = homeserver.requests[-1]
        assert request.method == "GET"
        assert request.target == f"{USERINFO}?access_token=a%2Bb%2Fc%26d%3D%20%C3%A9"
        assert "Authorization" not in request.headers

    @pytest.mark.requirement("AUTH-05")
    @pytest.mark.parametrize(
        "sub",
        [
            "@a:other.test",
            "@a:hs.test:8448",
            "@a:hs.test.other.test",
            "@a:x.hs.test",
            "@a:hs.test.",
            "@a:Hs.test",
            "@a:ahs.test",
            "a:hs.test",
            "@a",
            "@:hs.test",
            "",
            7,
            None,
            ["@alice:hs.test"],
        ],
    )
    def test_foreign_or_malformed_subject_is_refused(self, make_client, homeserver, sub):
        homeserver.answers[USERINFO] = Reply.json({"sub": sub})
        with pytest.raises(HomeserverRefusedToken):
            subject(make_client())

    @pytest.mark.requirement("AMB-16")
    def test_server_name_is_compared_as_it_was_sent(self, make_client, homeserver):
        homeserver.openid_users["token"] = "@alice:HS.test"
        assert subject(make_client(), "HS.test") == "@alice:HS.test"
        with pytest.raises(HomeserverRefusedToken):
            subject(make_client(), "hs.test")

    @pytest.mark.requirement("AUTH-06")
    @pytest.mark.parametrize("name", ["example.com#", "a/b", "u@h", "", "h:99999", "h:0", "[::1"])
    def test_malformed_server_name_leads_to_no_request(self, make_client, resolver, network, name):
        client = make_client()
        with pytest.raises(InvalidParameter):
            subject(client, name)
        assert resolver.asked == network.connects == []

    @pytest.mark.requirement("AUTH-07")
    @pytest.mark.requirement("AMB-28")
    @pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 499])
    def test_refusal_by_the_homeserver_is_refused(self, make_client, homeserver, status):
        homeserver.answers[USERINFO] = Reply.json({"sub": "@alice:hs.test"}, status)
        with pytest.raises(HomeserverRefusedToken):
            subject(make_client())

    @pytest.mark.requirement("AUTH-07")
    def test_unknown_token_is_refused(self, make_client):
        with pytest.raises(HomeserverRefusedToken):
            subject(make_client(), token="bogus")

    @pytest.mark.requirement("AUTH-07")
    @pytest.mark.requirement("AMB-28")
    @pytest.mark.parametrize(
        "reply",
        [
            Reply(500),
            Reply(503),
            Reply(204, b""),
            Reply(201, b'{"sub": "@alice:hs.test"}'),
            Reply(302, headers={"Location": f"https://hs.test:8448{USERINFO}?access_token=token"}),
            Reply(body=b""),
            Reply(body=b"<html>"),
            Reply(body=b"[]"),
            Reply(body=b'"@alice:hs.test"'),
            Reply(body=b"{}"),
            Reply(body=b'{"sub": "@alice:hs.test", "sub": "@bob:hs.test"}'),
            Reply(body=b'{"sub": "@alice:hs.test", "x": NaN}'),
            Reply(body=b'{"sub": "@alice:hs.test"'),
        ],
        ids=lambda reply: f"{reply.status} {reply.body!r}",
    )
    def test_odd_answer_is_unreachable(self, make_client, homeserver, reply):
        homeserver.answers[USERINFO] = reply
        with pytest.raises(HomeserverUnreachable):
            subject(make_client())
        assert homeserver.paths() == [WELL_KNOWN, USERINFO]

    @pytest.mark.requirement("AUTH-07")
    def test_homeserver_that_refuses_connections_is_unreachable(self, make_client, network):
        network.routes.clear()
        with pytest.raises(HomeserverUnreachable):
            subject(make_client())

    @pytest.mark.requirement("AUTH-08", "FED-11")
    @pytest.mark.parametrize(("size", "accepted"), [(5 * 1024, True), (5 * 1024 + 1, False)])
    def test_userinfo_is_capped(self, make_client, homeserver, size, accepted):
        body = b'{"sub": "@alice:hs.test"}'
        homeserver.answers[USERINFO] = Reply(body=body + b" " * (size - len(body)))
        if accepted:
            assert subject(make_client()) == "@alice:hs.test"
        else:
            with pytest.raises(HomeserverUnreachable):
                subject(make_client())

    @pytest.mark.requirement("AUTH-08")
    def test_userinfo_of_a_megabyte_is_unreachable(self, make_client, homeserver):
        homeserver.answers[USERINFO] = Reply(body=b" " * 1_000_000)
        with pytest.raises(HomeserverUnreachable):
            subject(make_client())

    @pytest.mark.requirement("AUTH-08")
    def test_homeserver_that_hangs_is_unreachable_in_bounded_time(self, make_client, homeserver):
        homeserver.hold = threading.Event()
        started = time.monotonic()
        with pytest.raises(HomeserverUnreachable):
            subject(make_client(timeout="300ms"))
        assert time.monotonic() - started < 2
        homeserver.hold.set()

    def test_failure_is_logged_without_the_token(self, make_client, homeserver):
        homeserver.answers[USERINFO] = Reply(raw=[b"\r\n"])
        with capture_logs() as logs, pytest.raises(HomeserverUnreachable):
            subject(make_client(), token="c4n4ry")
        (entry,) = logs
        assert (entry["event"], entry["server"]) == ("homeserver_call_failed", "hs.test")
        assert "c4n4ry" not in str(logs)


class TestDiscovery:
    """The steps of discovery over real TLS; test_discovery has their details."""

    @pytest.mark.requirement("FED-01")
    @pytest.mark.parametrize(
        ("name", "connected_to"),
        [
            ("127.0.0.1", ("127.0.0.1", 8448)),
            ("127.0.0.1:8449", ("127.0.0.1", 8449)),
            ("[::1]:8448", ("::1", 8448)),
            ("[::1]", ("::1", 8448)),
        ],
    )
    def test_ip_literal_is_connected_to(
        self, make_client, homeserver, resolver, network, name, connected_to
    ):
        network.routes[connected_to] = ("127.0.0.1", homeserver.port)
        homeserver.openid_users["token"] = f"@alice:{name}"
        assert subject(make_client(allow_private_addresses=True), name) == f"@alice:{name}"
        assert network.connects == [connected_to]
        assert resolver.asked == []
        assert homeserver.paths() == [USERINFO]
        assert homeserver.requests[0].headers["Host"] == name
        assert homeserver.sni_names == [None]

    @pytest.mark.requirement("FED-01")
    @pytest.mark.parametrize("bind", ["127.0.0.1", "::1"])
    def test_ip_literal_without_a_fake_network_is_connected_to(
        self, settings, clock, resolver, bind
    ):
        with FakeHomeserver(bind=bind) as homeserver:
            host = f"[{bind}]" if ":" in bind else bind
            name = f"{host}:{homeserver.port}"
            homeserver.openid_users["token"] = f"@alice:{name}"
            client = HomeserverClient(settings(allow_private_addresses=True), 8, clock, resolver)
            assert subject(client, name) == f"@alice:{name}"

    @pytest.mark.requirement("FED-02")
    def test_explicit_port_is_connected_to_without_well_known(
        self, make_client, homeserver, resolver, network
    ):
        network.routes = {(PUBLIC, 8449): ("127.0.0.1", homeserver.port)}
        homeserver.openid_users["token"] = "@alice:hs.test:8449"
        assert subject(make_client(), "hs.test:8449") == "@alice:hs.test:8449"
        assert network.connects == [(PUBLIC, 8449)]
        assert homeserver.paths() == [USERINFO]
        assert homeserver.requests[0].headers["Host"] == "hs.test:8449"
        assert homeserver.sni_names == ["hs.test"]
        assert resolver.asked == ["hs.test"]

    @pytest.mark.requirement("FED-03")
    @pytest.mark.parametrize("redirected", [False, True])
    def test_well_known_on_443_is_read_whatever_its_type(
        self, make_client, homeserver, network, redirected
    ):
        page = Reply(body=b'{"m.server": "b.hs.test:8449"}', headers={"Content-Type": "text/plain"})
        if redirected:
            homeserver.well_known = Reply(301, headers={"Location": "https://hs.test:8448/page"})
            homeserver.answers["/page"] = page
        else:
            homeserver.well_known = page
        with pytest.raises(HomeserverUnreachable):  # b.hs.test has no address
            subject(make_client())
        ports = [443, 8448] if redirected else [443]
        assert network.connects == [(PUBLIC, port) for port in ports]
        assert homeserver.requests[0].headers["Host"] == "hs.test"

    @pytest.mark.requirement("FED-03")
    @pytest.mark.requirement("FED-05")
    def test_well_known_that_redirects_in_a_loop_leads_to_the_host(self, make_client, homeserver):
        homeserver.well_known = Reply(302, headers={"Location": "/loop"})
        homeserver.answers["/loop"] = Reply(302, headers={"Location": WELL_KNOWN})
        assert subject(make_client()) == "@alice:hs.test"
        assert homeserver.paths() == [WELL_KNOWN, "/loop", USERINFO]

    @pytest.mark.requirement("FED-04")
    @pytest.mark.parametrize(
        ("delegate", "service", "connected_to", "sni"),
        [
            (OTHER_PUBLIC, None, (OTHER_PUBLIC, 8448), None),
            ("b.hs.test:8449", None, (OTHER_PUBLIC, 8449), "b.hs.test"),
            ("b.hs.test", "_matrix-fed._tcp", (OTHER_PUBLIC, 4433), "b.hs.test"),
            ("b.hs.test", "_matrix._tcp", (OTHER_PUBLIC, 4433), "b.hs.test"),
            ("b.hs.test", None, (OTHER_PUBLIC, 8448), "b.hs.test"),
        ],
        ids=["literal", "port", "srv", "deprecated srv", "8448"],
    )
    def test_delegate_is_called_under_its_own_name(
        self, make_client, homeserver, resolver, network, delegate, service, connected_to, sni
    ):
        homeserver.well_known = Reply.json({"m.server": delegate})
        resolver.host("b.hs.test", OTHER_PUBLIC)
        if service:
            resolver.host("target.test", OTHER_PUBLIC)
            resolver.service(f"{service}.b.hs.test", Service(1, 1, 4433, "target.test"))
        with FakeHomeserver("b.hs.test", OTHER_PUBLIC) as delegated:
            delegated.openid_users["token"] = "@alice:hs.test"
            network.routes[connected_to] = ("127.0.0.1", delegated.port)
            assert subject(make_client()) == "@alice:hs.test"
        assert network.connects == [(PUBLIC, 443), connected_to]
        assert homeserver.paths() == [WELL_KNOWN]
        assert delegated.paths() == [USERINFO]
        assert delegated.requests[0].headers["Host"] == delegate
        assert delegated.sni_names == [sni]

    @pytest.mark.requirement("FED-05")
    @pytest.mark.parametrize("by_srv", [False, True])
    @pytest.mark.parametrize(
        "well_known",
        [
            Reply(404),
            Reply(500, b'{"m.server": "b.test"}'),
            Reply(body=b"[]"),
            Reply(body=b"{}"),
            Reply(body=b'{"m.server":1}'),
            Reply(body=b"{"),
            Reply(body=b'{"m.server":"b.test"}' + b" " * 50 * 1024),
            Reply(raw=[b"no HTTP\r\n\r\n"]),
        ],
        ids=["404", "500", "list", "empty", "number", "bad JSON", "too long", "no HTTP"],
    )
    def test_invalid_well_known_leads_to_the_original_host(
        self, make_client, homeserver, resolver, network, well_known, by_srv
    ):
        homeserver.well_known = well_known
        port = 8448
        if by_srv:
            port = 4433
            resolver.host("target.test", PUBLIC)
            resolver.service("_matrix-fed._tcp.hs.test", Service(1, 1, port, "target.test"))
            network.routes[PUBLIC, port] = ("127.0.0.1", homeserver.port)
        assert subject(make_client()) == "@alice:hs.test"
        assert network.connects == [(PUBLIC, 443), (PUBLIC, port)]
        assert homeserver.requests[-1].headers["Host"] == "hs.test"
        assert homeserver.sni_names == ["hs.test", "hs.test"]

    @pytest.mark.requirement("FED-05")
    def test_well_known_with_wrong_certificate_leads_to_the_original_host(
        self, make_client, network
    ):
        with FakeHomeserver("other.test") as web:
            web.well_known = Reply.json({"m.server": "evil.test"})
            network.routes[PUBLIC, 443] = ("127.0.0.1", web.port)
            assert subject(make_client()) == "@alice:hs.test"
        assert web.requests == []

    @pytest.mark.requirement("FED-05")
    def test_well_known_that_hangs_leads_to_the_original_host(self, make_client, network):
        with FakeHomeserver() as web:
            web.hold = threading.Event()
            network.routes[PUBLIC, 443] = ("127.0.0.1", web.port)
            assert subject(make_client(timeout="1s")) == "@alice:hs.test"
            web.hold.set()

    @pytest.mark.requirement("FED-06")
    def test_certificate_of_the_srv_target_is_refused(self, make_client, resolver, network):
        resolver.host("target.test", OTHER_PUBLIC)
        resolver.service("_matrix-fed._tcp.hs.test", Service(1, 1, 4433, "target.test"))
        with FakeHomeserver("target.test") as target:
            network.routes[OTHER_PUBLIC, 4433] = ("127.0.0.1", target.port)
            with pytest.raises(HomeserverUnreachable):
                subject(make_client())
        assert target.requests == []
        assert target.sni_names == ["hs.test"]

    @pytest.mark.requirement("FED-07")
    def test_certificate_for_another_name_is_refused(self, make_client, network):
        with FakeHomeserver("other.test") as other:
            other.openid_users["token"] = "@alice:hs.test"
            network.routes[PUBLIC, 8448] = ("127.0.0.1", other.port)
            with pytest.raises(HomeserverUnreachable):
                subject(make_client())
        assert other.requests == []

    @pytest.mark.requirement("FED-08")
    def test_well_known_is_asked_for_once_while_it_is_kept(self, make_client, homeserver, clock):
        homeserver.well_known = Reply.json({"m.server": "hs.test:8448"}, Cache_Control="no-store")
        client = make_client()
        for _ in range(3):
            subject(client)
        assert homeserver.paths().count(WELL_KNOWN) == 1
        clock.at_ms += 300_000
        subject(client)
        assert homeserver.paths().count(WELL_KNOWN) == 2


@pytest.mark.requirement("FED-09")
class TestFailOver:
    @pytest.fixture
    def two_services(self, resolver: FakeResolver) -> None:
        resolver.host("first.test", OTHER_PUBLIC)
        resolver.host("second.test", PUBLIC)
        resolver.service(
            "_matrix-fed._tcp.hs.test",
            Service(20, 0, 8448, "second.test"),
            Service(10, 0, 8448, "first.test"),
        )

    @pytest.mark.parametrize("failure", ["refuses", "black hole", "no address", "certificate"])
    def test_next_target_is_used_when_the_first_cannot_be_connected_to(
        self, make_client, resolver, network, two_services, failure
    ):
        with FakeHomeserver("first.test") as first:
            if failure == "black hole":
                network.black_holes.add((OTHER_PUBLIC, 8448))
            elif failure == "no address":
                resolver.host("first.test")
            elif failure == "certificate":
                network.routes[OTHER_PUBLIC, 8448] = ("127.0.0.1", first.port)
            assert subject(make_client()) == "@alice:hs.test"
        tried = [] if failure == "no address" else [(OTHER_PUBLIC, 8448)]
        assert network.connects == [(PUBLIC, 443), *tried, (PUBLIC, 8448)]

    @pytest.mark.parametrize(
        "reply", [Reply(500), Reply(401), Reply(raw=[]), Reply(raw=[b"HTTP/1.1 2"])]
    )
    def test_next_target_is_not_used_once_the_request_was_sent(
        self, make_client, homeserver, network, two_services, reply
    ):
        with FakeHomeserver() as first:
            first.answers[USERINFO] = reply
            network.routes[OTHER_PUBLIC, 8448] = ("127.0.0.1", first.port)
            with pytest.raises((HomeserverUnreachable, HomeserverRefusedToken)):
                subject(make_client())
            assert first.paths() == [USERINFO]
        assert homeserver.paths() == [WELL_KNOWN]

    def test_next_address_is_used_when_the_first_refuses(self, make_client, resolver, network):
        resolver.host("hs.test", OTHER_PUBLIC, PUBLIC)
        assert subject(make_client()) == "@alice:hs.test"
        assert network.connects[-2:] == [(OTHER_PUBLIC, 8448), (PUBLIC, 8448)]

    def test_service_that_is_not_offered_is_unreachable(self, make_client, resolver, network):
        resolver.service("_matrix-fed._tcp.hs.test", Service(0, 0, 0, "."))
        with pytest.raises(HomeserverUnreachable):
            subject(make_client())
        assert network.connects == [(PUBLIC, 443)]


@pytest.mark.requirement("FED-11")
class TestShareOfThreads:
    @pytest.mark.parametrize(("threads", "places"), [(8, 2), (4, 1), (1, 1)])
    def test_call_beyond_a_quarter_of_the_threads_is_refused_at_once(
        self, make_client, homeserver, threads, places
    ):
        client = make_client(threads=threads)
        subject(client)  # keeps the well-known, so that each call is one request
        before = len(homeserver.requests)
        homeserver.hold = threading.Event()
        answers: list[str] = []
        callers = [
            threading.Thread(target=lambda: answers.append(subject(client))) for _ in range(places)
        ]
        for caller in callers:
            caller.start()
        homeserver.wait_for_requests(before + places)
        started = time.monotonic()
        with pytest.raises(HomeserversBusy):
            subject(client)
        assert time.monotonic() - started < 1.5
        homeserver.hold.set()
        for caller in callers:
            caller.join()
        assert answers == ["@alice:hs.test"] * places
        assert len(homeserver.requests) == before + places
        assert subject(client) == "@alice:hs.test"

    def test_place_is_free_again_after_a_failure(self, make_client, homeserver):
        client = make_client(threads=1)
        homeserver.answers[USERINFO] = Reply(raw=[b"\r\n"])
        for _ in range(3):
            with pytest.raises(HomeserverUnreachable):
                subject(client)
        del homeserver.answers[USERINFO]
        assert subject(client) == "@alice:hs.test"

    def test_server_after_three_timeouts_is_left_alone_for_ten_seconds(
        self, make_client, homeserver, network, clock
    ):
        client = make_client()
        subject(client)
        network.black_holes.add((PUBLIC, 8448))
        for _ in range(3):
            with pytest.raises(HomeserverUnreachable):
                subject(client)
        attempts = len(network.connects)
        network.black_holes.clear()
        clock.at_ms += 9_999
        with pytest.raises(HomeserverUnreachable):
            subject(client, "HS.test")
        assert len(network.connects) == attempts
        clock.at_ms += 1
        assert subject(client) == "@alice:hs.test"

    def test_server_that_refuses_is_asked_each_time(self, make_client, network):
        client = make_client()
        network.routes.clear()
        for _ in range(5):
            with pytest.raises(HomeserverUnreachable):
                subject(client)
        assert network.connects == [(PUBLIC, 443)] + [(PUBLIC, 8448)] * 5

    def test_each_call_has_one_deadline_for_all_of_its_steps(self, make_client, homeserver):
        """Well-known and answer both drip; together they take no longer than the time-out."""
        endless = Reply(raw=homeserver.drip(b"HTTP/1.1 200 OK\r\n" * 99))
        homeserver.well_known = endless
        homeserver.answers[USERINFO] = Reply(raw=homeserver.drip(b"HTTP/1.1 200 OK\r\n" * 99))
        started = time.monotonic()
        with pytest.raises(HomeserverUnreachable):
            subject(make_client(timeout="600ms"))
        assert 0.5 < time.monotonic() - started < 2
        assert homeserver.paths() == [WELL_KNOWN, USERINFO]


def test_client_uses_real_connections_by_default(settings, clock, resolver):
    """Nothing listens on the port, so the real network refuses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    resolver.host("localhost", "127.0.0.1")
    client = HomeserverClient(settings(allow_private_addresses=True), 8, clock, resolver)
    with pytest.raises(HomeserverUnreachable):
        subject(client, f"localhost:{port}")
