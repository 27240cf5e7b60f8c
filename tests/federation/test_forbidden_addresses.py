"""Whatever a homeserver's owner points at us, nothing forbidden is connected to.

Experiments E18 and E19 of the security page, without a network namespace: each attempt to
connect passes a recorder, and only the public front of the homeserver is let through.
"""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from parts.homeserver import Reply
from parts.special_purpose import IPV4_BLOCKS, IPV6_BLOCKS, ipv6_forms

from identity.errors import HomeserverUnreachable
from identity.federation.resolver import Service
from identity.mxid import ServerName

pytestmark = pytest.mark.requirement("FED-10")

PUBLIC = "1.2.3.4"


def _forbidden() -> list[str]:
    """First and last of each block, and each IPv4 address in the six IPv6 forms."""
    found: list[IPv4Address | IPv6Address] = []
    for block in map(ip_network, IPV4_BLOCKS + IPV6_BLOCKS):
        for address in (block[0], block[-1]):
            found.append(address)
            if isinstance(address, IPv4Address):
                found += ipv6_forms(address)
    return list(dict.fromkeys(map(str, found)))


FORBIDDEN = _forbidden()


def _literal(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _call(client, name: str) -> None:
    with pytest.raises(HomeserverUnreachable):
        client.get_openid_subject(ServerName.parse(name), "token")


class TestEntries:
    """Name, literal, delegation, SRV record and redirect: 0 connections to what is forbidden."""

    def test_forbidden_name_is_not_connected_to(self, make_client, resolver, network):
        client = make_client()
        for number, address in enumerate(FORBIDDEN):
            resolver.host(f"{number}.hs.test", address)
            _call(client, f"{number}.hs.test")
        assert network.connects == []

    @pytest.mark.parametrize("port", ["", ":443"])
    def test_forbidden_literal_is_not_connected_to(self, make_client, network, port):
        client = make_client()
        for address in FORBIDDEN:
            _call(client, _literal(address) + port)
        assert network.connects == []

    @pytest.mark.parametrize("kind", ["literal", "name", "redirect", "srv"])
    def test_forbidden_address_behind_a_public_front_is_not_connected_to(
        self, make_client, homeserver, resolver, network, kind
    ):
        client = make_client()
        for number, address in enumerate(FORBIDDEN):
            front, behind = f"{number}.hs.test", f"{number}.behind.test"
            resolver.host(front, PUBLIC)
            resolver.host(behind, address)
            homeserver.well_known = {
                "literal": Reply.json({"m.server": _literal(address)}),
                "name": Reply.json({"m.server": behind}),
                "redirect": Reply(302, headers={"Location": f"https://{_literal(address)}/"}),
                "srv": Reply(404),
            }[kind]
            # In the two last cases nothing is delegated: the SRV record is what is left.
            resolver.service(f"_matrix-fed._tcp.{front}", Service(1, 1, 8448, behind))
            _call(client, front)
        assert network.connects == [(PUBLIC, 443)] * len(FORBIDDEN)
        assert len(homeserver.requests) == len(FORBIDDEN)


def test_public_control_is_reachable(make_client, homeserver):
    user = make_client().get_openid_subject(ServerName.parse("hs.test"), "token")
    assert str(user) == "@alice:hs.test"


def test_forbidden_address_beside_a_public_one_is_passed_over(make_client, resolver, network):
    resolver.host("hs.test", "127.0.0.1", PUBLIC, "::1")
    make_client().get_openid_subject(ServerName.parse("hs.test"), "token")
    assert {host for host, _ in network.connects} == {PUBLIC}


def test_denied_network_is_not_connected_to(make_client, network):
    client = make_client(denied_networks=["1.2.3.0/24"], allow_private_addresses=True)
    _call(client, "hs.test")
    assert network.connects == []


def test_private_address_where_allowed_is_connected_to(make_client, homeserver, resolver, network):
    resolver.host("hs.test", "127.0.0.1")
    network.routes["127.0.0.1", 8448] = ("127.0.0.1", homeserver.port)
    client = make_client(allow_private_addresses=True)
    client.get_openid_subject(ServerName.parse("hs.test"), "token")
    assert network.connects == [("127.0.0.1", 443), ("127.0.0.1", 8448)]


@pytest.mark.parametrize("first", ["public first", "loopback first"])
def test_rebinding_name_is_never_connected_to_on_loopback(make_client, resolver, network, first):
    """A second look-up between check and connection would get the other answer."""
    network.routes.clear()
    answers = [[PUBLIC], ["127.0.0.1"]]
    resolver.alternate("hs.test", *(answers if first == "public first" else answers[::-1]))
    client = make_client()
    for _ in range(1_000):
        _call(client, "hs.test:8448")
    assert network.connects == [(PUBLIC, 8448)] * 500
    assert len(resolver.asked) == 1_000
