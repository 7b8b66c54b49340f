"""The sharp photographs: scikit-image's, or a folder's; split by photograph, never by crop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from pipeline import storage
from pipeline.arrays import Image
from pipeline.errors import UserError, printable
from pipeline.images import list_images, read_image, to_float
from pipeline.synthesize.light import to_linear

# The Middlebury pair shows one scene twice, so both halves stay in one split.
BUNDLED = {
    "train": ("astronaut.png", "coffee.png", "rocket.jpg"),
    "val": ("chelsea.png",),
    "test": ("motorcycle_left.png", "motorcycle_right.png"),
}
SPLITS = tuple(BUNDLED)
DISPARITY = ("motorcycle_left.png", "motorcycle_disp.npz")
# Few photographs are sharp down to the pixel. Larger ones are reduced to a longer side of this many
# pixels, as DPDD's are to a quarter, so that the pictures called sharp are sharp.
LONGER_SIDE = 1800
KEPT = 100  # photographs in memory, of 26 to 39 MB each; others are read again when they are drawn


@dataclass(frozen=True)
class Photo:
    """A photograph, read when it is needed.

    Attributes:
        shape: (H, W).
        load: returns the linear light (H, W, 3).
        inverse_depth: (H, W) in [0, 1] where it is known.
    """

    name: str
    shape: tuple[int, int]
    load: Callable[[], Image]
    inverse_depth: Image | None = None

    @classmethod
    def of(cls, name: str, light: Image, inverse_depth: Image | None = None) -> Photo:
        """A photograph whose linear light (H, W, 3) is in memory."""
        return cls(name, (light.shape[0], light.shape[1]), lambda: light, inverse_depth)

    @property
    def light(self) -> Image:
        """Linear light (H, W, 3)."""
        return self.load()


def load_photos(photos: str, size: tuple[int, int]) -> dict[str, list[Photo]]:
    """Photographs by split; each at least `size` (height, width).

    Args:
        photos: ``bundled``, or the URL of a folder. It holds folders train, val and test; or files,
            of which, sorted by name, every fifth is for testing and every fifth for validation.

    Raises:
        UserError: for a missing, broken or too small photograph, or fewer than three.
    """
    if photos == "bundled":
        folder = _bundled_folder()
        urls = {k: [str(folder / name) for name in names] for k, names in BUNDLED.items()}
        depth = {str(folder / DISPARITY[0]): folder / DISPARITY[1]}
    else:
        urls, depth = _split_folder(photos), {}
    return {
        split: [_load(url, size, depth.get(url)) for url in names] for split, names in urls.items()
    }


def _split_folder(url: str) -> dict[str, list[str]]:
    folders = {split: storage.join(url, split) for split in SPLITS}
    if any(storage.is_dir(folder) for folder in folders.values()):
        return {split: list_images(folder) for split, folder in folders.items()}
    files = list_images(url)
    if len(files) < 3:
        raise UserError(
            f"{url}: {len(files)} photographs; at least 3 are needed, since training, validation "
            "and test never share one"
        )
    test, val = files[0::5], files[1::5]
    return {"train": [f for f in files if f not in test + val], "val": val, "test": test}


def _load(url: str, size: tuple[int, int], disparity: Path | None) -> Photo:
    height, width = _light(url, size).shape[:2]
    depth = None if disparity is None else _disparity(disparity)
    name = printable(storage.name_of(url))
    return Photo(name, (height, width), partial(_light, url, size), depth)


@lru_cache(maxsize=KEPT)
def _light(url: str, size: tuple[int, int]) -> Image:
    image = read_image(url)
    if image.shape[0] < size[0] or image.shape[1] < size[1]:
        raise UserError(
            f"{url}: {image.shape[1]}x{image.shape[0]} pixels, smaller than the pairs asked for "
            f"({size[1]}x{size[0]}); lower --size or remove it"
        )
    return shrunk(to_linear(to_float(image)), size)


def shrunk(light: Image, size: tuple[int, int]) -> Image:
    """Linear light (H, W, 3) with a longer side of at most `LONGER_SIDE`, yet at least `size`."""
    import cv2

    height, width = light.shape[:2]
    scale = max(LONGER_SIDE / max(height, width), size[0] / height, size[1] / width)
    if scale >= 1:
        return light
    shape = max(size[1], round(width * scale)), max(size[0], round(height * scale))
    return np.asarray(cv2.resize(light, shape, interpolation=cv2.INTER_AREA), np.float32)


def _disparity(path: Path) -> Image | None:
    """The Middlebury disparity, which is proportional to the inverse depth; gaps filled."""
    if not path.is_file():
        return None
    import cv2

    disparity = np.load(path)["arr_0"].astype(np.float32)
    unknown = ~np.isfinite(disparity) | (disparity <= 0)
    most = float(disparity[~unknown].max())
    coarse = np.where(unknown, 0, disparity / most)
    filled = cv2.inpaint(
        (coarse * 255).astype(np.uint8), unknown.astype(np.uint8), 3, cv2.INPAINT_TELEA
    )
    return np.asarray(np.where(unknown, filled.astype(np.float32) / 255, coarse), np.float32)


def _bundled_folder() -> Path:
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    wanted = [name for names in BUNDLED.values() for name in names]
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"scikit-image's installed data lacks {', '.join(missing)}; install the version of "
            "requirements.lock, or give --photos a folder"
        )
    return folder
