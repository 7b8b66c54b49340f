"""Checks of one machine: Python, packages, disks, shared memory, GPUs, W&B."""

from __future__ import annotations

import http.client
import os
import platform
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

from pipeline.doctor.finding import FAILURE, OK, WARNING, Finding, judged

DRIVER = Path("/proc/driver/nvidia/version")
LEAST_DRIVER = {"12": "525.60.13", "13": "580.65.06"}  # NVIDIA's, for each CUDA
LEAST_CACHE, LEAST_TEMPORARY, LEAST_SHARED = 20, 2, 2  # GB
ANSWER = 5  # seconds that a server may take to answer


def python() -> Iterator[Finding]:
    """Check the version of Python."""
    found = platform.python_version_tuple()
    good = tuple(map(int, found[:2])) >= (3, 11)
    yield judged("python", good, ".".join(found), "install Python 3.11 or later", FAILURE)


def packages() -> Iterator[Finding]:
    """Compare installed versions with the lock."""
    lock = _lock()
    if lock is None:
        text = "requirements.lock is not at hand, nothing was compared; install the wheel again"
        yield Finding("packages", WARNING, text)
        return
    wrong = []
    for name, wanted in re.findall(r"^([\w.-]+)==([\w.]+)", lock, re.MULTILINE):
        try:
            found = version(name).partition("+")[0]
        except PackageNotFoundError:
            found = "missing"
        if found != wanted:
            wrong.append(f"{name} {found} instead of {wanted}")
    rest = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    text = ", ".join(wrong[:5]) + rest if wrong else "as in requirements.lock"
    yield judged("packages", not wrong, text, "pip install -r requirements.lock")


def _lock() -> str | None:
    packaged = files("pipeline") / "_requirements.lock"
    beside = Path(__file__).parents[2] / "requirements.lock"
    for place in (packaged, beside):
        if place.is_file():
            return place.read_text()
    return None


def disks() -> Iterator[Finding]:
    """Check the space for cached shards, for Ray's own files, and in shared memory."""
    from pipeline.data.cache import cache_folder

    cache = _there(cache_folder(""))
    if not cache.is_dir():
        text = f"{cache} is a file, and the cache wants a folder"
        yield Finding("disk", FAILURE, f"{text}; set ERA_CACHE_DIR to another place")
    free = shutil.disk_usage(cache).free / 1e9
    text = f"{free:.0f} GB free for the cache in {cache}"
    yield judged("disk", free >= LEAST_CACHE, text, "set ERA_CACHE_DIR to a larger disk")
    temporary = _there(Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()))
    free = shutil.disk_usage(temporary).free / 1e9
    text = f"{free:.0f} GB free for Ray's logs and spilled objects in {temporary}"
    yield judged("ray's disk", free >= LEAST_TEMPORARY, text, "free some, or set RAY_TMPDIR")
    if Path("/dev/shm").exists():
        shared = shutil.disk_usage("/dev/shm").total / 1e9
        cure = "give the container more (--shm-size, or an emptyDir in memory)"
        yield judged("shared memory", shared >= LEAST_SHARED, f"{shared:.1f} GB", cure)


def _there(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def gpus() -> Iterator[Finding]:
    """Report the GPUs that torch can use; a driver that torch cannot use is a failure."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("gpu", OK, f"{len(names)}: {', '.join(sorted(set(names)))}")
    elif DRIVER.exists():
        yield Finding("gpu", FAILURE, f"torch {torch.__version__} {_unusable(torch.version.cuda)}")
    else:
        yield Finding("gpu", OK, "none: training runs on processors (scaling.gpu=false)")


def _unusable(cuda: str | None, told: Path = DRIVER) -> str:
    """Why torch can't use this machine's NVIDIA driver, and what to do."""
    found = re.search(r"  (\d+(?:\.\d+)+)  ", told.read_text(errors="replace"))
    driver = found[1] if found else ""
    if cuda is None:
        return f"has no CUDA, and there is NVIDIA's driver {driver}; install torch's CUDA wheel"
    least = LEAST_DRIVER.get(cuda.partition(".")[0], "")
    if driver and least and _numbers(driver) < _numbers(least):
        return f"needs NVIDIA's driver {least} for CUDA {cuda}, and this is {driver}; update it"
    return f"cannot use NVIDIA's driver {driver}; see `nvidia-smi`, or install a newer driver"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def wandb() -> Iterator[Finding]:
    """Check that W&B's server answers where there is a key; the key itself is not tried."""
    if not os.environ.get("WANDB_API_KEY"):
        yield Finding("wandb", OK, "no WANDB_API_KEY: runs stay offline (`wandb sync` sends them)")
        return
    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    answers = answer_of(server) is not None
    text = f"a key is set; {server} {'answers (the key: not tried)' if answers else 'is silent'}"
    cure = "check WANDB_BASE_URL and the network, or set tracking.wandb=offline"
    yield judged("wandb", answers, text, cure)


def answer_of(url: str) -> Message | None:
    """The headers of a server's answer, refusals included; None without an answer."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER) as answer:
            headers: Message = answer.headers
            return headers
    except urllib.error.HTTPError as refusal:
        return refusal.headers
    except (OSError, ValueError, http.client.HTTPException):
        return None
