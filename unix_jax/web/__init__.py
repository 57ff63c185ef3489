"""What the web page and the API server share: addresses, guards of requests, and uploads.

    addresses.py  the address to listen on
    hosts.py      the Host header, and requests that other sites cause
    guard.py      the ASGI middleware for both
    shapes.py     the sizes of generated images that a server supports
    uploads.py    an uploaded X-ray

Scopes, messages and headers are those of ASGI.
"""
