"""Which links may be fetched: their syntax, and the addresses they may lead to. Pure: nothing is looked up here."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import unquote, urlsplit

from errors import ConfigurationError, InvalidLink, LinkNotAllowed

Address = IPv4Address | IPv6Address

MAX_LINK_CHARS = 4096
DEFAULT_PORTS = {"http": 80, "https": 443}

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_MOST_HOST_CHARS = 1024
"""As it is sent: 253 characters, each of them percent-encoded, and some room."""

# Source: the IANA registries of special-purpose addresses, and what cloud machines find behind public ones.
_CLOSED_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata too
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's platform: a public number that only its own machines reach
        "169.254.0.0/16",  # link-local, and the metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # Oracle's metadata too
        "192.0.2.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
# NOTE: `ipaddress.is_global` is true for NAT64, 6to4, IPv4-compatible and site-local addresses, so it is not asked.
# Only 2000::/3 is given out for the public network: all that embeds an IPv4 address but 6to4 and Teredo lies outside.
_OPEN_V6 = IPv6Network("2000::/3")
_CLOSED_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
_CLOSED_SUFFIXES = ("localhost", "local", "internal", "localdomain", "lan", "intranet", "corp", "home", "home.arpa")


@dataclass(frozen=True, slots=True)
class Link:
    """A link whose syntax is sound. *url* is rewritten with *host*, so that no later reader can see another one."""

    scheme: str
    host: str
    """Lower case; a name in ASCII, or an address in its plain notation, without brackets."""
    port: int
    url: str


class HostList:
    """Hosts that an operator names: "example.com" stands for it and all below it, "203.0.113.0/24" for addresses."""

    def __init__(self, setting: str, entries: Sequence[str]) -> None:
        """Raises ConfigurationError that names *setting* and the wrong entry."""
        self.names: set[str] = set()
        self.networks: list[IPv4Network | IPv6Network] = []
        for entry in entries:
            try:
                self.networks.append(ipaddress.ip_network(entry))
                continue
            except ValueError:
                pass
            try:
                name = _normal_host(entry)
                if literal_address(name) is not None:
                    raise InvalidLink
            except InvalidLink as error:
                raise ConfigurationError(
                    f"{setting}: {entry!r} is no name, address or network, such as example.com or 203.0.113.0/24."
                ) from error
            self.names.add(name)

    def __bool__(self) -> bool:
        return bool(self.names or self.networks)

    def names_host(self, host: str) -> bool:
        """Whether *host* (normalised) is one of the names, or below one."""
        labels = host.split(".")
        return any(".".join(labels[at:]) in self.names for at in range(len(labels)))

    def holds_address(self, address: Address) -> bool:
        return any(address in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Which hosts and addresses links may lead to: public ones, and those that the operator has opened by name.

    *private_hosts_allowed* are "host:port" entries. An entry opens that host as it is written in a link, whatever it
    resolves to; a name that merely resolves to an opened address stays closed. Of all that, what is on *hosts_denied*
    is closed again, and so is what is not on *hosts_allowed* where anything is. Raises ConfigurationError.
    """

    private_hosts_allowed: tuple[str, ...] = ()
    hosts_denied: tuple[str, ...] = ()
    hosts_allowed: tuple[str, ...] = ()
    _denied: HostList = field(init=False, repr=False, compare=False)
    _allowed: HostList = field(init=False, repr=False, compare=False)
    _opened: frozenset[tuple[str, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        opened = set()
        for entry in self.private_hosts_allowed:
            try:
                opened.add(split_authority(entry, None))
            except InvalidLink as error:
                raise ConfigurationError(
                    f"PRIVATE_HOSTS_ALLOWED: {entry!r} is not host:port, such as 192.168.1.5:8080."
                ) from error
        object.__setattr__(self, "_opened", frozenset(opened))
        object.__setattr__(self, "_denied", HostList("LINK_HOSTS_DENIED", self.hosts_denied))
        object.__setattr__(self, "_allowed", HostList("LINK_HOSTS_ALLOWED", self.hosts_allowed))

    def is_opened(self, host: str, port: int) -> bool:
        return (host, port) in self._opened

    def check_host(self, host: str, port: int) -> None:
        """Refuse what can be refused before any look-up. *host* is normalised. Raises LinkNotAllowed."""
        address = literal_address(host)
        if address is not None:
            if not self.allows(host, port, address):
                raise LinkNotAllowed
            return
        # A name on neither list may still lead to an address that is: that is seen when it has been looked up.
        is_excluded = bool(self._allowed) and not self._allowed.networks and not self._allowed.names_host(host)
        if is_excluded or self._denied.names_host(host):
            raise LinkNotAllowed
        if self.is_opened(host, port):
            return
        if "." not in host or any(host == suffix or host.endswith("." + suffix) for suffix in _CLOSED_SUFFIXES):
            # A name without a dot is completed by the machine's own search list: it is a neighbour.
            raise LinkNotAllowed

    def allows(self, host: str, port: int, address: Address) -> bool:
        """Whether *host* (normalised) may be reached at *address*, one of those that it resolved to."""
        if self._denied.names_host(host) or self._denied.holds_address(address):
            return False
        if self._allowed and not (self._allowed.names_host(host) or self._allowed.holds_address(address)):
            return False
        return self.is_opened(host, port) or is_public(address)


PUBLIC_ONLY = AddressPolicy()


def check_link(url: str, policy: AddressPolicy = PUBLIC_ONLY) -> Link:
    """A link that may be fetched as far as its text tells. Raises InvalidLink, LinkNotAllowed."""
    if len(url) > MAX_LINK_CHARS:
        raise InvalidLink(f"The link is longer than {MAX_LINK_CHARS} characters.")
    if any(char.isspace() or char == "\\" or unicodedata.category(char) in ("Cc", "Cs") for char in url):
        raise InvalidLink("The link holds spaces, control characters or backslashes.")
    if "__youtubedl_smuggle" in url:
        # yt-dlp reads headers, and with them another proxy, from such a fragment.
        raise InvalidLink
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidLink from error
    if parts.scheme not in DEFAULT_PORTS or url[len(parts.scheme) :][:3] != "://":
        raise InvalidLink
    if "@" in parts.netloc:
        raise InvalidLink("The link holds a user name or password.")
    host, port = split_authority(parts.netloc, DEFAULT_PORTS[parts.scheme])
    policy.check_host(host, port)
    after_authority = url[len(parts.scheme) + 3 + len(parts.netloc) :]
    authority = join_authority(host, None if port == DEFAULT_PORTS[parts.scheme] else port)
    return Link(parts.scheme, host, port, f"{parts.scheme}://{authority}{after_authority}")


def split_authority(authority: str, default_port: int | None) -> tuple[str, int]:
    """The normalised host and the port of "host", "host:port" or "[address]:port". Raises InvalidLink."""
    if authority.startswith("["):
        literal, bracket, port_text = authority[1:].partition("]")
        if not bracket or (port_text and not port_text.startswith(":")) or "%" in literal:
            raise InvalidLink
        try:
            host = str(IPv6Address(literal))
        except ValueError as error:
            raise InvalidLink from error
        port_text = port_text[1:]
    else:
        raw_host, _, port_text = authority.partition(":")
        host = _normal_host(raw_host)
    if port_text == "" and default_port is not None:
        return host, default_port
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 0 < int(port_text) < 65536):
        raise InvalidLink("The link's port is not a number from 1 to 65535.")
    return host, int(port_text)


def join_authority(host: str, port: int | None) -> str:
    """The reverse of split_authority, for links and Host headers."""
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port is None else f"{bracketed}:{port}"


def literal_address(host: str) -> Address | None:
    """The address that *host*, normalised, spells; None where it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether *address* belongs to a machine of the public network, reached without any translation on the way."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _CLOSED_V4)
    if address.scope_id is not None:
        return False
    return address in _OPEN_V6 and not any(address in network for network in _CLOSED_V6)


def _normal_host(raw: str) -> str:
    """A host as the machine's resolver would read it: any notation of an IPv4 address becomes the plain one."""
    if len(raw) > _MOST_HOST_CHARS:
        # Before it is folded, which takes the square of the length.
        raise InvalidLink("The link names no host that could be looked up.")
    try:
        # NFKC folds full-width and circled digits and dots; the two ideographic full stops fold to one.
        text = unicodedata.normalize("NFKC", unquote(raw, errors="strict")).replace("\u3002", ".")
        host = text.encode("idna").decode("ascii").lower() if not text.isascii() else text.lower()
    except UnicodeError as error:
        raise InvalidLink from error
    host = host.removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise InvalidLink("The link names no host that could be looked up.")
    return str(_loose_ipv4(labels)) if _NUMBER.fullmatch(labels[-1]) else host


def _loose_ipv4(labels: list[str]) -> IPv4Address:
    """An address written as inet_aton reads it: one to four parts, decimal, octal or hexadecimal, the last one filling
    up. What only looks like one is refused, since readers differ. Source: POSIX inet_addr, WHATWG URL §3.5."""
    if len(labels) > 4 or not all(_NUMBER.fullmatch(label) for label in labels):
        raise InvalidLink
    try:
        parts = [_c_integer(label) for label in labels]
        if any(part > 255 for part in parts[:-1]):
            raise InvalidLink
        value = parts[-1]
        for index, part in enumerate(parts[:-1]):
            value += part << (8 * (3 - index))
        if parts[-1] >= 256 ** (5 - len(parts)):
            raise InvalidLink
        return IPv4Address(value)
    except ValueError as error:
        raise InvalidLink from error


def _c_integer(text: str) -> int:
    if text.startswith("0x"):
        return int(text, 16)
    return int(text, 8 if text.startswith("0") else 10)
