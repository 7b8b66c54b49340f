"""The parsers of foreign data as functions of bytes, each with a valid input to start from."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import yaml
from hypothesis import strategies as st
from mutations import bytes_near, json_near, lines_near
from PIL import Image

from pipeline.checkpoint import load_model
from pipeline.cli.submit import _printed
from pipeline.config import load_train_config
from pipeline.data.manifest import parse_manifest
from pipeline.data.split import open_split
from pipeline.doctor.dashboard import _last_checks
from pipeline.errors import UserError, publishable
from pipeline.evaluate.labels import read_labels
from pipeline.images import codecs
from pipeline.preprocess.layouts import read_layout
from pipeline.preprocess.precheck import precheck
from pipeline.restore.photo import decode_photo, encode_photo, output_name
from pipeline.runfolder import fingerprint
from pipeline.runs import list_runs, pull, show_run
from pipeline.storage.url import absolute, check_url
from pipeline.submit.answers import Events, Found, Pods, parsed
from pipeline.submit.troubles import _of_pod
from pipeline.tracking.segments import history
from pipeline.tune.config import SweepConfig, load_sweep
from pipeline.tune.population import read_round
from pipeline.tune.record import read_record
from pipeline.verify import verify

Inputs = st.SearchStrategy[bytes]


@dataclass(frozen=True)
class Target:
    """What reads the inputs, and where they come from."""

    read: Callable[[bytes], object]
    inputs: Inputs


def targets(run: Path, data: Path, folder: Path) -> dict[str, Target]:
    """All targets by name.

    Args:
        run: a run's folder. data: a destination of `preprocess`. folder: scratch.
    """
    return {
        **_of_shards(data / "train", folder),
        **_of_runs(run, folder),
        **_of_settings(folder),
        **_of_tables(folder),
        **_of_kubectl(),
        **{f"photograph.{name}": _photograph(name, sample) for name, sample in pictures().items()},
    }


def _of_shards(split: Path, folder: Path) -> dict[str, Target]:
    manifest = (split / "manifest.json").read_bytes()
    shard = split / json.loads(manifest)["shards"][0]["name"]
    there = folder / "split"
    shutil.copytree(split, there)

    def read_shard(content: bytes) -> None:
        (there / shard.name).write_bytes(content)
        for use in (lambda: verify(str(there), quick=True), lambda: verify(str(there))):
            _refused(use)
        open_split(str(there)).load(0)

    return {
        "manifest.json": Target(lambda d: parse_manifest(d, "manifest.json"), json_near(manifest)),
        "shard": Target(read_shard, bytes_near(shard.read_bytes()).map(_of_size(shard))),
    }


def _of_size(shard: Path) -> Callable[[bytes], bytes]:
    """Content of the shard's size: another one would be refused before anything is read."""
    size = shard.stat().st_size
    return lambda content: content[:size].ljust(size, b"\0")


def _of_runs(run: Path, folder: Path) -> dict[str, Target]:
    """Each file of a run is damaged in place, then the run is listed, shown and pulled."""
    copy = folder / "run"
    shutil.copytree(run, copy)
    last = max((copy / "checkpoints").glob("step-*"))

    def reads(path: Path) -> Callable[[bytes], None]:
        before = path.read_bytes()

        def read(content: bytes) -> None:
            path.write_bytes(content)
            try:
                json.dumps([list_runs(str(copy)), show_run(str(copy))], allow_nan=False)
                shutil.rmtree(folder / "pulled", ignore_errors=True)
                pull(str(copy), str(folder / "pulled"))
            finally:
                path.write_bytes(before)

        return read

    def read_meta(content: bytes) -> None:
        """meta.json that COMMIT vouches for: whoever writes the one may write the other."""
        bundle = folder / "bundle"
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.copytree(last, bundle)
        (bundle / "meta.json").write_bytes(content)
        commit = json.loads((bundle / "COMMIT").read_bytes())
        commit["files"]["meta.json"] = fingerprint(content)
        (bundle / "COMMIT").write_text(json.dumps(commit))
        load_model(str(bundle))

    config = json.dumps(yaml.safe_load((copy / "config.yaml").read_text())).encode()
    places = {
        "config.yaml": (copy / "config.yaml", json_near(config)),
        "attempts.jsonl": (
            copy / "attempts.jsonl",
            lines_near(b'{"attempt": 1, "id": "00ff", "started": "2026-01-01", "workers": 1}\n'),
        ),
        "metrics.jsonl": (
            copy / "metrics.jsonl",
            lines_near((copy / "metrics.jsonl").read_bytes()),
        ),
        "COMMIT": (last / "COMMIT", json_near((last / "COMMIT").read_bytes())),
    }
    for path, _ in places.values():
        path.touch()
    found = {name: Target(reads(path), inputs) for name, (path, inputs) in places.items()}
    meta = json_near((last / "meta.json").read_bytes())
    return {**found, "meta.json": Target(read_meta, meta)}


