"""Which addresses may be connected to. The blocks are those of the registries, not of the code."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest

from identity.federation.addresses import AddressPolicy, embedded_ipv4

pytestmark = pytest.mark.requirement("FED-10")

# IANA IPv4 Special-Purpose Address Registry, and multicast.
IPV4_BLOCKS = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
192.0.0.0/29 192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24
192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15
198.51.100.0/24 203.0.113.0/24 240.0.0.0/4 255.255.255.255/32 224.0.0.0/4
""".split()

# IANA IPv6 Special-Purpose Address Registry, multicast, and retired or unassigned space.
# 64:ff9b::/96 is judged by what it holds, in a test of its own.
IPV6_BLOCKS = """
::1/128 ::/128 ::ffff:0:0/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32
2001:1::1/128 2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28
2001:20::/28 2001:30::/28 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7
fe80::/10 ff00::/8 fec0::/10 ::/96 ::ffff:0:0:0/96 4000::/3 e000::/4
""".split()

PUBLIC = ["1.2.3.4", "9.255.255.255", "172.32.0.1", "223.255.255.255", "2606:4700::1", "2a00::1"]


def forms_of(inner: IPv4Address) -> list[IPv6Address]:
    """The ways to write an IPv4 address as an IPv6 one."""
    number = int(inner)
    return [
        IPv6Address(int(IPv6Address("::ffff:0:0")) | number),
        IPv6Address(number),
        IPv6Address(int(IPv6Address("64:ff9b::")) | number),
        IPv6Address(int(IPv6Address("64:ff9b:1::")) | number),
        IPv6Address((0x2002 << 112) | (number << 80)),
        IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF)),
    ]


@pytest.mark.parametrize("block", IPV4_BLOCKS + IPV6_BLOCKS)
def test_special_purpose_block_by_default_is_refused(block):
    network = ip_network(block)
    middle = network[network.num_addresses // 2]
    for address in (network[0], middle, network[-1]):
        assert not AddressPolicy().allows(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_by_default_is_allowed(address):
    assert AddressPolicy().allows(ip_address(address))


@pytest.mark.parametrize("block", IPV4_BLOCKS)
def test_embedded_special_address_by_default_is_refused(block):
    network = IPv4Network(block)
    for inner in (network[0], network[-1]):
        for form in forms_of(inner):
            assert not AddressPolicy().allows(form), form


def test_nat64_address_with_public_inside_is_allowed():
    assert AddressPolicy().allows(IPv6Address("64:ff9b::102:304"))


@pytest.mark.parametrize("form", forms_of(IPv4Address("1.2.3.4")), ids=str)
def test_embedded_public_address_is_found_and_denied_by_network(form):
    assert IPv4Address("1.2.3.4") in embedded_ipv4(form)
    policy = AddressPolicy(allow_private=True, denied_networks=(IPv4Network("1.2.3.0/24"),))
    assert not policy.allows(form)
    assert AddressPolicy(allow_private=True).allows(form)


@pytest.mark.parametrize(
    "address",
    ["64:ff9b:1:0102:03:400::", "64:ff9b:1:1:2:304::", "64:ff9b:1:1:1:203:400:0"],
)
def test_local_nat64_address_of_each_prefix_length_is_found(address):
    assert IPv4Address("1.2.3.4") in embedded_ipv4(IPv6Address(address))


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "::1", "fd00::1", "fe80::1", *PUBLIC])
def test_unicast_address_with_private_allowed_is_allowed(address):
    assert AddressPolicy(allow_private=True).allows(ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "255.255.255.255", "ff02::1", "::ffff:e000:1"],
)
def test_address_that_is_not_unicast_with_private_allowed_is_refused(address):
    assert not AddressPolicy(allow_private=True).allows(ip_address(address))


@pytest.mark.parametrize("allow_private", [False, True])
def test_denied_network_is_refused_always(allow_private):
    denied = (IPv4Network("1.2.3.0/24"), IPv6Network("2a00::/16"))
    policy = AddressPolicy(allow_private=allow_private, denied_networks=denied)
    assert not policy.allows(IPv4Address("1.2.3.4"))
    assert not policy.allows(IPv6Address("2a00::1"))
    assert policy.allows(IPv4Address("1.2.4.4"))
