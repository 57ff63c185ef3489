"""Which names a server is asked under, and which pages may send it requests.

A page of another site can make a visitor's browser send requests to a server on the visitor's own
machine. Two checks refuse them:

* The Host header must be the server's own name. A page whose name was pointed at this machine
  after it was loaded (DNS rebinding) still sends its own name.
* A request that changes or computes something must not come from another site. Browsers say so in
  `Sec-Fetch-Site` and `Origin`. Programs send neither header, and pass.
"""

import dataclasses
import socket
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Self

from unix_jax.errors import UniXError
from unix_jax.web.addresses import WILDCARDS, as_address, is_loopback

Headers = Sequence[tuple[bytes, bytes]]
Refusal = tuple[int, str]

_READING = ("GET", "HEAD", "OPTIONS")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class AllowedHosts:
    """The names of a server.

    Attributes:
      names: host names and addresses, in lower case.
      any_address: whether every IP address is allowed. An address cannot be rebound.
      added: the names that the user allowed in addition. Their pages may send requests from any
        port, such as those of a reverse proxy.
    """

    names: frozenset[str]
    any_address: bool = False
    added: frozenset[str] = frozenset()

    @classmethod
    def of(cls, bound: str, added: Iterable[str] = ()) -> Self:
        """The names of a server that listens on `bound`, and those of `--allow-host`.

        Raises:
          UniXError: an added name with a scheme, a port or a path.
        """
        more = frozenset(_checked_name(name) for name in added)
        if bound in WILDCARDS:
            return cls(frozenset(_LOOPBACK) | more, True, more)
        names = {bound.lower(), *_addresses_of(bound)}
        if is_loopback(bound):
            names.update(_LOOPBACK)
        return cls(frozenset(names) | more, False, more)

    def refusal(self, method: str, headers: Headers) -> Refusal | None:
        """(status, message) for a request that must be refused, else None."""
        hosts = _values(headers, b"host")
        host = _host_name(f"//{hosts[0]}") if len(hosts) == 1 else None
        if host is None:
            return 400, f"Host: expected one header with a host name, found {len(hosts)}."
        if not self._knows(host):
            return 421, (
                f"Host: expected {', '.join(sorted(self.names))}"
                f"{' or an IP address' if self.any_address else ''}, found {host[:100]!a}. "
                "The option --allow-host adds a name."
            )
        if method in _READING:
            return None
        sites = _values(headers, b"sec-fetch-site")
        if any(site not in ("same-origin", "none") for site in sites):
            return 403, "Sec-Fetch-Site: expected a request of this server's own page."
        for origin in _values(headers, b"origin"):
            same = origin.partition("://")[2].lower() == hosts[0].lower()
            if not same and _host_name(origin) not in self.added:
                return 403, "Origin: expected a request of this server's own page."
        return None

    def _knows(self, host: str) -> bool:
        address = as_address(host)
        if address is not None and self.any_address:
            return True
        return host in self.names or (address is not None and str(address) in self.names)


def _checked_name(name: str) -> str:
    found = _host_name(f"//{name}")
    bare = name.strip("[]").lower().rstrip(".")
    if found is None or found != bare:
        raise UniXError(
            f"--allow-host: expected a host name or an IP address, found {name[:60]!r}; "
            "a scheme, a port and a path do not belong to it"
        )
    return found


def _host_name(url: str) -> str | None:
    """The host of `//host:port` or `scheme://host:port`, in lower case; None if it has none."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # ValueError for one that is not a number
        name = (parts.hostname or "").rstrip(".")
    except ValueError:
        return None
    beyond = parts.path or parts.query or parts.fragment or parts.username is not None
    return name if name and not beyond and name.isprintable() and " " not in name else None


def _addresses_of(bound: str) -> set[str]:
    try:
        found = socket.getaddrinfo(bound, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {str(entry[4][0]).partition("%")[0] for entry in found}


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key.lower() == name]
