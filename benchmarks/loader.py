"""How fast crops come: this loader against what others do with the same pictures.

    python -m benchmarks.loader

Equal work for all: crop pairs of 256 pixels, uint16 HWC, from the same synthetic pairs of DPDD's
size, random order. Single-threaded; the figure is crop pairs per second of process CPU time, so
that a loaded machine does not decide. MosaicML Streaming and LitData are measured in an environment
of their own (benchmarks/peers.txt), made on the first run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.table import machine, markdown, record
from pipeline import storage
from pipeline.arrays import Image
from pipeline.data.loader import TrainLoader
from pipeline.data.manifest import load_manifest
from pipeline.data.order import OrderPlan
from pipeline.data.split import open_split
from pipeline.images import read_image
from pipeline.preprocess import preprocess

SIZE, CROP, PAIRS, BATCH = (1120, 1680), 256, 12, 8
TILE = 512
HERE = Path(__file__).parent
PEERS = HERE.parent / ".peers"
PEER_NAMES = ("mosaicml-streaming", "litdata")


def make_pairs(folder: Path, pairs: int = PAIRS, size: tuple[int, int] = SIZE) -> None:
    """Noisy 16-bit pairs in two folders: noise fills the low bits, as in photographs."""
    for index in range(pairs):
        rng = np.random.default_rng(index)
        smooth = cv2.resize(rng.random((40, 60, 3)), size[::-1], interpolation=cv2.INTER_CUBIC)
        for kind, sigma in (("sharp", 0.01), ("blur", 0.004)):
            image = np.clip(smooth + sigma * rng.standard_normal((*size, 3)), 0, 1)
            path = folder / kind / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), (image * 65535).astype(np.uint16))


def rate(make: Callable[[], Any], seconds: float = 3.0) -> tuple[float, float]:
    """Crop pairs per CPU second and per second; `make` returns the number of pairs it made."""
    make()
    cpu, wall, count = time.process_time(), time.perf_counter(), 0
    while time.perf_counter() - wall < seconds:
        count += make()
    return count / (time.process_time() - cpu), count / (time.perf_counter() - wall)


def crop_of(image: Image, rng: np.random.Generator) -> Image:
    """A random crop, copied."""
    top = int(rng.integers(image.shape[0] - CROP + 1))
    left = int(rng.integers(image.shape[1] - CROP + 1))
    return image[top : top + CROP, left : left + CROP].copy()


def plan(steps: int = 10**9) -> OrderPlan:
    """The order that this loader follows here."""
    return OrderPlan(0, BATCH, 16, 0, (CROP,), steps, True, 0.3)


def ours(url: str, cache: str = "") -> Callable[[], int]:
    """This loader, driven batch by batch in the calling thread."""
    split = open_split(url, cache)
    loader = TrainLoader(split, plan(), rank=0, world_size=1, start_step=0, steps=10**9)
    step = iter(range(10**9))
    return lambda: len(loader.batch(next(step)).ids)


def png_folder(folder: Path) -> Callable[[], int]:
    """Whole PNGs decoded for every crop, as BasicSR-like code does."""
    rng = np.random.default_rng(0)
    names = sorted(path.name for path in (folder / "blur").iterdir())

    def make() -> int:
        name = names[int(rng.integers(len(names)))]
        for kind in ("blur", "sharp"):
            crop_of(read_image(str(folder / kind / name)), rng)
        return 1

    return make


def png_tiles(folder: Path, tiles: Path) -> Callable[[], int]:
    """Pre-cut tiles of 512 pixels, as Restormer prepares them."""
    for kind in ("blur", "sharp"):
        (tiles / kind).mkdir(parents=True)
        for path in sorted((folder / kind).iterdir()):
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            for top in range(0, SIZE[0] - TILE + 1, TILE):
                for left in range(0, SIZE[1] - TILE + 1, TILE):
                    tile = image[top : top + TILE, left : left + TILE]
                    cv2.imwrite(str(tiles / kind / f"{path.stem}_{top}_{left}.png"), tile)
    return png_folder(tiles)


def webdataset(folder: Path) -> Callable[[], int]:
    """WebDataset reading the same shards in sequence, one crop from each whole pair."""
    import webdataset as wds

    rng = np.random.default_rng(0)
    urls = [str(folder / shard.name) for shard in load_manifest(str(folder))[0].shards]

    def samples() -> Iterator[Any]:
        while True:
            yield from wds.WebDataset(urls, shardshuffle=False).decode()

    stream = samples()

    def make() -> int:
        sample = next(stream)
        for name in ("blur.npy", "sharp.npy"):
            crop_of(sample[name], rng)
        return 1

    return make


def memcpy() -> Callable[[], int]:
    """Copying the bytes of a crop pair out of warm memory: the limit."""
    source = np.ones((2, CROP, CROP, 3), np.uint16)
    target = np.empty_like(source)

    def make() -> int:
        for _ in range(100):
            np.copyto(target, source)
        return 100

    return make


def peer(name: str, folder: Path, scratch: Path) -> tuple[float, float] | None:
    """A peer's rate, measured in the peers' own environment; None where it cannot be had."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
        command = [str(python), "-m", "pip", "install", "-q", "-r", str(HERE / "peers.txt")]
        if subprocess.run(command, check=False).returncode:
            shutil.rmtree(PEERS)
            return None
    done = subprocess.run(
        [str(python), str(HERE / "peers.py"), name, str(folder), str(scratch / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    cpu, wall = json.loads(done.stdout.splitlines()[-1])
    return cpu, wall


def kept(folder: Path) -> float:
    """MB on the disk per pair."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / PAIRS / 1e6


def forget(folder: Path) -> None:
    """Ask the system to drop its cached pages of a folder's files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    """A real S3 server over a local folder; yields the URL of its bucket `data`."""
    from tests.conftest import S3Server, _free_port, _rclone, _wait_for

    port = _free_port()
    server = S3Server(f"http://127.0.0.1:{port}", folder)
    keys = server.environment["AWS_ACCESS_KEY_ID"], server.environment["AWS_SECRET_ACCESS_KEY"]
    command = [_rclone(), "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", ",".join(keys), "-q"]
    process = subprocess.Popen(command)
    os.environ.update(server.environment)
    try:
        _wait_for(server.endpoint, process)
        yield "s3://data"
    finally:
        process.terminate()
        process.wait()


def first_epoch(url: str, cache: str) -> tuple[float, float]:
    """Rate of the first epoch, downloads included."""
    make = ours(url, cache)
    cpu, wall = time.process_time(), time.perf_counter()
    count = sum(make() for _ in range(PAIRS * 16 // BATCH))
    return count / (time.process_time() - cpu), count / (time.perf_counter() - wall)


def main() -> None:
    """Measure everything and record one table."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        make_pairs(scratch / "pairs")
        shards = scratch / "buckets" / "data"
        preprocess("folder", str(scratch / "pairs"), str(shards))
        train = shards / "train"
        found: dict[str, tuple[float, float] | None] = {}
        found["a folder of whole 16-bit PNGs"] = rate(png_folder(scratch / "pairs"))
        found["a folder of 512 px PNG tiles"] = rate(
            png_tiles(scratch / "pairs", scratch / "tiles")
        )
        found["WebDataset, in sequence, same shards"] = rate(webdataset(train))
        for library in PEER_NAMES:
            found[f"{library}, raw 512 px tiles"] = peer(library, scratch / "pairs", scratch)
        forget(shards)
        found["this loader, local, cold (first epoch)"] = first_epoch(str(train), "")
        found["**this loader, local, warm**"] = rate(ours(str(train)))
        cache = str(scratch / "cache")
        with s3(scratch / "buckets") as bucket:
            url = storage.join(bucket, "train")
            found["this loader, S3, cold (first epoch)"] = first_epoch(url, cache)
            found["this loader, S3, warm cache"] = rate(ours(url, cache))
        found["limit: memcpy of the crops"] = rate(memcpy())
        places = [scratch / name for name in ("pairs", "tiles")]
        places += [train, *(scratch / name for name in PEER_NAMES), train, train]
        places += [Path(cache), Path(cache)]
        sizes = dict(zip(found, map(kept, places), strict=False))
        many = many_small(scratch)
        workers = {n: threaded(str(train), n) for n in (0, 1, 2)}
        pressure = under_pressure(scratch)
    report(found, sizes, many, workers, pressure)


def many_small(scratch: Path) -> dict[int, float]:
    """Milliseconds of CPU per crop pair of 64 pixels against the number of samples."""
    from pipeline.data.manifest import Manifest
    from pipeline.data.shards import Sample, ShardWriter

    found = {}
    for count in (100, 10_000):
        folder = scratch / f"many{count}"
        folder.mkdir()
        image = np.ones((128, 128, 3), np.uint16)
        shards = []
        for first in range(0, count, 1000):
            writer = ShardWriter(folder / f"shard-{first // 1000:05d}.tar")
            for index in range(first, min(first + 1000, count)):
                writer.add(Sample(f"k{index}", image, image, None, {"sharpness": [[1.0]]}))
            shards.append(writer.close())
        manifest = Manifest("folder", "train", 16, True, False, shards)
        storage.write_text(str(folder / "manifest.json"), manifest.to_json())
        split = open_split(str(folder))
        order = OrderPlan(0, BATCH, 1, 0, (64,), 10**9, True, 0.3)
        loader = TrainLoader(split, order, rank=0, world_size=1, start_step=0, steps=10**9)
        steps = iter(range(10**9))
        cpu, _ = rate(lambda loader=loader, steps=steps: len(loader.batch(next(steps)).ids))
        found[count] = 1000 / cpu
        shutil.rmtree(folder)
    return found


def threaded(url: str, workers: int, seconds: float = 3.0) -> float:
    """Crop pairs per second of wall time through the queue."""
    split = open_split(url)
    loader = TrainLoader(
        split, plan(), rank=0, world_size=1, start_step=0, steps=10**9, workers=workers
    )
    batches = iter(loader)
    next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        count += len(next(batches).ids)
    loader.close()
    return count / (time.perf_counter() - began)


def under_pressure(scratch: Path) -> dict[str, float]:
    """Crop pairs per second from S3 with a cache that holds all shards, or only a part."""
    folder = scratch / "pressed"
    preprocess("folder", str(scratch / "pairs"), str(folder / "data"), shard_bytes=50 << 20)
    total = load_manifest(str(folder / "data" / "train"))[0].bytes / 1e9
    found = {}
    with s3(folder) as bucket:
        for share, window in ((1.2, 0), (0.5, 1)):
            split = open_split(
                storage.join(bucket, "train"), str(scratch / f"c{share}"), share * total
            )
            order = OrderPlan(0, BATCH, 16, window, (CROP,), 10**9, True, 0.3)
            loader = TrainLoader(split, order, rank=0, world_size=1, start_step=0, steps=10**9)
            began = time.perf_counter()
            epochs = 3
            for step in range(epochs * PAIRS * 16 // BATCH):
                loader.batch(step)
            name = f"cache {share:g} x the set, window {window or 'all'}"
            found[name] = epochs * PAIRS * 16 / (time.perf_counter() - began)
    return found


def report(
    found: dict[str, tuple[float, float] | None],
    sizes: dict[str, float],
    many: dict[int, float],
    workers: dict[int, float],
    pressure: dict[str, float],
) -> None:
    """Print and record."""
    tiled = SIZE[0] // TILE * TILE * (SIZE[1] // TILE * TILE) / (SIZE[0] * SIZE[1])
    base = found["a folder of whole 16-bit PNGs"]
    assert base is not None
    rows = [
        [name, "not available", "", "", ""]
        if r is None
        else [name, r[0], 1000 / r[0], r[0] / base[0], sizes.get(name, "")]
        for name, r in found.items()
    ]
    columns = (
        "crop pairs of 256 px from",
        "per CPU second",
        "CPU ms per pair",
        "x PNG folder",
        "MB kept per whole pair",
    )
    text = [
        f"{machine()}. {PAIRS} pairs of {SIZE[1]}x{SIZE[0]} pixels, 16 bits; one thread; "
        "`python -m benchmarks.loader`. Tiles are cut without overlap and leave out "
        f"{1 - tiled:.0%} of each picture.",
        "",
        markdown(columns, rows),
        "",
        "CPU ms per pair of 64 px against the number of samples: "
        + ", ".join(f"{count}: {ms:.3f}" for count, ms in many.items())
        + ".",
        "Through the queue, crop pairs per second by extra threads: "
        + ", ".join(f"{n}: {r:.0f}" for n, r in workers.items())
        + ".",
        "From S3, three epochs, crop pairs per second: "
        + ", ".join(f"{name}: {r:.0f}" for name, r in pressure.items())
        + ".",
    ]
    record("Loader", "\n".join(text))


if __name__ == "__main__":
    main()
