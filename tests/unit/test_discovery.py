"""The steps of server discovery, over tables: no sockets, no names looked up."""

from collections import Counter
from email.message import Message
from itertools import pairwise
from random import Random

import pytest
from parts.clock import FakeClock
from parts.dns import FakeResolver

from identity.clock import DAY_MS, HOUR_MS, MINUTE_MS
from identity.federation.discovery import MAX_DESTINATIONS, Discovery, order_services
from identity.federation.resolver import Service
from identity.federation.transport import CallError, Deadline, Destination, Response
from identity.lru import LruCache
from identity.mxid import ServerName

WELL_KNOWN = "/.well-known/matrix/server"


class FakeWeb:
    """Pages by URL; what is not there cannot be reached. Stands for `Transport.get`."""

    def __init__(self) -> None:
        self.pages: dict[str, Response] = {}
        self.fetched: list[str] = []

    def page(self, url: str, status: int, body: bytes = b"", **headers: str) -> None:
        message = Message()
        for name, value in headers.items():
            message[name.replace("_", "-")] = value
        self.pages[url] = Response(status, message, body)

    def delegate(self, host: str, name: str, **headers: str) -> None:
        body = b'{"m.server": "%s"}' % name.encode()
        self.page(f"https://{host}{WELL_KNOWN}", 200, body, **headers)

    def get(
        self, destination: Destination, target: str, max_body_bytes: int, deadline: Deadline
    ) -> Response:
        assert destination.host == destination.tls_name
        assert max_body_bytes == 50 * 1024
        assert deadline.left_s() < 6  # half of what `find` was given
        port = "" if destination.port == 443 else f":{destination.port}"
        url = f"https://{destination.host}{port}{target}"
        self.fetched.append(url)
        if url not in self.pages:
            raise CallError("timed out", timed_out=True)
        return self.pages[url]


class World:
    def __init__(self) -> None:
        self.web = FakeWeb()
        self.resolver = FakeResolver()
        self.clock = FakeClock()
        self.discovery = Discovery(self.web.get, self.resolver, self.clock, Random(1))

    def find(self, name: str) -> list[Destination]:
        return self.discovery.find(ServerName.parse(name), Deadline.after(10))


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.requirement("FED-01")
@pytest.mark.parametrize(
    ("name", "host", "port"),
    [
        ("127.0.0.1", "127.0.0.1", 8448),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]", "::1", 8448),
        ("[::1]:8449", "::1", 8449),
    ],
)
def test_ip_literal_is_the_destination(world, name, host, port):
    assert world.find(name) == [Destination(host, port, name, host)]
    assert world.web.fetched == world.resolver.asked == []


@pytest.mark.requirement("FED-02")
def test_explicit_port_is_used_without_well_known_or_srv(world):
    assert world.find("HS.test:8449") == [Destination("hs.test", 8449, "HS.test:8449", "hs.test")]
    assert world.web.fetched == world.resolver.asked == []


@pytest.mark.requirement("FED-03")
def test_well_known_after_redirects_is_followed(world):
    world.web.page("https://hs.test" + WELL_KNOWN, 301, Location="https://a.hs.test:444/x?y=1#z")
    world.web.page("https://a.hs.test:444/x?y=1", 302, Location="/z")
    world.web.page("https://a.hs.test:444/z", 200, b'{"m.server":"b.test:1"}', Content_Type="a/b")
    assert world.find("hs.test") == [Destination("b.test", 1, "b.test:1", "b.test")]


