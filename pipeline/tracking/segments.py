"""Reading W&B's offline files: the steps that earlier attempts of a run have recorded.

A `.wandb` file is a 7-byte header, then records in LevelDB's log format: blocks of 32 KiB that hold
chunks of crc32 (4 bytes), length (2), type (1: whole, 2: first, 3: middle, 4: last) and data. A
record is a protobuf message, `wandb_internal.Record`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from pipeline import storage

HEADER, BLOCK, CHUNK_HEADER = 7, 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def mirrored_step(run_url: str, run_id: str) -> int:
    """The last step in the offline files below `<run>/wandb`; -1 without any."""
    last = -1
    for name in offline_runs(run_url, run_id):
        url = storage.join(run_url, "wandb", name, f"run-{run_id}.wandb")
        if storage.exists(url):
            steps = [row["global_step"] for row in history(storage.read_bytes(url))]
            last = max([last, *steps])
    return last


def offline_runs(run_url: str, run_id: str) -> list[str]:
    """Folder names of a run's offline segments, oldest first."""
    names = storage.list_names(storage.join(run_url, "wandb"))
    return [n for n in names if n.startswith("offline-run-") and n.endswith(f"-{run_id}")]


def history(data: bytes) -> Iterator[dict[str, Any]]:
    """The rows of metrics in a `.wandb` file, in order, up to its end or its first damage."""
    for record in records(data):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            try:
                row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
            except (ValueError, RecursionError):
                return
            if isinstance(row.get("global_step"), int):
                yield row


def records(data: bytes) -> Iterator[Any]:
    """The protobuf records of a `.wandb` file, up to its end or its first damage."""
    from wandb.proto import wandb_internal_pb2

    for message in _messages(data):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        try:
            record.ParseFromString(message)
        except Exception:  # protobuf's DecodeError; protobuf is W&B's dependency, not ours
            return
        yield record


def _messages(data: bytes) -> Iterator[bytes]:
    position, parts = HEADER, b""
    while position + CHUNK_HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < CHUNK_HEADER:  # padding at the end of a block
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += CHUNK_HEADER
        chunk = data[position : position + length]
        if kind not in (WHOLE, FIRST, MIDDLE, LAST) or len(chunk) < length:
            return
        position += length
        parts = chunk if kind in (WHOLE, FIRST) else parts + chunk
        if kind in (WHOLE, LAST):
            yield parts
