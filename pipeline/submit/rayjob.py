"""A RayJob from a checked command: the manifests of `k8s/`, changed only where it says so.

One pod holds one training worker, or as many as it has GPUs. Changed are the workers' number, their
processors, GPUs and disk, the image, the name and the namespace; a test holds everything else equal
to `k8s/`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.config.check import worker_range
from pipeline.errors import UserError
from pipeline.submit import rules
from pipeline.submit.command import Command, refuse_places
from pipeline.submit.template import cluster_of, job_of

log = logging.getLogger("era")
GPU = "nvidia.com/gpu"
AMOUNT = re.compile(r"\d+(\.\d+)?(m|[kMGTP]|[KMGTP]i)?")  # Kubernetes' quantities
IMAGE = re.compile(r"[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@\w+:[0-9a-f]+)?", re.ASCII)
OVERLAY = "era/overlay"  # annotation: a running job on another overlay is another job


@dataclass(frozen=True)
class KubernetesOptions:
    """Where a RayJob runs.

    Attributes:
        overlay: base, local, gpu, spot or kueue, or a folder with a kustomization.yaml; empty = gpu
            where scaling.gpu says so, else base.
        image: of head and workers; empty = the manifest's.
        name: of the RayJob; empty = from the run.
        namespace: for all of it.
        context: kubectl's; empty = the current one.
        cpu, memory: of each worker's pod, such as 8 and 48Gi; empty = the manifest's.
        gpus_per_pod: GPUs, and so workers, of each pod; 0 = the manifest's. More than one share
            NVLink: pods of one GPU each cannot.
    """

    overlay: str = ""
    image: str = ""
    name: str = ""
    namespace: str = "era"
    context: str = ""
    cpu: str = ""
    memory: str = ""
    gpus_per_pod: int = 0


def render(command: Command, options: KubernetesOptions) -> dict[str, Any]:
    """The RayJob that runs a command; touches no network.

    Raises:
        UserError: for paths that pods don't share, and for whatever excludes each other.
    """
    refuse_places(command, several_nodes=True, shipped=())
    config = command.config
    overlay = options.overlay or ("gpu" if config and config.scaling.gpu else "base")
    for option, amount in (("--cpu", options.cpu), ("--memory", options.memory)):
        if amount and not AMOUNT.fullmatch(amount):
            raise UserError(f"{option} {amount}: expected an amount such as 8, 500m or 48Gi")
    if options.memory and not options.memory.endswith(("G", "Gi", "M", "Mi", "T", "Ti")):
        raise UserError(
            f"--memory {options.memory}: of a worker's pod, with a unit, such as 48Gi; an "
            f"option of the verb's own goes behind --: era submit {command.verb} ... -- --memory GB"
        )
    if options.image and not IMAGE.fullmatch(options.image):
        raise UserError("--image: expected an image such as registry/era:TAG, without credentials")
    try:
        made = _rayjob(command, options, overlay)
        found = rules.problems(made)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(  # of an overlay of the user's: ours are tested
            f"--overlay {overlay}: its RayCluster is not built like the packaged base "
            f"({type(error).__name__}: {error})"
        ) from None
    if not options.image and overlay != "local":
        log.warning(
            "no --image: give --image registry/era:TAG; `era` alone is looked for in a registry, "
            "even by nodes that have it, unless the overlay says imagePullPolicy"
        )
    _refuse(overlay, made["metadata"]["name"], found)
    return made


def _rayjob(command: Command, options: KubernetesOptions, overlay: str) -> dict[str, Any]:
    cluster = cluster_of(overlay)
    spec = _adapted(cluster["spec"], command, options, overlay)
    job = job_of(overlay, cluster)
    return {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "metadata": {
            "name": options.name or _name(command),
            "namespace": options.namespace,
            "labels": job["metadata"]["labels"],
            "annotations": {OVERLAY: overlay},
        },
        "spec": {"entrypoint": command.entrypoint(), **job["spec"], "rayClusterSpec": spec},
    }


def _adapted(
    spec: dict[str, Any], command: Command, options: KubernetesOptions, overlay: str
) -> dict[str, Any]:
    """A RayCluster's spec with what the run and the options ask for."""
    if options.gpus_per_pod:
        _limits(spec)[GPU] = options.gpus_per_pod
    if command.config is not None:
        _size(spec, command, command.config, overlay)
    _reshape(spec, options)
    if options.image:
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            group["template"]["spec"]["containers"][0]["image"] = options.image
    return spec


