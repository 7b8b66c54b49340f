"""The parts of a Kubernetes API server that the real `kubectl` needs for RayJobs; no operator.

A test plays the operator: it writes the states that KubeRay would, and the job's log. `SHOWN_BY`
says which test of a real cluster shows what is played.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

# What is played -> the test in tests/cluster that shows it. Failed with exit code 2,
# DeadlineExceeded, STOPPED and ValidationFailed have none there.
SHOWN_BY = {
    "Initializing, Running, Complete, the job's log": "test_a_run_from_the_bucket_and_back",
    "Suspended": "test_a_suspended_rayjob_saves_and_goes_on",
    "Suspended by a queue": "test_a_preempted_run_saves_and_goes_on",
    "a deletion that takes time": "test_a_deleted_rayjob_saves",
    "another head": "test_the_next_head_resumes",
    "a head that does not answer, or is lost": "test_a_run_whose_heads_node_is_lost_goes_on",
    "reasons for waiting, events": "test_a_missing_image_is_said",
    "a running job of another image": "test_another_image_is_another_job",
}
HEAD = "head-pod"
VERBS = ["create", "delete", "get", "list", "patch", "watch"]
GROUP = {
    "name": "ray.io",
    "versions": [{"groupVersion": "ray.io/v1", "version": "v1"}],
    "preferredVersion": {"groupVersion": "ray.io/v1", "version": "v1"},
}
# By this the server says that it checks fields itself, so that kubectl needn't.
OPENAPI = "/openapi/v3/apis/ray.io/v1"
PATCH = {
    "parameters": [{"name": "fieldValidation", "in": "query"}],
    "responses": {},
    "x-kubernetes-group-version-kind": {"group": "ray.io", "version": "v1", "kind": "RayJob"},
}
JOB_PATH = "/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}"


class Api:
    """What is stored, what was asked, and for how many requests the server is down."""

    def __init__(self, log: Path) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.fields = {"entrypoint", "activeDeadlineSeconds", "preRunningDeadlineSeconds"}
        self.asked: list[str] = []
        self.down = 0
        self.head: dict[str, Any] = {"phase": "Running"}  # the head pod's status
        self.head_deleted, self.reachable = False, True  # the pod; its node's kubelet
        self.deletion = 0.0  # seconds that KubeRay's operator takes to let a RayJob go
        self.events: list[dict[str, Any]] = []
        self.log = log  # the job's log, as the head has it

    def put(self, name: str, **status: Any) -> None:
        """Write a RayJob's status, as KubeRay would."""
        self.jobs[name].setdefault("status", {}).update(status)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """The answer to one request."""
        pod: dict[str, Any] = {"kind": "Pod", "apiVersion": "v1"}
        pod["metadata"] = {"name": HEAD, "namespace": "era"}
        pod |= {"spec": {"containers": [{"name": "ray-head"}], "nodeName": "n2"}}
        pod |= {"status": self.head}
        if self.head_deleted:
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        fixed = {
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [GROUP]},
            "/api/v1": _resources("v1", "pods", "Pod", "events", "Event"),
            "/apis/ray.io/v1": _resources("ray.io/v1", "rayjobs", "RayJob"),
            "/openapi/v3": {"paths": {"apis/ray.io/v1": {"serverRelativeURL": OPENAPI}}},
            OPENAPI: {
                "openapi": "3.0.0",
                "info": {"title": "", "version": ""},
                "paths": {JOB_PATH: {"patch": PATCH}},
                "components": {"schemas": {"RayJob": _schema(self.fields)}},
            },
            "/api/v1/namespaces/era/pods": {"kind": "PodList", "apiVersion": "v1", "items": [pod]},
            f"/api/v1/namespaces/era/pods/{HEAD}": pod,
            "/api/v1/namespaces/era/events": {
                "kind": "EventList",
                "apiVersion": "v1",
                "items": self.events,
            },
        }
        if path in fixed:
            return 200, fixed[path]
        parts = path.strip("/").split("/")
        if "rayjobs" not in parts:
            return 404, _missing(path)
        name = body["metadata"]["name"] if method == "POST" else parts[-1]
        if method == "POST":
            body["metadata"]["uid"] = f"uid-{len(self.asked)}"
            self.jobs[name] = body
            return 201, body
        found = self.jobs.get(name)
        if found is None:
            return 404, _missing(name)
        if method == "DELETE":
            found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            threading.Timer(self.deletion, self.jobs.pop, [name, None]).start()
        return 200, found


@contextmanager
def kubernetes_api(folder: Path) -> Iterator[tuple[Api, Path]]:
    """A running server, and a kubeconfig file that names it."""
    api = Api(folder / "job.log")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(api))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    config = folder / "kubeconfig"
    values = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
        "current-context": "c",
    }
    config.write_text(json.dumps(values))
    try:
        yield api, config
    finally:
        server.shutdown()
        thread.join()


def _handler(api: Api) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            api.asked.append(f"{self.command} {url.path}")
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size) or b"null")
            if api.down > 0:
                api.down -= 1
                self.close_connection = True
                return
            if url.path.endswith("/exec") and not api.reachable:
                self.send_error(500, "dial tcp: connect: no route to host")
                return
            if url.path.endswith("/exec"):
                self._exec(parse_qs(url.query)["command"])
                return
            code, value = api.answer(self.command, url.path, body)
            data = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_DELETE = do_PATCH = do_GET

        def _exec(self, command: list[str]) -> None:
            """Run it here, on the log at hand; speak WebSocket as a kubelet does."""
            assert command[-1].startswith("/tmp/ray/session_latest/logs/job-driver-")
            done = subprocess.run([*command[:-1], str(api.log)], capture_output=True, check=False)
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
            self.send_header("Sec-WebSocket-Accept", accept)
            self.send_header("Sec-WebSocket-Protocol", "v5.channel.k8s.io")
            self.end_headers()
            self._frame(0x82, b"\x01" + done.stdout)  # channel 1: standard output
            self._frame(0x82, b"\x03" + b'{"status": "Success"}')  # channel 3: how it ended
            self._frame(0x88, struct.pack(">H", 1000))
            self.close_connection = True

        def _frame(self, kind: int, data: bytes) -> None:
            size = bytes([len(data)]) if len(data) < 126 else struct.pack(">BH", 126, len(data))
            self.wfile.write(bytes([kind]) + size + data)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _resources(version: str, *names: str) -> dict[str, Any]:
    resources = [
        {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind}
        for plural, kind in zip(names[::2], names[1::2], strict=True)
    ]
    return {
        "kind": "APIResourceList",
        "groupVersion": version,
        "resources": [{**resource, "verbs": VERBS} for resource in resources],
    }


def _schema(fields: set[str]) -> dict[str, Any]:
    """Of a RayJob, as the API server derives it from KubeRay's CRD."""
    kind = {"group": "ray.io", "version": "v1", "kind": "RayJob"}
    spec = {"type": "object", "properties": {name: {} for name in fields}}
    return {
        "type": "object",
        "properties": {"spec": spec},
        "x-kubernetes-group-version-kind": [kind],
    }


def _missing(what: str) -> dict[str, Any]:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound"}
    return {**status, "code": 404, "message": f"{what} not found"}
