"""The manifests of `k8s/`: the cluster, an overlay's patches to it, and a RayJob's settings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError

JOB = "era/job"  # annotation of a RayCluster: which file of k8s/jobs belongs to it


def overlays() -> list[str]:
    """Names that `--overlay` takes; `base` is the cluster without any."""
    return ["base", *sorted(path.name for path in (_folder() / "overlays").iterdir())]


def cluster_of(overlay: str) -> dict[str, Any]:
    """The RayCluster that `kubectl kustomize` makes of an overlay.

    Args:
        overlay: a packaged name, or a folder of the user's with a kustomization.yaml.

    Raises:
        UserError: if there is no such overlay, or it does not make one RayCluster.
    """
    if _is_own(overlay):
        return _own_cluster(overlay)
    folder = _folder() / ("base" if overlay == "base" else f"overlays/{overlay}")
    return next(_clusters(folder))


def job_of(overlay: str, cluster: dict[str, Any]) -> dict[str, Any]:
    """The RayJob's settings for an overlay, without name, entrypoint and cluster.

    The cluster's annotation names the packaged overlay that it is, or that it was made from. A
    folder of the user's may hold its own in a file rayjob.yaml, merged like those of k8s/jobs.

    Raises:
        UserError: if either is not what it should be.
    """
    kind = (cluster["metadata"].get("annotations") or {}).get(JOB, "base")
    if kind not in overlays():
        known = ", ".join(overlays())
        raise UserError(f"--overlay {overlay}: annotation {JOB}: expected one of {known}")
    job = _read(_folder() / "jobs" / "base.yaml")
    if kind != "base":
        job = _merged(job, _read(_folder() / "jobs" / f"{kind}.yaml"))
    if _is_own(overlay):
        own = Path(overlay) / "rayjob.yaml"
        change = _users_yaml(own)[0] if own.is_file() else {}
        if not isinstance(change, dict):
            raise UserError(f"{own}: expected a mapping, the RayJob's settings")
        job = _merged(job, change)
    return dict(job)


def _is_own(overlay: str) -> bool:
    if overlay in overlays():
        return False
    if (Path(overlay) / "kustomization.yaml").is_file():
        return True
    raise UserError(
        f"--overlay {overlay}: expected one of {', '.join(overlays())}, or a folder with a "
        f"kustomization.yaml, whose resources may name one of "
        f"{os.path.relpath(_folder() / 'overlays', Path(overlay).resolve())}"
    )


def _own_cluster(folder: str) -> dict[str, Any]:
    program = shutil.which("kubectl")
    if not program:
        raise UserError(f"--overlay {folder}: rendered by kubectl, which is not on the PATH")
    # The packaged manifests lie elsewhere than the user's folder.
    command = [program, "kustomize", "--load-restrictor=LoadRestrictionsNone", folder]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"--overlay {folder}: kubectl kustomize took over two minutes") from None
    if done.returncode:
        raise UserError(f"--overlay {folder}: {' '.join(done.stderr.split())[:500]}")
    made = _users_yaml(Path(folder), done.stdout)
    found = [one for one in made if isinstance(one, dict) and one.get("kind") == "RayCluster"]
    if len(found) != 1:
        raise UserError(f"--overlay {folder}: makes {len(found)} RayClusters, expected one")
    cluster: dict[str, Any] = found[0]
    return cluster


def _users_yaml(path: Path, text: str | None = None) -> list[Any]:
    """The documents of a file of the user's, or of what was made of a folder; at least one."""
    try:
        text = path.read_text(encoding="utf-8") if text is None else text
        return list(yaml.safe_load_all(text)) or [{}]
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not YAML that can be read ({reason})") from None


def _clusters(folder: Path) -> Iterator[dict[str, Any]]:
    """What kustomize does with a RayCluster: the resources below, then this folder's patches."""
    kustomization = _read(folder / "kustomization.yaml")
    patches = [
        operation
        for patch in kustomization.get("patches", [])
        if patch["target"]["kind"] == "RayCluster"
        for operation in _read(folder / patch["path"])
    ]
    for name in kustomization["resources"]:
        path = folder / name
        for found in _clusters(path.resolve()) if path.is_dir() else [_read(path, first=True)]:
            if found["kind"] != "RayCluster":
                continue
            found = json.loads(json.dumps(found))  # YAML's anchors share parts, a patch must not
            for operation in patches:
                _patch(found, operation)
            yield found


def _patch(value: dict[str, Any], operation: dict[str, Any]) -> None:
    """One operation of a JSON patch (RFC 6902): add, replace or remove."""
    *way, last = (
        part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
    )
    place: Any = value
    for part in way:
        place = place[int(part) if isinstance(place, list) else part]
    if operation["op"] == "remove":
        del place[int(last) if isinstance(place, list) else last]
    elif isinstance(place, list) and operation["op"] == "add":
        place.insert(len(place) if last == "-" else int(last), operation["value"])
    else:
        place[int(last) if isinstance(place, list) else last] = operation["value"]


def _merged(base: Any, change: Any) -> Any:
    """A JSON merge patch (RFC 7386): mappings are merged, null removes, all else replaces."""
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    merged = {key: value for key, value in base.items() if change.get(key, value) is not None}
    for key, value in change.items():
        if value is not None:
            merged[key] = _merged(base.get(key), value)
    return merged


def _read(path: Path, first: bool = False) -> Any:
    text = path.read_text(encoding="utf-8")
    return next(yaml.safe_load_all(text)) if first else yaml.safe_load(text)


def _folder() -> Path:
    installed = Path(__file__).parents[1] / "_k8s"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "k8s"
