"""The real resolver: the system's names, and a name server on loopback."""

import socket
import threading
import time
from ipaddress import ip_address

import dns.rcode
import dns.resolver
import pytest
from parts.dns import FakeDnsServer

from identity.federation.resolver import MAX_LOOKUPS, Service, SystemResolver

pytestmark = pytest.mark.requirement("FED-09")


def test_addresses_of_localhost_are_loopback():
    found = SystemResolver().addresses("localhost", 5)
    assert found
    assert all(address.is_loopback for address in found)


def test_addresses_are_each_given_once_in_order():
    def getaddrinfo(host: str, port: None, **_: object) -> list[tuple]:
        texts = ("::1", "127.0.0.1", "::1")
        return [(0, socket.SOCK_STREAM, 6, "", (text, 0)) for text in texts]

    found = SystemResolver(getaddrinfo).addresses("a.test", 5)
    assert found == [ip_address("::1"), ip_address("127.0.0.1")]


def test_addresses_of_unknown_name_raise_oserror():
    def getaddrinfo(*_: object, **__: object) -> list[tuple]:
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    with pytest.raises(OSError, match="not known"):
        SystemResolver(getaddrinfo).addresses("a.test", 5)


def test_addresses_of_name_that_cannot_be_encoded_raise_oserror():
    with pytest.raises(OSError, match="cannot be looked up"):
        SystemResolver().addresses("a" * 64 + ".test", 5)


@pytest.mark.requirement("FED-11")
def test_addresses_when_the_system_hangs_end_in_time_and_in_number():
    released = threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[tuple]:
        released.wait(30)
        return []

    resolver = SystemResolver(getaddrinfo)
    started = time.monotonic()
    for _ in range(MAX_LOOKUPS):
        with pytest.raises(TimeoutError):
            resolver.addresses("a.test", 0.01)
    with pytest.raises(OSError, match="Too many"):
        resolver.addresses("a.test", 0.01)
    assert time.monotonic() - started < 3
    released.set()


def test_services_are_read_from_srv_records():
    with FakeDnsServer() as server:
        server.records["_matrix-fed._tcp.hs.test"] = ["10 5 8449 a.hs.test.", "20 0 1 ."]
        found = SystemResolver(dns_resolver=server.client).services("_matrix-fed._tcp.hs.test", 5)
    assert sorted(found, key=lambda service: service.priority) == [
        Service(10, 5, 8449, "a.hs.test"),
        Service(20, 0, 1, "."),
    ]


def test_services_are_asked_for_each_time():
    """The time to live is for the name server to honour: a change there is seen at once."""
    with FakeDnsServer() as server:
        resolver = SystemResolver(dns_resolver=server.client)
        for port in (1, 2):
            server.records["_x.hs.test"] = [f"0 0 {port} a.test."]
            assert [service.port for service in resolver.services("_x.hs.test", 5)] == [port]


@pytest.mark.parametrize("records", [{}, {"_x.hs.test": []}], ids=["no name", "no record"])
def test_services_where_there_are_none_are_empty(records):
    with FakeDnsServer() as server:
        server.records = records
        assert SystemResolver(dns_resolver=server.client).services("_x.hs.test", 5) == []


def test_services_when_the_name_server_fails_raise_oserror():
    with FakeDnsServer() as server:
        server.rcode = dns.rcode.SERVFAIL
        with pytest.raises(OSError, match="failed"):
            SystemResolver(dns_resolver=server.client).services("_x.hs.test", 1)


def test_services_of_name_that_is_too_long_raise_oserror():
    with FakeDnsServer() as server, pytest.raises(OSError, match="failed"):
        SystemResolver(dns_resolver=server.client).services("_x." + "a." * 130, 1)


def test_services_without_name_servers_raise_oserror():
    def unconfigured() -> dns.resolver.Resolver:
        raise dns.resolver.NoResolverConfiguration

    with pytest.raises(OSError, match="failed"):
        SystemResolver(dns_resolver=unconfigured).services("_x.hs.test", 1)


@pytest.mark.requirement("FED-11")
def test_services_when_the_name_server_is_silent_end_in_time():
    with FakeDnsServer() as server:
        server.mute = True
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            SystemResolver(dns_resolver=server.client).services("_x.hs.test", 0.2)
        assert time.monotonic() - started < 2
        assert server.queries >= 1
