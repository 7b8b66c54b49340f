"""One RayJob of a cluster, as `kubectl` reads and changes it."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError

EXEC = 15.0  # seconds for the log; the network of a lost node answers nothing
LOG = "/tmp/ray/session_latest/logs/job-driver-{job}.log"
SCHEMA = "/openapi/v3/apis/ray.io/v1"  # everybody who may ask the API server may read it


@dataclass(frozen=True)
class Head:
    """A job's head pod."""

    name: str
    uid: str
    node: str
    deleted: bool  # or being deleted


class RayJob:
    """One RayJob in the cluster that kubectl's context names."""

    def __init__(self, name: str, namespace: str, context: str = "") -> None:
        self.name, self.namespace, self.context = name, namespace, context
        found = shutil.which("kubectl")
        if not found:
            raise UserError(
                "kubectl is not installed or not on the PATH; with --dry-run the manifest is "
                "printed, for `kubectl apply -f -` elsewhere"
            )
        self.program = found

    def kubectl(self, *arguments: str, given: str = "", seconds: float = 120.0) -> str:
        """Run kubectl in the job's namespace; its refusal is the user's error."""
        chosen = ["--context", self.context] if self.context else []
        try:
            done = subprocess.run(
                [self.program, "--namespace", self.namespace, *chosen, *arguments],
                input=given,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"kubectl {arguments[0]}: no answer in {seconds:.0f} s") from None
        if done.returncode:
            reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise UserError(f"kubectl {arguments[0]}: {reason}")
        return done.stdout

    def read(self) -> dict[str, Any] | None:
        """The RayJob as it is; None if there is none of that name."""
        text = self.kubectl("get", "rayjob", self.name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def head(self, status: dict[str, Any]) -> Head | None:
        """The newest head pod of the job's cluster; None if there is none."""
        chosen = f"ray.io/cluster={status.get('rayClusterName')},ray.io/node-type=head"
        try:
            pods = json.loads(self.kubectl("get", "pods", "-l", chosen, "-o", "json"))["items"]
        except UserError:
            return None
        newest = max(pods, key=lambda p: p["metadata"].get("creationTimestamp", ""), default=None)
        if newest is None:
            return None
        meta = newest["metadata"]
        return Head(
            name=meta["name"],
            uid=meta.get("uid", ""),
            node=newest.get("spec", {}).get("nodeName", ""),
            deleted="deletionTimestamp" in meta,
        )

    def log_from(self, line: int, head: Head, ray_job: str) -> str | None:
        """The job's log from a line on; None while there is none, or the head can't be reached."""
        tail = ["tail", "-n", f"+{line + 1}", LOG.format(job=ray_job)]
        try:
            return self.kubectl("exec", head.name, "-c", "ray-head", "--", *tail, seconds=EXEC)
        except UserError:
            return None

    def fields(self) -> set[str]:
        """What the cluster's RayJobs may say in `spec`; empty where its schema is not told."""
        try:
            schemas = json.loads(self.kubectl("get", "--raw", SCHEMA))["components"]["schemas"]
        except (UserError, ValueError, KeyError):
            return set()
        return {
            field
            for schema in schemas.values()
            for kind in schema.get("x-kubernetes-group-version-kind", [])
            if kind["kind"] == "RayJob"
            for field in schema["properties"].get("spec", {}).get("properties", {})
        }


def state_of(rayjob: dict[str, Any]) -> str:
    """The state that KubeRay's operator gives it; empty if it has not seen it yet."""
    return str(rayjob.get("status", {}).get("jobDeploymentStatus", ""))