@pytest.mark.requirement("FED-04")
class TestDelegation:
    @pytest.mark.parametrize(
        ("delegate", "expected"),
        [
            ("1.2.3.4", Destination("1.2.3.4", 8448, "1.2.3.4", "1.2.3.4")),
            ("[2a00::1]:443", Destination("2a00::1", 443, "[2a00::1]:443", "2a00::1")),
            ("b.test:8449", Destination("b.test", 8449, "b.test:8449", "b.test")),
            ("b.test", Destination("b.test", 8448, "b.test", "b.test")),
        ],
    )
    def test_delegate_without_srv_is_the_destination(self, world, delegate, expected):
        world.web.delegate("hs.test", delegate)
        assert world.find("hs.test") == [expected]

    @pytest.mark.parametrize("service", ["_matrix-fed._tcp", "_matrix._tcp"])
    def test_delegate_with_srv_is_reached_at_its_target(self, world, service):
        world.web.delegate("hs.test", "b.test")
        world.resolver.service(f"{service}.b.test", Service(10, 5, 4433, "c.test"))
        assert world.find("hs.test") == [Destination("c.test", 4433, "b.test", "b.test")]

    def test_delegate_is_asked_for_current_service_first(self, world):
        world.web.delegate("hs.test", "b.test")
        world.resolver.service("_matrix-fed._tcp.b.test", Service(10, 5, 1, "new.test"))
        world.resolver.service("_matrix._tcp.b.test", Service(1, 5, 2, "old.test"))
        assert [found.host for found in world.find("hs.test")] == ["new.test"]

    def test_delegate_with_port_is_not_looked_up(self, world):
        world.web.delegate("hs.test", "b.test:1")
        world.find("hs.test")
        assert world.resolver.asked == []

    def test_delegate_of_a_delegate_is_not_followed(self, world):
        world.web.delegate("hs.test", "b.test")
        world.web.delegate("b.test", "c.test")
        assert [found.host for found in world.find("hs.test")] == ["b.test"]
        assert world.web.fetched == ["https://hs.test" + WELL_KNOWN]


@pytest.mark.requirement("FED-05")
class TestInvalidWellKnown:
    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (404, b'{"m.server":"b.test"}'),
            (500, b""),
            (204, b""),
            (200, b"[]"),
            (200, b"{}"),
            (200, b'{"m.server":1}'),
            (200, b"<html>"),
        ],
    )
    def test_invalid_well_known_leads_to_the_original_host(self, world, status, body):
        world.web.page("https://hs.test" + WELL_KNOWN, status, body)
        assert world.find("hs.test") == [Destination("hs.test", 8448, "hs.test", "hs.test")]
        assert world.resolver.asked == ["_matrix-fed._tcp.hs.test", "_matrix._tcp.hs.test"]

    @pytest.mark.parametrize("service", ["_matrix-fed._tcp", "_matrix._tcp"])
    def test_unreachable_well_known_leads_to_srv_of_the_original_host(self, world, service):
        world.resolver.service(f"{service}.hs.test", Service(1, 1, 4433, "c.test"))
        assert world.find("hs.test") == [Destination("c.test", 4433, "hs.test", "hs.test")]

    @pytest.mark.requirement("FED-10")
    @pytest.mark.parametrize(
        "location",
        [
            WELL_KNOWN,
            "https://hs.test" + WELL_KNOWN + "#again",
            "http://b.test/",
            "ftp://b.test/",
            "https://user@b.test/",
            "https://b.test:0/",
            "https://[::1/",
            "https://[zz]/",
            "",
        ],
    )
    def test_redirect_that_is_not_followed_leads_to_the_original_host(self, world, location):
        world.web.page("https://hs.test" + WELL_KNOWN, 302, Location=location)
        world.web.page("https://b.test/", 200, b'{"m.server":"b.test"}')
        assert [found.host for found in world.find("hs.test")] == ["hs.test"]
        assert len(world.web.fetched) == 1

    @pytest.mark.requirement("FED-10")
    @pytest.mark.parametrize(("redirects", "host"), [(5, "b.test"), (6, "hs.test")])
    def test_redirects_are_followed_five_times_at_most(self, world, redirects, host):
        urls = ["https://hs.test" + WELL_KNOWN, *(f"https://hs.test/{n}" for n in range(redirects))]
        for url, following in pairwise(urls):
            world.web.page(url, 307, Location=following)
        world.web.page(urls[-1], 200, b'{"m.server":"b.test"}')
        assert [found.host for found in world.find("hs.test")] == [host]
        assert len(world.web.fetched) == 6

    def test_two_urls_that_redirect_to_each_other_end(self, world):
        world.web.page("https://hs.test" + WELL_KNOWN, 302, Location="/a")
        world.web.page("https://hs.test/a", 302, Location=WELL_KNOWN)
        assert [found.host for found in world.find("hs.test")] == ["hs.test"]
        assert len(world.web.fetched) == 2

    def test_broken_name_servers_lead_to_the_original_host(self, world):
        world.resolver.broken_services = True
        assert [found.host for found in world.find("hs.test")] == ["hs.test"]


