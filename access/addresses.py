"""What a caller's address says: whether other machines can reach it, and who counts as one caller. Pure."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NEIGHBOURS_BITS = 64
"""Of an IPv6 address: one customer has all addresses that begin alike."""


def address_of(text: str | None) -> Address | None:
    """The address that a socket shows; an IPv4 one is itself where it comes as IPv6. None for what is no address."""
    try:
        ip = ipaddress.ip_address((text or "").partition("%")[0])
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


@lru_cache(4096)
def neighbourhood(text: str | None) -> Network | None:
    """Those who count as one: an IPv4 address, or an IPv6 network. None for what is no address."""
    ip = address_of(text)
    if ip is None:
        return None
    return ipaddress.ip_network((ip, NEIGHBOURS_BITS if ip.version == 6 else 32), strict=False)


def is_loopback(text: str) -> bool:
    """Whether *text*, the address of a socket on this machine, can be reached from this machine alone."""
    ip = address_of(text)
    # What is no address is a path: a Unix socket, which no other machine can reach.
    return text.startswith("/") if ip is None else ip.is_loopback