def _size(spec: dict[str, Any], command: Command, config: TrainConfig, overlay: str) -> None:
    """One pod for each worker of the run, and up to as many for each trial beside the first."""
    least, most = worker_range(config)
    group = spec["workerGroupSpecs"][0]
    pod = group["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    gang = not spec.get("enableInTreeAutoscaling")
    has, needs = int(resources["limits"].get(GPU, 0)), int(config.scaling.gpu)
    found = []
    if gang and least != most:
        found.append(
            f"scaling.workers=[{least}, {most}] is elastic, and this overlay starts all workers or "
            "none (gang scheduling); give one number"
        )
    if needs > has:
        found.append(
            f"scaling.gpu=true needs {needs} GPU per worker, the overlay's nodes have {has}; "
            "choose --overlay gpu, spot or kueue, or say scaling.gpu=false"
        )
    _refuse(overlay, config.run.name, found)
    if not needs and has:
        log.warning("scaling.gpu=false: the workers of overlay %s leave their GPUs alone", overlay)
        del resources["limits"][GPU]
    workers = max(has, 1) if needs else 1  # in each pod
    # With an autoscaler a sweep starts when one trial can, and brings nodes for the others.
    first = least * (command.at_once if gang else 1)
    group["minReplicas"] = group["replicas"] = -(-first // workers)
    group["maxReplicas"] = -(-most * command.at_once // workers)
    processors = workers * config.scaling.cpus_per_worker
    # Ray places by this number, so that a second worker doesn't squeeze into the pod.
    group["rayStartParams"]["num-cpus"] = str(processors)
    if not needs:
        _ask(resources, str(max(processors, config.scaling.threads)))
    elif _processors(resources["requests"]["cpu"]) < processors:
        _ask(resources, str(processors))
    _store(pod, math.ceil(config.cache.max_gb * 11 / 10))


def _store(pod: dict[str, Any], cache: int) -> None:
    """Make room for a cache of that many GiB on the nodes' disks, besides everything else."""
    resources = pod["containers"][0]["resources"]
    before = _gibibytes(resources["limits"]["ephemeral-storage"])
    for volume in pod["volumes"]:
        if volume["name"] == "cache":
            before -= _gibibytes(volume["emptyDir"]["sizeLimit"])
            volume["emptyDir"]["sizeLimit"] = f"{cache}Gi"
    whole = f"{before + cache}Gi"
    if resources["requests"]["ephemeral-storage"] == resources["limits"]["ephemeral-storage"]:
        resources["requests"]["ephemeral-storage"] = whole
    resources["limits"]["ephemeral-storage"] = whole


def _gibibytes(amount: str) -> int:
    return int(amount.removesuffix("Gi"))


def _reshape(spec: dict[str, Any], options: KubernetesOptions) -> None:
    """What the user says about the workers' pods, over what the configuration needs."""
    resources = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]
    if options.cpu:
        _ask(resources, options.cpu)
    if options.memory:
        resources["requests"]["memory"] = resources["limits"]["memory"] = options.memory


def _ask(resources: dict[str, Any], cpu: str) -> None:
    """Request processors; a limit, which an overlay of the user's may set, is never below that."""
    resources["requests"]["cpu"] = cpu
    limits = resources["limits"]
    if "cpu" in limits and _processors(limits["cpu"]) < _processors(cpu):
        limits["cpu"] = cpu


def _processors(amount: Any) -> float:
    text = str(amount)
    return float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1)


def _limits(spec: dict[str, Any]) -> dict[str, Any]:
    pod = spec["workerGroupSpecs"][0]["template"]["spec"]
    limits: dict[str, Any] = pod["containers"][0]["resources"]["limits"]
    return limits


def _name(command: Command) -> str:
    """A name from the run's, or from the target's last part and a digest of its URL."""
    verb = "" if command.verb == "train" else f"{command.verb}-"
    if command.config:
        name = f"era-{verb}{command.config.run.name}"
    else:
        digest = hashlib.sha256(command.target.rstrip("/").encode()).hexdigest()[:6]
        name = f"era-{verb}{storage.name_of(command.target)}-{digest}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _refuse(overlay: str, name: str, found: list[str]) -> None:
    if found:
        raise UserError(f"{name} on overlay {overlay}: {'; '.join(found)}")