def _of_settings(folder: Path) -> dict[str, Target]:
    path = folder / "given.yaml"

    def read_config(content: bytes) -> None:
        path.write_bytes(content)
        load_train_config(str(path))

    def read_sweep(content: bytes) -> None:
        path.write_bytes(content)
        load_sweep(str(path), [])

    def read_url(content: bytes) -> None:
        text = content.decode("utf-8", "surrogateescape")
        check_url(text)
        absolute(text)

    trial = folder / ".trial.json"

    def read_trial(content: bytes) -> None:
        trial.write_bytes(content)
        read_record(str(folder))

    decision = folder / "exchanges" / "step-00000004.json"
    decision.parent.mkdir(exist_ok=True)
    domains = {"train.ema": {"uniform": [0.5, 0.9]}}

    def read_decision(content: bytes) -> None:
        decision.write_bytes(content)
        read_round(str(folder), SweepConfig(space=domains), 4)

    config = (
        b'{"run": {"name": "a", "root": "runs"}, "train": {"steps": 9, "patch": [64, 96]},'
        b' "scaling": {"workers": [2, 4]}, "model": {"overrides": {"stages": 1, "kernels": 3}}}'
    )
    sweep = (
        b'{"config": "tiny", "search": "random", "trials": 2, "overrides": ["train.steps=9"],'
        b' "space": {"train.learning_rate": {"loguniform": [0.001, 0.01]},'
        b' "train.ema": {"choice": [0.9, 0.99]}}}'
    )
    record = (
        b'{"point": {"train.ema": 0.9}, "judged": 4, "stopped_at": 0, "failures": 1,'
        b' "failed": false, "error": ""}'
    )
    exchange = (
        b'{"step": 4, "scores": {"trial-000": 25.5, "trial-001": null}, "exchanges": [{"trial": 1,'
        b' "source": 0, "seed": "0/4/1", "before": {}, "point": {"train.ema": 0.7}}]}'
    )
    keys = ["train.steps", "run.name", "model.overrides", "model.overrides.stages", "train.patch"]
    return {
        "config": Target(read_config, json_near(config)),
        "override": Target(
            lambda d: load_train_config("tiny", [d.decode("utf-8", "surrogateescape")]),
            st.sampled_from(keys).flatmap(lambda key: bytes_near(f"{key}=[64, 1.5]".encode())),
        ),
        "sweep": Target(read_sweep, json_near(sweep)),
        ".trial.json": Target(read_trial, json_near(record)),
        "exchange": Target(read_decision, json_near(exchange)),
        "url": Target(read_url, bytes_near(b"s3://bucket/folder/name?versionId=1")),
        "result": Target(
            lambda d: publishable({"result": _printed(d.decode("utf-8", "surrogateescape"))}),
            json_near(b'{"run": "s3://a/b", "step": 9, "metrics": {"val/psnr": 27.5}}'),
        ),
        "checks": Target(
            lambda d: _last_checks(d.decode("utf-8", "surrogateescape")),
            json_near(b'{"checks": [{"check": "a", "state": "ok", "text": "b"}], "failures": 0}'),
        ),
    }


