"""What may be fetched: the syntax of links and the addresses behind them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloads.urls import AddressPolicy, check_link, is_public, literal_address, split_authority
from errors import ConfigurationError, InvalidLink, LinkNotAllowed

CLOSED_HOSTS = [
    "127.0.0.1",
    "127.0.0.1.",
    "2130706433",
    "0x7f.1",
    "0X7F.1",
    "0177.0.0.1",
    "127.1",
    "0x7f000001",
    "%31%32%37.0.0.1",
    "127%2e0%2e0%2e1",
    "１２７.0.0.1",
    "①②⑦.0.0.1",
    "127。0。0。1",
    "127．0．0．1",
    "[::1]",
    "[::]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1::]",
    "[fec0::1]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[ff02::1]",
    "10.1.2.3",
    "172.31.255.255",
    "192.168.0.1",
    "100.64.0.1",
    "169.254.169.254",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",
    "0",
    "224.0.0.1",
    "255.255.255.255",
    "198.18.0.1",
    "203.0.113.7",
    "localhost",
    "LOCALHOST.",
    "a.localhost",
    "metadata.google.internal",
    "metadata.google.internal.",
    "db.internal",
    "printer.local",
    "ⓛocalhost",
    "redis",
]


@pytest.mark.parametrize("host", CLOSED_HOSTS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_spelling_of_a_private_address_is_let_through(scheme: str, host: str) -> None:
    """Readers of links differ in what they take for an address: all that one of them might take for one counts."""
    with pytest.raises(LinkNotAllowed) as caught:
        check_link(f"{scheme}://{host}/a.mp3")
    assert caught.value.message == LinkNotAllowed.default_message()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "clip.mp3",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://example.org/a.mp3",
        "gopher://example.org/1",
        "data:audio/mpeg;base64,AAAA",
        "javascript:alert(1)",
        "--exec=id",
        "-http://example.org/",
        "ytsearch:cats",
        "http:example.org/",
        "http:/example.org/",
        "http:///a.mp3",
        "http://",
        "http://:80/",
        "http://good@127.0.0.1/",
        "http://user:secret@example.org/",
        "http://good.example\\@127.0.0.1/",
        "http://example.org\\a.mp3",
        "http://example.org/a\r\nHost: b",
        "http://example.org/a\nb",
        "http://example.org/\0",
        "http://example.org/a b",
        " http://example.org/",
        "http://example.org/\u00a0",
        "http://example.org/\u0085",
        "http://example.org/\ud800",
        "http://example.org:0/",
        "http://example.org:65536/",
        "http://example.org:http/",
        "http://example.org:-80/",
        "http://example.org:８０/",
        "http://example.org:80:80/",
        "http://[::1/",
        "http://[::1]x/",
        "http://[fe80::1%25eth0]/",
        "http://[v1.x]/",
        "http://256.1.1.1/",
        "http://1.2.3.4.5/",
        "http://127.0.0.0x/",
        "http://127.0.0.09/",
        "http://4294967296/",
        "http://exa mple.org/",
        "http://exa%20mple.org/",
        "http://exa%00mple.org/",
        "http://exa%2fmple.org/",
        "http://a..b/",
        "http://-a.example/",
        "http://" + "a" * 64 + ".example/",
        "http://example.org/" + "a" * 4096,
        "http://example.org/#__youtubedl_smuggle=%7B%22http_headers%22%3A%7B%7D%7D",
    ],
)
def test_what_is_no_plain_web_address_is_refused(url: str) -> None:
    """Whatever two programs could read in two ways must not reach the second one."""
    with pytest.raises(InvalidLink):
        check_link(url)


@pytest.mark.parametrize(
    ("url", "host", "port", "rewritten"),
    [
        ("https://example.org/a.mp3?b=c#d", "example.org", 443, "https://example.org/a.mp3?b=c#d"),
        ("HTTP://Example.ORG:80", "example.org", 80, "http://example.org"),
        ("http://example.org:8080/", "example.org", 8080, "http://example.org:8080/"),
        ("http://134744072/x", "8.8.8.8", 80, "http://8.8.8.8/x"),
        (
            "https://[2606:4700:4700:0::1111]:8443/",
            "2606:4700:4700::1111",
            8443,
            "https://[2606:4700:4700::1111]:8443/",
        ),
        ("https://bücher.example/ü", "xn--bcher-kva.example", 443, "https://xn--bcher-kva.example/ü"),
        ("https://a_b.example.org/@user", "a_b.example.org", 443, "https://a_b.example.org/@user"),
    ],
)
def test_a_public_link_is_rewritten_with_the_host_that_was_checked(
    url: str, host: str, port: int, rewritten: str
) -> None:
    """Later readers must not come to another host than the one that was looked at."""
    link = check_link(url)
    assert (link.host, link.port, link.url) == (host, port, rewritten)


def test_an_operator_opens_one_host_at_one_port_and_nothing_beside_it() -> None:
    """A media server at home is wanted; the router next to it, or its own other ports, are not."""
    policy = AddressPolicy(("127.0.0.1:43121", "nas.local:80", "[fd00::5]:8080"))
    assert check_link("http://127.0.0.1:43121/a", policy).port == 43121
    assert check_link("http://2130706433:43121/a", policy).url == "http://127.0.0.1:43121/a"
    assert check_link("http://nas.local/a", policy).host == "nas.local"
    assert check_link("http://[fd00:0::5]:8080/", policy).host == "fd00::5"
    for closed in ("http://127.0.0.1/", "http://127.0.0.1:43122/", "http://nas.local:81/", "http://[fd00::6]:8080/"):
        with pytest.raises(LinkNotAllowed):
            check_link(closed, policy)


def test_a_name_that_resolves_to_an_opened_address_stays_closed() -> None:
    """The operator opened the host by its name; whoever owns another name did not ask him."""
    policy = AddressPolicy(("127.0.0.1:43121",))
    loopback = ipaddress.ip_address("127.0.0.1")
    assert policy.allows("127.0.0.1", 43121, loopback)
    assert not policy.allows("evil.example", 43121, loopback)
    assert policy.allows("evil.example", 43121, ipaddress.ip_address("8.8.8.8"))


@pytest.mark.parametrize("entry", ["127.0.0.1", "127.0.0.1:", ":80", "http://127.0.0.1:80", "a b:80", ""])
def test_an_entry_that_is_no_host_and_port_stops_the_start(entry: str) -> None:
    """A misspelt entry would open nothing, and nobody would know why."""
    with pytest.raises(ConfigurationError, match="PRIVATE_HOSTS_ALLOWED"):
        AddressPolicy((entry,))


@pytest.mark.parametrize("text", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00::1"])
def test_public_addresses_are_public(text: str) -> None:
    """A filter that refuses everything would pass all other tests."""
    assert is_public(ipaddress.ip_address(text))


@given(st.ip_addresses(v=4))
def test_nothing_is_public_that_the_standard_library_knows_to_be_private(address: ipaddress.IPv4Address) -> None:
    """The lists here were typed by hand; the library's are a second opinion."""
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert not is_public(address)


