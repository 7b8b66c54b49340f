"""A TCP proxy that adds a round trip to every request and a rate to every connection.

    python -m benchmarks.slow_link PORT UPSTREAM_PORT

As a bucket looks from a node: one connection is slow, many are fast. Data go from socket to socket
within the kernel, so that the proxy itself takes little of the processor that is measured on.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress

ROUND_TRIP = 0.020  # seconds
RATE = 30e6  # bytes per second and connection
PIECE = 1 << 16  # bytes


def carry(source: socket.socket, target: socket.socket, delay: float) -> None:
    """Forward one direction of a connection until it ends."""
    out, into = os.pipe()
    free = time.monotonic()
    try:
        while size := os.splice(source.fileno(), into, PIECE):
            now = time.monotonic()
            free = max(free, now - PIECE / RATE) + size / RATE
            time.sleep(delay + max(0.0, free - now))
            while size:
                size -= os.splice(out, target.fileno(), size)
    except OSError:
        pass
    finally:
        os.close(out)
        os.close(into)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def serve(client: socket.socket, upstream: int) -> None:
    """Serve one connection."""
    time.sleep(ROUND_TRIP)  # the handshake
    with client, socket.create_connection(("127.0.0.1", upstream)) as server:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asking = threading.Thread(target=carry, args=(client, server, ROUND_TRIP), daemon=True)
        asking.start()
        carry(server, client, 0.0)
        asking.join()


def main(port: int, upstream: int) -> None:
    """Listen until killed."""
    listener = socket.create_server(("127.0.0.1", port), backlog=256)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client, upstream), daemon=True).start()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
