"""What an IP address counts as in a rate limit.

An IPv4 address counts alone. An IPv6 subscriber has a /64 at the least and can use a new
address for each request, so a /64 counts as one; one who rents a /48 has 65,536 of those, so
the /48 counts too, under a wider limit of its own. An IPv4-mapped address is the IPv4 address.
Source: RFC 6177, section 2; Let's Encrypt's limit of registrations likewise counts the /48.
"""

import ipaddress

WIDE_SUFFIX = "_wide"


def ip_subjects(name: str, ip: str) -> tuple[tuple[str, str], ...]:
    """The subjects to spend for a client at `ip`: under `name`, and for IPv6 under `name`_wide.

    All addresses that cannot be read count as one, so that they escape no limit.
    """
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return ((name, "unreadable"),)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return ((name, _network(address, 64)), (name + WIDE_SUFFIX, _network(address, 48)))
        address = address.ipv4_mapped
    return ((name, str(address)),)


def _network(address: ipaddress.IPv6Address, prefix_bits: int) -> str:
    # By number, which leaves out a zone such as "%eth0".
    return str(ipaddress.IPv6Network((int(address), prefix_bits), strict=False))
