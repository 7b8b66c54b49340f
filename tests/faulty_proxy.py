"""An HTTP proxy in front of an S3 server that misbehaves as told.

The Host header is kept, so that request signatures still verify behind it.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

# What to do with a request: "" (pass it on), "slowdown", "drop" (no answer), "cut" (half the
# body), "late-drop" (the server does the work, the answer is lost), "hang", or an error code.
Plan = Callable[[str, str], str]

_ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>told so</Message></Error>'
_STATUS = {"SlowDown": 503, "InternalError": 500, "ExpiredToken": 400, "AccessDenied": 403}
_STATUS |= {"NotImplemented": 501}


class FaultyProxy:
    """What the handlers share: the server behind, the plan, and what was asked."""

    def __init__(self, upstream: str, plan: Plan) -> None:
        self.upstream, self.plan = urlsplit(upstream), plan
        self.asked: list[tuple[str, str, str]] = []  # method, path, fault
        self.read: dict[str, int] = {}  # path -> bytes of the answers to GET
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.endpoint = ""

    def faults(self) -> int:
        """How many requests were answered badly."""
        return sum(bool(fault) for _, _, fault in self.asked)


def every(method: str, times: int, fault: str) -> Plan:
    """The first `times` requests of a method go wrong, then all is well."""
    left = [times]
    lock = threading.Lock()

    def plan(asked: str, path: str) -> str:
        with lock:
            if asked != method or left[0] <= 0:
                return ""
            left[0] -= 1
            return fault

    return plan


def always(fault: str) -> Plan:
    """Every request goes wrong."""
    return lambda method, path: fault


@contextmanager
def faulty_proxy(upstream: str, plan: Plan) -> Iterator[FaultyProxy]:
    """Run the proxy on a free port."""
    proxy = FaultyProxy(upstream, plan)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.released.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def _serve(self) -> None:
        fault = self.proxy.plan(self.command, self.path)
        with self.proxy.lock:
            self.proxy.asked.append((self.command, self.path, fault))
        if fault == "drop":
            return self._hang_up()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "hang":
            self.proxy.released.wait(120)
            return self._hang_up()
        if fault in ("", "cut", "late-drop"):
            return self._forward(body, fault)
        code = "SlowDown" if fault == "slowdown" else fault
        return self._answer(_STATUS[code], [], _ERROR.format(code=code).encode())

    def _forward(self, body: bytes, fault: str) -> None:
        upstream = self.proxy.upstream
        link = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
        link.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                link.putheader(name, value)
        link.endheaders(body)
        answer = link.getresponse()
        data = answer.read()
        link.close()
        if self.command == "GET":
            with self.proxy.lock:
                path = urlsplit(self.path).path
                self.proxy.read[path] = self.proxy.read.get(path, 0) + len(data)
        if fault == "late-drop":
            return self._hang_up()
        return self._answer(answer.status, answer.getheaders(), data, cut=fault == "cut")

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve
