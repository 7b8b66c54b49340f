"""Publishing a split: contact sheet, list of skipped pairs, and the manifest last."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.arrays import Image
from pipeline.border import BadInput, validated
from pipeline.data.manifest import NAME, Manifest, parse_shard
from pipeline.errors import DamagedError, printable
from pipeline.preprocess.convert import PARTS

CONTACT, SKIPPED = "contact.jpg", "skipped.json"
SHEET = 24  # samples on the contact sheet
COLUMNS = 4


def publish(
    dataset: str,
    split: str,
    folder: str,
    parts: list[dict[str, Any]],
    fingerprint: str,
    skipped: list[tuple[str, str]],
) -> None:
    """Make a converted split visible.

    Args:
        folder: URL of the split.
        parts: the shards' descriptions, in order.
        fingerprint: digest of the sources, stored in the manifest.
        skipped: (key, reason) of pairs that were left out.
    """
    where = storage.join(folder, PARTS)
    shards = [parse_shard(part["shard"], where) for part in parts if part["shard"]["samples"]]
    seen = [one for part in parts for one in part["seen"]]
    members = [entry.members for shard in shards for entry in shard.samples]
    manifest = Manifest(
        dataset=dataset,
        split=split,
        bit_depth=16,
        sharp=all("sharp.npy" in names for names in members),
        radius=any("radius.npy" in names for names in members),
        shards=shards,
        statistics={"fingerprint": fingerprint, **_statistics(seen)},
    )
    storage.write_bytes(storage.join(folder, CONTACT), contact_sheet(seen))
    if skipped:
        listed = [{"key": key, "reason": printable(reason)} for key, reason in skipped]
        storage.write_json(storage.join(folder, SKIPPED), listed)
    else:
        storage.delete(storage.join(folder, SKIPPED))  # an interrupted call's
    storage.write_text(storage.join(folder, NAME), manifest.to_json())
    storage.remove_unfinished(folder)
    storage.delete(storage.join(folder, PARTS))


def skipped_of(folder: str) -> list[tuple[str, str]]:
    """(key, reason) of the pairs that were left out of a published split.

    Raises:
        DamagedError: if its list is not what `publish` writes.
    """
    url = storage.join(folder, SKIPPED)
    if not storage.exists(url):
        return []
    try:
        listed = validated(list[dict[str, str]], storage.read_json(url), SKIPPED)
        return [(one["key"], one["reason"]) for one in listed]
    except (BadInput, KeyError):
        text = f"{url}: damaged; remove the split's folder and preprocess again"
        raise DamagedError(text) from None


def _statistics(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the samples: RGB in [0, 1], and the blurred images' PSNR in dB."""
    values = {"mean_rgb": np.mean([one["mean"] for one in seen], axis=0).round(6).tolist()}
    psnrs = [one["psnr"] for one in seen if "psnr" in one]
    return {**values, "psnr_blurred": round(float(np.mean(psnrs)), 4)} if psnrs else values


def contact_sheet(seen: list[dict[str, Any]]) -> bytes:
    """A JPEG of evenly spaced samples, blurred and sharp side by side."""
    import cv2

    step = max(1, len(seen) / SHEET)
    chosen = [seen[int(i * step)] for i in range(min(SHEET, len(seen)))]
    raw = [np.frombuffer(base64.b64decode(one["thumbnail"]), np.uint8) for one in chosen]
    pictures: list[Image] = [np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)) for data in raw]
    height, width = (max(picture.shape[axis] for picture in pictures) + 4 for axis in (0, 1))
    rows = -(-len(pictures) // COLUMNS)
    sheet = np.full((rows * height, COLUMNS * width, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = index // COLUMNS * height, index % COLUMNS * width
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    _, data = cv2.imencode(".jpg", sheet)
    return bytes(data)
