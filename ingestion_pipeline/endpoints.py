"""Which addresses an embedding API may be talked to at, and nothing else.

A `base_url` is read here, once, into one spelling, and the addresses behind its name are judged.
What keeps each connection to that judgement is `embedding.checked_connections`, what is said over
it, in the module of the API.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import idna

from ingestion_pipeline.errors import EmbeddingServiceError, SettingsError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_STANDARD_PORTS = {"http": 80, "https": 443}

_AUTHORITY = re.compile(
    r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[^\[\]:]+))(?::(?P<port>[0-9]{0,5}))?", re.IGNORECASE
)
# Underscores stand in no host name of the internet, but in those of containers.
_NAME = re.compile(r"(?=.{1,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.|$))+(?<!\.)")
# A name whose last part is a number is an address to every resolver, however it is written.
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


def _networks(*names: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(name) for name in names)


# Where a cloud tells whoever asks from inside which keys the machine has. Most are link-local.
_METADATA = _networks(
    "100.100.100.200/32",  # Alibaba Cloud
    "168.63.129.16/32",  # Azure, although a public address
    "fd00:ec2::/32",  # AWS
    "fd20:ce::/32",  # Google Cloud
    "fd00:42::/32",  # Scaleway
)
# The registries' special purposes (RFC 6890 and its successors), but for those named elsewhere.
_RESERVED = _networks(
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
    "2001::/23",  # Teredo, which wraps an IPv4 address, among others
    "2001:db8::/32",
    "2002::/16",  # 6to4, which wraps one too
    "3fff::/20",
)
_NEVER = (
    ("an address of a cloud's metadata service", _METADATA),
    (
        "a link-local address, like those of metadata services",
        _networks("169.254.0.0/16", "fe80::/10"),
    ),
    ("a multicast address", _networks("224.0.0.0/4", "ff00::/8")),
    ("an unspecified address", _networks("0.0.0.0/8", "::/128")),
    ("a reserved address", _RESERVED),
)
_LOOPBACK = _networks("127.0.0.0/8", "::1/128")
_PRIVATE = _networks(
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",  # carrier-grade NAT, and what mesh networks use
    "fc00::/7",
)
_PUBLIC = _networks("0.0.0.0/0", "2000::/3")  # less everything above
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")  # NAT64


@dataclass(frozen=True)
class Endpoint:
    """Where an API is, as `parsed` makes it.

    Attributes:
        base_url: scheme and host in lower case, no standard port, no slash at the end; no user
            info, query or fragment.
        host: without port and brackets, IDNA-encoded; an address in its usual spelling.

    """

    base_url: str
    host: str

    @property
    def is_https(self) -> bool:
        """Whether what is sent is encrypted."""
        return self._parts.scheme == "https"

    @property
    def port(self) -> int:
        """The port, the scheme's standard one included."""
        return self._parts.port or _STANDARD_PORTS[self._parts.scheme]

    @property
    def _parts(self) -> SplitResult:
        return urlsplit(self.base_url)


def parsed(base_url: str) -> Endpoint:
    """Read the setting `base_url`.

    Raises:
        SettingsError: not http or https, no host, user info, a query, a fragment, or a port or a
            host that is none. What may be a secret is not repeated.

    """
    # A URL that is read one way here must not be read another way by whoever connects.
    if not base_url.isprintable() or any(char.isspace() or char == "\\" for char in base_url):
        raise _wrong("holds a space, a backslash or a character that cannot be printed")
    if "@" in base_url:
        raise _wrong(
            "holds an @, which is for user names and passwords. The key is read from the "
            "environment"
        )
    if "?" in base_url or "#" in base_url:
        raise _wrong("ends in a query (?) or a fragment (#). The key is read from the environment")
    try:
        parts = urlsplit(base_url)
    except ValueError:
        raise _wrong("has no readable host") from None
    if parts.scheme not in _STANDARD_PORTS:
        raise _wrong("does not begin with https:// or http://")
    authority = _AUTHORITY.fullmatch(parts.netloc)
    if authority is None:
        raise _wrong("has no readable host and port")
    ipv6, name, digits = authority["ipv6"], authority["name"], authority["port"]
    host = _ipv6_host(ipv6) if ipv6 else _named_host(name)
    port = int(digits) if digits else _STANDARD_PORTS[parts.scheme]
    if not 0 < port < 2**16:
        raise _wrong("has a port that is none: expected 1 to 65535")
    netloc = f"[{host}]" if ":" in host else host
    if port != _STANDARD_PORTS[parts.scheme]:
        netloc += f":{port}"
    return Endpoint(f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}", host)


