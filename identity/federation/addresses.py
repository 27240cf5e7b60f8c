"""Which IP addresses a call to a homeserver may go to.

Whoever owns a homeserver's name decides where it points, so every address is judged before
it is connected to: names, literals, delegations, SRV targets and redirects alike.

Rules:
- blocks that the IANA registries set apart are refused, reachable or not: no homeserver
  lives in one. In IPv6 everything outside 2000::/3, the space for global unicast, is too;
- a NAT64 address is what a network without IPv4 is given for each IPv4-only homeserver, so
  it is judged by the IPv4 address inside;
- where private addresses are allowed, every unicast address is;
- `denied_networks` is refused always, and in every form that can carry an IPv4 address.

Source: IANA IPv4 and IPv6 Special-Purpose Address Registries; RFC 4291, 6052, 8215, 3056, 4380.
"""

from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from typing import Final

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

_SPECIAL_PURPOSE: Final = tuple(
    ip_network(block)
    for block in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared with a carrier's NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, and the metadata services of clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        # Outside 2000::/3: unspecified, loopback, IPv4-mapped and -compatible, local NAT64,
        # discard-only, segment routing, unique local, link- and site-local, multicast.
        "::/3",
        "4000::/2",
        "8000::/1",
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")
_LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")
_IPV4_COMPATIBLE: Final = IPv6Network("::/96")
_BROADCAST: Final = IPv4Address("255.255.255.255")


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """The operator's settings, as one question."""

    allow_private: bool = False
    denied_networks: tuple[IPNetwork, ...] = ()

    def allows(self, address: IPAddress) -> bool:
        inside = embedded_ipv4(address)
        if any(form in network for form in (address, *inside) for network in self.denied_networks):
            return False
        if self.allow_private:
            return _is_unicast(address)
        judged = inside if address in _NAT64 else (address,)
        return not any(form in block for form in judged for block in _SPECIAL_PURPOSE)


def embedded_ipv4(address: IPAddress) -> tuple[IPv4Address, ...]:
    """Each IPv4 address that a translator or tunnel may read out of an IPv6 address.

    Several for Teredo (server and client) and for 64:ff9b:1::/48, from which a network may
    make prefixes of four lengths.
    """
    if isinstance(address, IPv4Address):
        return ()
    packed = address.packed
    if address in _LOCAL_NAT64:
        # Bits 64 to 71 are always zero and no part of the IPv4 address (RFC 6052, 2.2).
        return (
            IPv4Address(packed[6:8] + packed[9:11]),
            IPv4Address(packed[7:8] + packed[9:12]),
            IPv4Address(packed[9:13]),
            IPv4Address(packed[12:16]),
        )
    if address in _NAT64 or address in _IPV4_COMPATIBLE:
        return (IPv4Address(packed[12:16]),)
    if address.teredo:
        return address.teredo
    inside = address.ipv4_mapped or address.sixtofour
    return (inside,) if inside else ()


def _is_unicast(address: IPAddress) -> bool:
    reached = address
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        reached = address.ipv4_mapped
    return not (reached.is_multicast or reached.is_unspecified or reached == _BROADCAST)
