"""What the tests of Kubernetes look at: the overlays as kubectl makes them, and rendered jobs."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import load_train_config
from pipeline.submit import KubernetesOptions, render, training_command

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
OVERLAYS = ["base", "gpu", "kueue", "local", "spot"]
GPU = "nvidia.com/gpu"
Object = dict[str, Any]


@functools.cache
def _kustomized(folder: str) -> str:
    command = [str(BIN / "kubectl"), "kustomize", folder]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.dumps(list(yaml.safe_load_all(text)))


def objects(overlay: str) -> list[Object]:
    """What `kubectl apply -k` would send."""
    folder = ROOT / "k8s" / ("base" if overlay == "base" else f"overlays/{overlay}")
    found: list[Object] = json.loads(_kustomized(str(folder)))
    return found


def cluster(overlay: str) -> Object:
    return next(one for one in objects(overlay) if one["kind"] == "RayCluster")


def train(*overrides: str, verb: str = "train", at_once: int = 1) -> Any:
    given = ["run.root=s3://b/runs", "data.train=s3://b/train", *overrides]
    return training_command(verb, given, load_train_config("tiny", given), at_once, False)


def job(overlay: str, *overrides: str, **options: str) -> Object:
    gpu = f"scaling.gpu={'false' if overlay in ('base', 'local') else 'true'}"
    return render(train(gpu, *overrides), KubernetesOptions(overlay, **options))


def pods(one: Object) -> Iterator[Object]:
    """Every pod's specification in an object."""
    if one["kind"] == "RayJob":
        one = {"kind": "RayCluster", "spec": one["spec"]["rayClusterSpec"]}
    if one["kind"] == "RayCluster":
        groups = [one["spec"]["headGroupSpec"], *one["spec"]["workerGroupSpecs"]]
        yield from (group["template"]["spec"] for group in groups)
    elif one["kind"] == "Deployment":
        yield one["spec"]["template"]["spec"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@functools.cache
def everything() -> list[Object]:
    return [one for name in OVERLAYS for one in [*objects(name), job(name)]]


@functools.cache
def monitored() -> list[Object]:
    """The optional component over an overlay, as a user would add it."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "k8s", Path(folder) / "k8s")
        own = Path(folder) / "k8s" / "overlays" / "own"
        own.mkdir()
        lines = "resources: [../gpu]\ncomponents: [../../components/monitoring]\n"
        (own / "kustomization.yaml").write_text(lines)
        found: list[Object] = json.loads(_kustomized(str(own)))
        return found
