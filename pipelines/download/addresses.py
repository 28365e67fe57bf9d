"""Decides which addresses the URLs of an untrusted list may make this machine connect to."""

import ipaddress

METADATA_ADDRESSES = frozenset(
    ipaddress.ip_address(address)
    for address in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
"""Metadata services of AWS and Google and Azure, AWS over IPv6, Alibaba, Azure's host, and Oracle. The last two look
public by their numbers."""
METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def refusal(address: str, *, allow_private: bool) -> str | None:
    """Returns why connecting to `address` (IPv4 or IPv6) is refused, in one or two words, or None if it is allowed."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:  # the address that the packets reach
            return refusal(str(inner), allow_private=allow_private)
    if ip in METADATA_ADDRESSES:
        return "a metadata service"
    if ip.is_unspecified or ip.is_multicast or ip.is_link_local:
        return "unspecified" if ip.is_unspecified else "multicast" if ip.is_multicast else "link-local"
    if ip.is_reserved and not ip.is_loopback:
        return "reserved"
    site_local = isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local
    if ip.is_loopback or ip.is_private or site_local or not ip.is_global:
        return None if allow_private else "loopback" if ip.is_loopback else "private"
    return None
