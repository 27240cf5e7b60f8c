"""The address blocks that no homeserver lives in, as the registries list them.

Written down here a second time, apart from the code under test, so that a block missing there
is noticed. Source: IANA IPv4 and IPv6 Special-Purpose Address Registries.
"""

from ipaddress import IPv4Address, IPv6Address

IPV4_BLOCKS = [
    "0.0.0.0/8",
    "0.0.0.0/32",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.0.0/29",
    "192.0.0.8/32",
    "192.0.0.9/32",
    "192.0.0.10/32",
    "192.0.0.170/32",
    "192.0.0.171/32",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "224.0.0.0/4",  # multicast has a registry of its own
]

# 64:ff9b::/96 (NAT64) is not here: it is judged by the IPv4 address inside.
IPV6_BLOCKS = [
    "::1/128",
    "::/128",
    "::ffff:0:0/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",
    "2001::/32",
    "2001:1::1/128",
    "2001:1::2/128",
    "2001:1::3/128",
    "2001:2::/48",
    "2001:3::/32",
    "2001:4:112::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:30::/28",
    "2001:db8::/32",
    "2002::/16",
    "2620:4f:8000::/48",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",  # multicast
    "fec0::/10",  # retired: site-local
    "::/96",  # retired: IPv4-compatible
    "::ffff:0:0:0/96",  # retired: IPv4-translated
    "4000::/3",  # not given out
    "e000::/4",  # not given out
]


def ipv6_forms(inner: IPv4Address) -> list[IPv6Address]:
    """An IPv4 address mapped, compatible, through both kinds of NAT64, 6to4 and Teredo."""
    number = int(inner)
    return [
        IPv6Address("::ffff:0:0") + number,
        IPv6Address("::") + number,
        IPv6Address("64:ff9b::") + number,
        IPv6Address("64:ff9b:1::") + number,
        IPv6Address("2002::") + (number << 80),
        IPv6Address("2001::") + (number ^ 0xFFFFFFFF),  # Teredo inverts the client's address
    ]
