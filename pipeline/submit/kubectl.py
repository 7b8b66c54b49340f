"""One RayJob of a cluster, as `kubectl` reads and changes it."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass

from pipeline.border import parse_json
from pipeline.errors import UserError
from pipeline.submit.answers import Found, JobStatus, Pods, parsed

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
    """One RayJob in the cluster that kubectl's context names.

    The current context is asked for once: whoever chooses another one meanwhile changes nothing.

    Attributes:
        uid: of the RayJob that is followed; another one of its name has another.
        refusal: why the log could not be read the last time.
    """

    def __init__(self, name: str, namespace: str, context: str = "") -> None:
        self.name, self.namespace, self.context = name, namespace, context
        found = shutil.which("kubectl")
        if not found:
            raise UserError(
                "kubectl is not installed or not on the PATH; with --dry-run the manifest is "
                "printed, for `kubectl apply -f -` elsewhere"
            )
        self.program, self.uid, self.refusal = found, "", ""
        if not context:
            with suppress(UserError):  # none is set within a cluster
                self.context = self.kubectl("config", "current-context").strip()

    def kubectl(self, *arguments: str, given: str = "", seconds: float = 120.0) -> str:
        """Run kubectl in the job's namespace; its refusal is the user's error."""
        chosen = ["--context", self.context] if self.context else []
        try:
            done = subprocess.run(
                [self.program, "--namespace", self.namespace, *chosen, *arguments],
                input=given.encode(),
                capture_output=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"kubectl {arguments[0]}: no answer in {seconds:.0f} s") from None
        if done.returncode:
            reason = " ".join(_text(done.stderr).split()) or f"exit code {done.returncode}"
            raise UserError(f"kubectl {arguments[0]}: {reason}")
        return _text(done.stdout)

    def read(self) -> Found | None:
        """The RayJob as it is; None if there is none of that name."""
        text = self.kubectl("get", "rayjob", self.name, "--ignore-not-found", "-o", "json")
        return parsed(Found, text, f"RayJob {self.name}") if text.strip() else None

    def head(self, status: JobStatus) -> Head | None:
        """The newest head pod of the job's cluster; None if there is none."""
        chosen = f"ray.io/cluster={status.ray_cluster_name},ray.io/node-type=head"
        try:
            text = self.kubectl("get", "pods", "-l", chosen, "-o", "json")
            pods = parsed(Pods, text, "kubectl get pods").items
        except UserError:
            return None
        newest = max(pods, key=lambda pod: pod.metadata.creation_timestamp, default=None)
        if newest is None:
            return None
        return Head(
            name=newest.metadata.name,
            uid=newest.metadata.uid,
            node=newest.spec.node_name,
            deleted=bool(newest.metadata.deletion_timestamp),
        )

    def log_from(self, line: int, head: Head, ray_job: str) -> str | None:
        """The job's log from a line on; None while there is none, or the head can't be reached."""
        tail = ["tail", "-n", f"+{line + 1}", LOG.format(job=ray_job)]
        try:
            return self.kubectl("exec", head.name, "-c", "ray-head", "--", *tail, seconds=EXEC)
        except UserError as error:
            self.refusal = str(error)
            return None

    def fields(self) -> set[str]:
        """What the cluster's RayJobs may say in `spec`; empty where its schema is not told."""
        try:
            text = self.kubectl("get", "--raw", SCHEMA)
            schemas = parse_json(text.encode(), "kubectl get --raw")["components"]["schemas"]
            return {
                str(field)
                for schema in schemas.values()
                for kind in schema.get("x-kubernetes-group-version-kind", [])
                if kind["kind"] == "RayJob"
                for field in schema["properties"].get("spec", {}).get("properties", {})
            }
        except (UserError, LookupError, AttributeError, TypeError):
            return set()


def state_of(rayjob: Found) -> str:
    """The state that KubeRay's operator gives it; empty if it has not seen it yet."""
    return rayjob.status.job_deployment_status


def _text(printed: bytes) -> str:
    """As it came: a carriage return is no end of a line, and a log need not be UTF-8."""
    return printed.decode("utf-8", "replace")
