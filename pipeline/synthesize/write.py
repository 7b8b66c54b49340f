"""Writing a synthetic set: ``<split>_c/{source,target,radius}/``, 16-bit PNG, names as in DPDD."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from pipeline import __version__, storage
from pipeline.arrays import RADIUS_UNITS
from pipeline.errors import UserError
from pipeline.images import from_float, write_png
from pipeline.progress import track
from pipeline.synthesize.camera import Camera, parse_effects
from pipeline.synthesize.photos import SPLITS, Photo, load_photos
from pipeline.synthesize.render import Rendered, render
from pipeline.synthesize.scene import draw_scene

DESCRIPTION = "synthesis.json"
MOST_PAIRS = 1_000_000
MOST_SEED = 2**63 - 1


def synthesize(
    photos: str,
    dest: str,
    pairs: int,
    seed: int = 0,
    size: tuple[int, int] = (288, 288),
    radius_max: float = 7.0,
    mixed_psf: bool = False,
    camera: str = "",
) -> dict[str, Any]:
    """Make a set of pairs; the same arguments give the same bytes, even after an interruption.

    Args:
        photos: ``bundled`` (scikit-image's), or the URL of a folder of sharp photographs.
        dest: URL of the folder to write.
        pairs: of all splits together: about 70 % train, 10 % val, 20 % test, each at least one.
        size: (width, height) in pixels.
        radius_max: the greatest blur radius in pixels.
        mixed_psf: several kinds of point spread functions in each picture (compound defocus).
        camera: effects of a camera (`pipeline.synthesize.camera.EFFECTS`), such as ``noise,jpeg``.

    Raises:
        UserError: for effects that do not exist, photographs that cannot be used, or a destination
            that holds anything else.
    """
    _check(pairs, size, radius_max, seed)
    effects = parse_effects(camera)
    height, width = size[1], size[0]
    by_split = load_photos(photos, (height, width))
    description = {
        "format": "era-synthesis/1",
        "version": __version__,
        "pairs": pairs,
        "seed": seed,
        "size": list(size),
        "radius_max": radius_max,
        **({"mixed_psf": True} if mixed_psf else {}),
        **({"camera": sorted(effects)} if effects else {}),
        **({"apertures": "of surfaces"} if mixed_psf and "aperture" in effects else {}),
        **({"noise": "of clipped light"} if {"exposure", "noise"} <= effects else {}),
        "photos": {split: [photo.name for photo in found] for split, found in by_split.items()},
    }
    _claim(dest, description)
    counts = split_counts(pairs)
    jobs = [(split, index) for split in SPLITS for index in range(counts[split])]
    for split, index in track(jobs, len(jobs), "synthesize"):
        photographs = by_split[split]
        rendered = make_pair(
            photographs, split, index, seed, (height, width), radius_max, mixed_psf, effects
        )
        write_pair(dest, split, pair_number(counts, split, index), rendered)
    storage.write_json(storage.join(dest, DESCRIPTION), {**description, "complete": True})
    return {"dest": dest, "pairs": pairs, **{f"{split}_pairs": counts[split] for split in SPLITS}}


def make_pair(
    photos: list[Photo],
    split: str,
    index: int,
    seed: int,
    size: tuple[int, int],
    radius_max: float,
    mixed_psf: bool = False,
    effects: frozenset[str] = frozenset(),
) -> Rendered:
    """Make one pair: a pure function of its arguments, so pairs can be made in any order."""
    name = f"era/synthesize/{seed}/{split}/{index}"
    key = hashlib.sha256(name.encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
    if not effects:
        return render(draw_scene(rng, photos, size, radius_max, mixed_psf), rng)
    camera = Camera(effects, name)
    larger = camera.size_of_scene(size, photos)
    scene = draw_scene(rng, photos, larger, radius_max * larger[0] / size[0], mixed_psf)
    return camera.photograph(scene, size, rng)


def split_counts(pairs: int) -> dict[str, int]:
    """The number of pairs of each split."""
    test, val = max(1, round(0.2 * pairs)), max(1, round(0.1 * pairs))
    return {"train": pairs - test - val, "val": val, "test": test}


def _check(pairs: int, size: tuple[int, int], radius_max: float, seed: int) -> None:
    if pairs < 3:
        raise UserError(f"--pairs {pairs}: at least 3 are needed, one for each split")
    if pairs > MOST_PAIRS:
        raise UserError(f"--pairs {str(pairs)[:40]}: at most {MOST_PAIRS} are made")
    if abs(seed) > MOST_SEED:
        raise UserError(f"--seed {str(seed)[:40]}: expected a number of at most {MOST_SEED}")
    if min(size) < 32:
        raise UserError(f"--size {size[0]}x{size[1]}: at least 32x32 pixels are needed")
    if not 0 < radius_max <= 64:
        raise UserError(f"--radius-max {radius_max}: expected a radius from above 0 to 64 pixels")


def _claim(dest: str, description: dict[str, Any]) -> None:
    """Refuse a folder that holds anything else; continue one of the same description."""
    url = storage.join(dest, DESCRIPTION)
    names = storage.list_names(dest)
    if storage.exists(url):
        before = storage.read_json(url)
        if not isinstance(before, dict):
            raise UserError(f"{url}: not a description of a set; choose another --dest")
        if {k: v for k, v in before.items() if k != "complete"} != description:
            raise UserError(f"{dest}: holds a set made with other settings; choose another --dest")
    elif names:
        raise UserError(f"{dest}: holds {names[0]} and is no synthetic set; choose another --dest")
    storage.write_json(url, {**description, "complete": False})


def pair_number(counts: dict[str, int], split: str, index: int) -> int:
    """A source's number: numbers run through all splits in steps of two."""
    before = sum(counts[other] for other in SPLITS[: SPLITS.index(split)])
    return 2 * (before + index) + 1


def write_pair(dest: str, split: str, number: int, rendered: Rendered) -> None:
    """Write a pair into its split's folder, the radius last; the target has `number` + 1."""
    folder = storage.join(dest, f"{split}_c")
    source, target = f"1P0A{number:04d}.png", f"1P0A{number + 1:04d}.png"
    radius = np.rint(rendered.radius * RADIUS_UNITS).astype(np.uint16)
    write_png(storage.join(folder, "source", source), from_float(rendered.blur, np.uint16))
    write_png(storage.join(folder, "target", target), from_float(rendered.sharp, np.uint16))
    write_png(storage.join(folder, "radius", source), radius)
