"""Names under which a server is asked, and requests that other sites cause."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unix_jax.errors import UniXError
from unix_jax.web.addresses import is_loopback, listening_socket, url_of
from unix_jax.web.hosts import AllowedHosts

LOCAL = AllowedHosts.of("127.0.0.1")
ALL = AllowedHosts.of("0.0.0.0", ["xrays.example.org"])


def status(hosts, host, method="GET", **headers):
    pairs = [] if host is None else [(b"host", host.encode("latin-1"))]
    pairs += [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    refusal = hosts.refusal(method, pairs)
    return 200 if refusal is None else refusal[0]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:7860", "localhost:9", "LOCALHOST", "localhost.", "[::1]:80"]
)
def test_own_names(host):
    assert status(LOCAL, host) == 200
    assert status(ALL, host) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example",
     "127.0.0.2", "10.0.0.1:7860", "0.0.0.0", "[::2]"],
)  # fmt: skip
def test_foreign_names_are_refused(host):
    assert status(LOCAL, host) == 421


@pytest.mark.parametrize(
    "host",
    [None, "", "a@127.0.0.1", "127.0.0.1/x", "127.0.0.1?x", "local host", "127.0.0.1:x", "[::1",
     "127.0.0.1:99999999"],
)  # fmt: skip
def test_what_is_no_host_is_refused(host):
    assert status(LOCAL, host) == 400


def test_two_host_headers_are_refused():
    pairs = [(b"host", b"localhost"), (b"host", b"evil.example")]
    assert LOCAL.refusal("GET", pairs)[0] == 400


def test_a_wildcard_allows_addresses_and_added_names():
    for host in ("192.168.1.5:7860", "[fe80::1]", "xrays.example.org", "Xrays.Example.Org:443"):
        assert status(ALL, host) == 200
    assert status(ALL, "evil.example") == 421
    assert "--allow-host" in ALL.refusal("GET", [(b"host", b"evil.example")])[1]


@given(st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=30))
def test_any_host_header_is_answered(host):
    assert status(LOCAL, host) in (200, 400, 421)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"sec_fetch_site": "same-origin", "origin": "http://localhost:7860"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"origin": "http://localhost:7860"}, 200),
        ({"origin": "https://localhost:7860"}, 200),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "http://127.0.0.1:7860"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
    ],
)
def test_requests_of_other_pages(headers, expected):
    assert status(LOCAL, "localhost:7860", "POST", **headers) == expected
    assert status(LOCAL, "localhost:7860", "GET", **headers) == 200


def test_the_page_of_an_added_name_may_use_another_port():
    origin = "https://xrays.example.org"
    assert status(ALL, "10.0.0.5:8000", "POST", origin=origin) == 200
    assert status(ALL, "10.0.0.5:8000", "POST", origin="https://10.0.0.6") == 403


@pytest.mark.parametrize("name", ["http://a.org", "a.org:80", "a.org/x", "", "a b", "u@a.org"])
def test_bad_added_names(name):
    with pytest.raises(UniXError, match="--allow-host: expected a host name or an IP address"):
        AllowedHosts.of("127.0.0.1", [name])


def test_good_added_names():
    found = AllowedHosts.of("127.0.0.1", ["Mine.Example", "[::5]", "10.1.2.3"])
    for host in ("mine.example:1", "[::5]:1", "10.1.2.3"):
        assert status(found, host) == 200


def test_addresses():
    for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost", "LocalHost."):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", ""):
        assert not is_loopback(host)
    assert url_of("::1", 80) == "http://[::1]:80"
    assert url_of("127.0.0.1", 80) == "http://127.0.0.1:80"
    with listening_socket("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        opened.listen()
        with pytest.raises(UniXError, match=f"--port {port}: Address already in use"):
            listening_socket("127.0.0.1", port)
    with pytest.raises(UniXError, match="--host"):
        listening_socket("a" * 300, 0)