def _wrong(what: str) -> SettingsError:
    return SettingsError(f"base_url {what}. Expected, say, https://api.openai.com/v1.")


def _ipv6_host(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise _wrong("has a host in brackets that is no IPv6 address") from None


def _named_host(text: str) -> str:
    try:
        # Also turns the digits and dots of other scripts into the usual ones.
        host = text.lower() if text.isascii() else idna.encode(text, uts46=True).decode("ascii")
    except idna.IDNAError:
        raise _wrong("has a host that is no name") from None
    host = host.removesuffix(".")
    if not _NAME.fullmatch(host):
        raise _wrong("has a host that is neither a name nor an address")
    if not _NUMERIC.fullmatch(host):
        return host
    try:
        # As a resolver would read it: decimal, hexadecimal or octal, in one to four parts.
        return str(ipaddress.IPv4Address(socket.inet_aton(host)))
    except OSError:
        raise _wrong("has a host that is no IPv4 address, although it ends in a number") from None


def refusal(address: Address, *, private_network: bool, encrypted: bool) -> str | None:
    """Why nothing is sent to `address`; None where it may be.

    Link-local, metadata, unspecified, multicast and reserved addresses are never talked to,
    loopback always. `private_network` allows private and carrier-grade NAT addresses. What is not
    `encrypted` goes to loopback and private addresses alone.
    """
    address = _unwrapped(address)
    for kind, networks in _NEVER:
        if _is_in(address, networks):
            return f"{kind}, which is never talked to"
    if _is_in(address, _LOOPBACK) or (private_network and _is_in(address, _PRIVATE)):
        return None
    if _is_in(address, _PRIVATE):
        return (
            "an address of a private network. If that is meant, set private_network = true "
            "beside base_url"
        )
    if not _is_in(address, _PUBLIC):
        return "a reserved address, which is never talked to"
    if not encrypted:
        return (
            "a public address, where key and texts would travel unencrypted. Let base_url begin "
            "with https://"
        )
    return None


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it is routed as such."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped:
        return address.ipv4_mapped
    if address in _TRANSLATED:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        # A translator's own loopback or private network is none of ours (RFC 6052, 3.1).
        return address if _is_in(inner, _LOOPBACK + _PRIVATE) else inner
    return address


def _is_in(
    address: Address, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def allowed_addresses(endpoint: Endpoint, *, private_network: bool) -> list[str]:
    """The addresses behind the endpoint's name, as the resolver gives them now, all of them judged.

    Raises:
        SettingsError: one of them is refused, which condemns the name.
        OSError: there are none.

    """
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(place[4][0]) for place in found))
    for address in addresses:
        reason = refusal(
            ipaddress.ip_address(address),
            private_network=private_network,
            encrypted=endpoint.is_https,
        )
        if reason:
            name = "" if address == endpoint.host else f"{endpoint.host}, at "
            raise SettingsError(f"base_url names {name}{address}, {reason}.")
    return addresses


def check_reachable_addresses(endpoint: Endpoint, *, private_network: bool) -> None:
    """Pass the judgement ahead that each connection of `checked_connections` passes again.

    Raises:
        SettingsError: the endpoint has an address that is refused.
        EmbeddingServiceError: its name cannot be resolved.

    """
    try:
        allowed_addresses(endpoint, private_network=private_network)
    except OSError as error:
        raise EmbeddingServiceError(
            f"The host of base_url, {endpoint.host}, has no address ({error.strerror}). Check the "
            "name and this machine's network."
        ) from error