def _of_tables(folder: Path) -> dict[str, Target]:
    tables = folder / "tables"
    (tables / "split").mkdir(parents=True)
    pair = pictures()["png8"]
    for name in ("a.png", "b.png"):
        (tables / name).write_bytes(pair)

    def read_csv(content: bytes) -> None:
        (tables / "pairs.csv").write_bytes(content)
        precheck(str(tables), read_layout("folder", str(tables / "pairs.csv")))

    def labels(content: bytes) -> None:
        (tables / "split" / "indoor_labels.npy").write_bytes(content)
        read_labels(str(tables / "split"), "test", 9)

    array = io.BytesIO()
    np.save(array, np.arange(1, 9))
    return {
        "pairs.csv": Target(
            read_csv, bytes_near(b"split,blur,sharp,radius\ntrain,a.png,b.png,\nval,b.png,,\n")
        ),
        "labels.npy": Target(labels, bytes_near(array.getvalue())),
        "wandb": Target(lambda d: list(history(d)), bytes_near(_wandb_file())),
    }


def _of_kubectl() -> dict[str, Target]:
    job = (
        b'{"metadata": {"name": "a", "labels": {"b": "c"}}, "spec": {"entrypoint": "era train",'
        b' "rayClusterSpec": {"headGroupSpec": {"template": {"spec": {"containers": [{}]}}},'
        b' "workerGroupSpecs": []}}, "status": {"jobDeploymentStatus": "Failed", "jobId": "d"}}'
    )
    pods = (
        b'{"items": [{"metadata": {"name": "a"}, "spec": {"nodeName": "n"}, "status": {'
        b'"conditions": [{"type": "PodScheduled", "status": "False", "message": "no nodes"}],'
        b' "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}}]}'
    )
    events = (
        b'{"items": [{"involvedObject": {"kind": "Pod", "name": "a", "uid": "1"},'
        b' "reason": "Failed", "message": "no such image"}]}'
    )

    def read(kind: type) -> Callable[[bytes], object]:
        return lambda content: parsed(kind, content.decode("utf-8", "replace"), "kubectl get")

    def read_pods(content: bytes) -> None:
        for pod in parsed(Pods, content.decode("utf-8", "replace"), "kubectl get").items:
            list(_of_pod(pod))

    return {
        "rayjob": Target(read(Found), json_near(job)),
        "pods": Target(read_pods, json_near(pods)),
        "events": Target(read(Events), json_near(events)),
    }


def _wandb_file() -> bytes:
    from wandb.proto import wandb_internal_pb2

    record = wandb_internal_pb2.Record()
    item = record.history.item.add()
    item.key, item.value_json = "global_step", "3"
    body = record.SerializeToString()
    return b":W&B\xe1\xbe\x00" + struct.pack("<IHB", 0, len(body), 1) + body


def pictures() -> dict[str, bytes]:
    """A small valid file of each kind that is written again."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (24, 20, 3), np.uint8)
    found = {}
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, kind, image, options in (
        ("png8", "PNG", Image.fromarray(rgb), {"exif": exif}),
        ("palette", "PNG", Image.fromarray(rgb).convert("P"), {"transparency": 0}),
        ("png16", "PNG", Image.fromarray(rgb[..., 0].astype(np.uint16) * 257), {}),
        ("jpeg", "JPEG", Image.fromarray(rgb), {"exif": exif, "icc_profile": b"x" * 200}),
        ("cmyk", "JPEG", Image.fromarray(rgb).convert("CMYK"), {}),
        ("webp", "WebP", Image.fromarray(rgb), {"exif": exif}),
        ("webp-alpha", "WebP", Image.fromarray(rgb).convert("RGBA"), {"lossless": True}),
    ):
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        found[name] = stream.getvalue()
    for name, big, depth in (("tiff", False, np.uint8), ("bigtiff", True, np.uint16)):
        stream = io.BytesIO()
        tifffile.imwrite(stream, rgb.astype(depth), bigtiff=big, photometric="rgb")
        found[name] = stream.getvalue()
    return found


def _photograph(name: str, sample: bytes) -> Target:
    def read(content: bytes) -> None:
        size = codecs.size(content, name)
        if size.bytes > 1 << 24:
            return  # `--memory` decides about these
        photo = decode_photo(content, name)
        output_name(name, content)
        encode_photo(photo, photo.rgb)

    return Target(read, bytes_near(sample))


def _refused(use: Callable[[], object]) -> None:
    with suppress(UserError):
        use()