@given(st.ip_addresses(v=6))
def test_nothing_is_public_that_the_standard_library_knows_to_be_private_in_ipv6(
    address: ipaddress.IPv6Address,
) -> None:
    """The same for the longer addresses."""
    if not address.is_global or address.is_multicast or address.is_site_local:
        assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_no_ipv4_address_is_public_in_an_ipv6_coat(address: ipaddress.IPv4Address) -> None:
    """Translators on the way turn such addresses back: what is behind them was never looked at."""
    embedded = int(address)
    for coat in (embedded, 0xFFFF << 32 | embedded, 0x64FF9B << 96 | embedded, 0x2002 << 112 | embedded << 80):
        assert not is_public(ipaddress.IPv6Address(coat))


@given(st.ip_addresses(v=4), st.sampled_from(["int", "hex", "octal", "short"]))
def test_every_notation_of_an_address_is_read_as_that_address(address: ipaddress.IPv4Address, notation: str) -> None:
    """The resolver reads all of these, so the filter has to."""
    value = int(address)
    parts = address.packed
    written = {
        "int": str(value),
        "hex": ".".join(hex(part) for part in parts),
        "octal": ".".join(f"0{part:o}" for part in parts),
        "short": f"{parts[0]}.{value & 0xFFFFFF}",
    }[notation]
    assert split_authority(f"{written}:80", None) == (str(address), 80)


