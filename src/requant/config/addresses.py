"""What an address in a configuration may be: one without secrets, that a secret may be sent to."""

import ipaddress
import re
from urllib.parse import unquote, urlsplit

from requant.config.plain_secrets import text_fault
from requant.config.secret_arguments import assigned_fault

MAX_LETTERS = 2000
"""Characters of an address that is kept in clear; servers take some thousands."""
PLAIN_ADDRESS = r"^https?://[^\s@?#\\]+$"
"""For editors, and for Prefect's server, which refuses parameters before it keeps them."""

_HTTP = re.compile(
    r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[!-~]*)?(\?[!-~]*)?"
)
"""Host, port, path and query, of letters that every parser of addresses reads alike."""


def http_fault(address: str, *, query: bool = False) -> str | None:
    """Say what is wrong with an http(s) address, in words without it; None where nothing is.

    Args:
        address: Of a server.
        query: It may have one.
    """
    if "@" in address:
        return "holds a user or a password"
    if "#" in address:
        return "holds a fragment (#...), which no server is sent"
    if "?" in address and not query:
        return "holds a query (?...)"
    match = _HTTP.fullmatch(address)
    if match is None or int((match[2] or ":1")[1:]) not in range(1, 65536) or "\\" in address:
        return "is not http:// or https:// with a host, a port and a path in plain letters"
    return None


def clear_fault(address: str) -> str | None:
    """Say why an address may not be kept in clear, in words without it; None where it may.

    Args:
        address: Of any kind. `http_fault` tells of user, query and fragment.
    """
    if len(address) > MAX_LETTERS:
        return f"has {len(address)} characters, at most {MAX_LETTERS} are taken"
    # A host may be called token:8080.
    path = re.sub(r"^[^/]*//[^/]*", "", unquote(address))
    return text_fault(address) or text_fault(unquote(address)) or assigned_fault(path)


def sent_openly(address: str) -> bool:
    """Tell whether what is sent to an address could be read on its way: http to another machine."""
    return address.startswith("http://") and not is_loopback(host_of(address))


def host_of(address: str) -> str:
    """Return the host of an http(s) address, in small letters and without brackets."""
    return urlsplit(address).hostname or ""


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine: localhost, 127.0.0.0/8, ::1."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