@pytest.mark.requirement("FED-08")
class TestCache:
    def fetches_after(self, world: World, age_ms: int) -> int:
        world.find("hs.test")
        world.clock.at_ms += age_ms
        world.find("HS.test")
        return len(world.web.fetched)

    @pytest.mark.parametrize(
        ("control", "age_ms", "fetches"),
        [
            ("max-age=999999", DAY_MS, 1),
            ("max-age=999999", 2 * DAY_MS, 2),
            ("max-age=3600", 50 * MINUTE_MS, 1),
            ("max-age=3600", HOUR_MS, 2),
            ("no-store", 5 * MINUTE_MS - 1, 1),
            ("no-store", 5 * MINUTE_MS, 2),
            ("public", 21 * HOUR_MS, 1),
            ("public", DAY_MS, 2),
            ("public", -1, 2),  # the clock was set back
        ],
    )
    def test_delegation_is_kept_for_its_lifetime(self, world, control, age_ms, fetches):
        world.web.delegate("hs.test", "b.test:1", Cache_Control=control)
        assert self.fetches_after(world, age_ms) == fetches

    def test_failure_is_kept_longer_each_time_up_to_an_hour(self, world):
        for minutes in (2, 4, 8, 16, 32, 60, 60):
            world.find("hs.test")
            fetches = len(world.web.fetched)
            # Jitter takes off a tenth at most.
            world.clock.at_ms += minutes * MINUTE_MS * 9 // 10 - 1
            world.find("hs.test")
            assert len(world.web.fetched) == fetches
            world.clock.at_ms += minutes * MINUTE_MS
        world.web.delegate("hs.test", "b.test:1")
        assert [found.host for found in world.find("hs.test")] == ["b.test"]

    def test_failure_after_success_does_not_keep_the_old_delegation(self, world):
        world.web.delegate("hs.test", "b.test:1")
        world.find("hs.test")
        world.web.pages.clear()
        world.clock.at_ms += 2 * DAY_MS
        assert [found.host for found in world.find("hs.test")] == ["hs.test"]

    def test_lru_cache_when_full_forgets_what_was_used_least_recently(self):
        cache: LruCache[str, int] = LruCache(2)
        cache.put("a", 1)
        cache.put("b", 2)
        assert cache.find("a") == 1
        cache.put("c", 3)
        assert (cache.find("a"), cache.find("b"), cache.find("c")) == (1, None, 3)
        cache.discard("a")
        assert cache.find("a") is None


@pytest.mark.requirement("FED-09")
class TestServices:
    def test_services_are_ordered_by_priority(self):
        services = [Service(20, 9, 1, "b"), Service(10, 1, 1, "a"), Service(30, 0, 1, "c")]
        ordered = order_services(services, Random(1))
        assert [service.target for service in ordered] == ["a", "b", "c"]

    def test_services_of_one_priority_are_chosen_in_proportion_to_weight(self):
        services = [Service(1, 60, 1, "a"), Service(1, 30, 1, "b"), Service(1, 10, 1, "c")]
        random = Random(1)
        first = Counter(next(order_services(services, random)).target for _ in range(10_000))
        assert 5_800 < first["a"] < 6_200
        assert 2_800 < first["b"] < 3_200
        assert 800 < first["c"] < 1_200

    def test_services_of_weight_zero_are_chosen_too(self):
        services = [Service(1, 0, 1, "a"), Service(1, 9, 1, "b")]
        random = Random(1)
        first = Counter(next(order_services(services, random)).target for _ in range(1_000))
        assert 50 < first["a"] < 150

    def test_each_service_is_chosen_once(self):
        services = [Service(n % 3, n % 4, n, "a") for n in range(20)]
        ordered = list(order_services(services, Random(1)))
        assert sorted(ordered, key=lambda s: s.port) == services
        assert [service.priority for service in ordered] == sorted(s.priority for s in services)

    def test_service_not_offered_gives_no_destination(self, world):
        world.resolver.service("_matrix-fed._tcp.hs.test", Service(0, 0, 0, "."))
        world.resolver.service("_matrix._tcp.hs.test", Service(0, 0, 1, "c.test"))
        assert world.find("hs.test") == []

    def test_destinations_are_bounded(self, world):
        services = [Service(0, n, n, "c.test") for n in range(1, 2_000)]
        world.resolver.service("_matrix-fed._tcp.hs.test", *services)
        assert len(world.find("hs.test")) == MAX_DESTINATIONS
