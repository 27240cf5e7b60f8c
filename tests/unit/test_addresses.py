from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from parts.special_purpose import IPV4_BLOCKS, IPV6_BLOCKS, ipv6_forms

from identity.federation.addresses import AddressPolicy, embedded_ipv4

pytestmark = pytest.mark.requirement("FED-10")

PUBLIC = ["1.2.3.4", "9.255.255.255", "172.32.0.1", "223.255.255.255", "2606:4700::1", "2a00::1"]


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
        for form in ipv6_forms(inner):
            assert not AddressPolicy().allows(form), form


def test_nat64_address_with_public_inside_is_allowed():
    assert AddressPolicy().allows(IPv6Address("64:ff9b::102:304"))


@pytest.mark.parametrize("form", ipv6_forms(IPv4Address("1.2.3.4")), ids=str)
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
