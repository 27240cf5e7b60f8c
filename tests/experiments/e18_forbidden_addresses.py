"""E18: whatever a homeserver's owner points the server at, no SYN goes to an address set apart.

First and last address of every special-purpose block, each IPv4 one in six IPv6 forms as well, by
five ways in: a name, a literal, a well-known, an SRV record, a redirect. Pass: 0 SYNs to them in
1,500 tries or more, while the public host is reached. A client without a policy is the control.
"""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_network

from internet import CALLERS, PUBLIC, Internet, internet
from parts.homeserver import WELL_KNOWN, Reply, Request
from parts.special_purpose import IPV4_BLOCKS, IPV6_BLOCKS, ipv6_forms

WAYS = ("name", "literal", "wellknown", "srv", "redirect")


def main() -> None:
    step = 10 if "--quick" in sys.argv else 1
    addresses = forbidden()[::step]
    with internet() as world:
        world.try_without_policy(addresses)
        control = world.syns()["denied"]
        assert control > len(addresses) / 2, "the counter does not count"

        fronts = [name for address in addresses for name in make_fronts(world, address)]
        world.homeserver.answers[WELL_KNOWN] = lead_on
        reached_before = len(world.homeserver.requests)
        with ThreadPoolExecutor(CALLERS) as threads:
            answers = Counter(threads.map(world.register, fronts))
        denied = world.syns()["denied"] - control
        led_on = len(world.homeserver.requests) - reached_before

        world.names.host("public.hs.test", PUBLIC)
        world.homeserver.openid_users["token"] = "@alice:public.hs.test"
        reached = world.register("public.hs.test") == 200
    print(
        f"{denied} SYNs to denied ranges in {len(fronts)} tries ({len(addresses)} addresses × "
        f"{len(WAYS)} ways; {led_on} led on by the public host); a client without a policy sent "
        f"{control} to the same addresses; public host "
        f"{'reached' if reached else 'NOT reached'}"
    )
    assert denied == 0
    assert reached
    # Each was refused for its address, and not for want of a place.
    assert answers == {502: len(fronts)}, answers
    assert led_on == 3 * len(addresses)


def forbidden() -> list[str]:
    found: list[IPv4Address | IPv6Address] = []
    for block in map(ip_network, IPV4_BLOCKS + IPV6_BLOCKS):
        for address in (block[0], block[-1]):
            found.append(address)
            if isinstance(address, IPv4Address):
                found += ipv6_forms(address)
    return list(dict.fromkeys(map(str, found)))


def make_fronts(world: Internet, address: str) -> list[str]:
    """A server name for each way, which leads to the address."""
    label = label_of(address)
    names = world.names
    names.host(f"name-{label}.hs.test", address)
    names.host(f"behind-{label}.hs.test", address)
    for way in ("wellknown", "srv", "redirect"):
        names.host(f"{way}-{label}.hs.test", PUBLIC)
    names.put(f"_matrix-fed._tcp.srv-{label}.hs.test", "SRV", [f"1 1 8448 behind-{label}.hs.test."])
    # Where the redirect fails, an SRV record says where to go instead: to the same.
    names.put(
        f"_matrix-fed._tcp.redirect-{label}.hs.test", "SRV", [f"1 1 443 behind-{label}.hs.test."]
    )
    return [literal(address) if way == "literal" else f"{way}-{label}.hs.test" for way in WAYS]


def lead_on(request: Request) -> Reply:
    """What the public host says at the well-known, by the name it is asked as."""
    way, _, rest = request.headers["Host"].partition("-")
    address = address_of(rest.removesuffix(".hs.test"))
    if way == "wellknown":
        return Reply.json({"m.server": literal(address)})
    if way == "redirect":
        return Reply(302, headers={"Location": f"https://{literal(address)}{WELL_KNOWN}"})
    return Reply(404)


def label_of(address: str) -> str:
    """The address as one label of a name: IPv6 in hexadecimal, IPv4 with dashes."""
    return IPv6Address(address).packed.hex() if ":" in address else address.replace(".", "-")


def address_of(label: str) -> str:
    return label.replace("-", ".") if "-" in label else str(IPv6Address(bytes.fromhex(label)))


def literal(address: str) -> str:
    return f"[{address}]" if ":" in address else address


if __name__ == "__main__":
    main()
