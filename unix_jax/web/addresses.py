"""The address of a server: its socket, its URL, and whether other machines can reach it."""

import ipaddress
import socket

from unix_jax.errors import UniXError

WILDCARDS = ("", "0.0.0.0", "::", "*")


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 selects a free port.

    Raises:
      UniXError: the port is out of range or in use, or the host is not an address of this machine.
    """
    if not 0 <= port <= 65535:
        raise UniXError(f"--port: expected 0 to 65535, found {port}")
    opened = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except (OSError, UnicodeError) as error:
        if opened is not None:
            opened.close()
        reason = getattr(error, "strerror", None) or error
        raise UniXError(f"--host {host} --port {port}: {reason}") from error
    return opened


def free_port(host: str, port: int) -> int:
    """The port, or a free one for port 0. Raises UniXError as `listening_socket`."""
    with listening_socket(host, port) as opened:
        return int(opened.getsockname()[1])


def url_of(host: str, port: int) -> str:
    """The URL of a server's root, without a slash at its end."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    address = as_address(host)
    if address is not None:
        return address.is_loopback
    return host.lower().rstrip(".") == "localhost"


def as_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a text is, or None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