@given(st.text(max_size=60))
def test_no_text_breaks_the_check(text: str) -> None:
    """Links come from strangers: the only answers are a link and the two refusals."""
    for url in (text, f"http://{text}", f"http://{text}/x", f"http://example.org/{text}"):
        try:
            link = check_link(url)
        except (InvalidLink, LinkNotAllowed):
            continue
        assert link.host.isascii()


# --- an operator's own lists -----------------------------------------------------------------------------------------

CAUGHT = [
    "http://example.com/a.mp3",
    "http://EXAMPLE.com.:8080/",
    "https://cdn.eu.example.com/",
    "http://ex%61mple.com/",
    "http://ｅxample.com/",
    "http://bücher.example/",
    "http://xn--bcher-kva.example/",
    "http://8.8.4.7/",
    "http://134743047/",
    "http://[2606:4700::1]/",
]
NOT_CAUGHT = [
    "http://example.com.evil.test/",
    "http://notexample.com/",
    "http://example.org/?example.com",
    "http://8.8.5.7/",
    "http://[2607::1]/",
]
LIST = ("Example.com", "bücher.example", "8.8.4.0/24", "2606:4700::/32")


def allowed(url: str, policy: AddressPolicy) -> bool:
    try:
        check_link(url, policy)
    except LinkNotAllowed:
        return False
    return True


@pytest.mark.parametrize(("url", "caught"), [(url, True) for url in CAUGHT] + [(url, False) for url in NOT_CAUGHT])
def test_an_entry_stands_for_a_host_in_every_spelling_and_for_all_below_it(url: str, caught: bool) -> None:
    """And not for what merely ends or begins like it."""
    assert allowed(url, AddressPolicy(hosts_denied=LIST)) is not caught
    # With networks on the list, where a name leads is known only when it has been looked up: not here.
    is_name = literal_address(check_link(url).host) is None
    assert allowed(url, AddressPolicy(hosts_allowed=LIST[:2] if is_name else LIST)) is caught


def test_what_a_name_resolves_to_is_held_against_the_networks() -> None:
    """Names are had for nothing: a denied network is not reached by another one."""
    inside, outside = ipaddress.ip_address("8.8.4.7"), ipaddress.ip_address("8.8.5.7")
    denied, only = AddressPolicy(hosts_denied=LIST), AddressPolicy(hosts_allowed=LIST)
    assert [denied.allows("a.test", 80, address) for address in (inside, outside)] == [False, True]
    assert [only.allows("a.test", 80, address) for address in (inside, outside)] == [True, False]
    assert only.allows("example.com", 80, outside)
    assert allowed("http://a.test/", only), "where it leads is not known yet"
    assert not denied.allows("example.com", 80, outside)


def test_the_denied_list_wins() -> None:
    both = AddressPolicy(("10.0.0.5:80",), ("ads.example.com", "10.0.0.0/8"), hosts_allowed=("example.com", "10.0.0.5"))
    assert allowed("http://example.com/", both)
    assert not allowed("http://ads.example.com/", both)
    assert not allowed("http://10.0.0.5/", both)


def test_a_list_opens_nothing_that_is_private() -> None:
    """It narrows. What is inside is opened by its own setting, and must stand on the list all the same."""
    address = ipaddress.ip_address("10.0.0.5")
    listed = AddressPolicy(hosts_allowed=("10.0.0.0/8", "nas.local", "example.com"))
    assert not allowed("http://10.0.0.5/", listed)
    assert not allowed("http://nas.local/", listed)
    assert not listed.allows("example.com", 80, address)
    opened = AddressPolicy(("10.0.0.5:80", "10.0.0.6:80"), hosts_allowed=("10.0.0.5",))
    assert allowed("http://10.0.0.5/", opened)
    assert not allowed("http://10.0.0.6/", opened)


@pytest.mark.parametrize("entry", ["*", "*.example.com", "http://a.com", "a.com:443", "10.0.0.1/8", "1.2.3", ""])
def test_an_entry_that_means_nothing_is_told(entry: str) -> None:
    """A slip in a list of what is closed would leave it open."""
    with pytest.raises(ConfigurationError, match="LINK_HOSTS_DENIED"):
        AddressPolicy(hosts_denied=(entry,))
    with pytest.raises(ConfigurationError, match="LINK_HOSTS_ALLOWED"):
        AddressPolicy(hosts_allowed=(entry,))
