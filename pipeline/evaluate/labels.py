"""DPDD's lists of indoor and outdoor pictures, as IFAN and Restormer publish them.

``indoor_labels.npy`` and ``outdoor_labels.npy`` hold the numbers of a split's images, from 1; they
are found in the split's folder, and those of the split `test`, which is what is published, also in
the folder above.
"""

from __future__ import annotations

import io

import numpy as np

from pipeline import storage
from pipeline.errors import UserError

LABELS = ("indoor", "outdoor")
TEST = "test"
LARGEST = 1 << 20  # bytes of a label file; DPDD's have a few hundred


def read_labels(data: str, split: str, count: int) -> dict[str, list[int]]:
    """The numbers of the images, from 1, by label; empty where there are no label files.

    Args:
        data: the split's URL. split: its name.
        count: images of the split.

    Raises:
        UserError: for a file that holds anything but such numbers.
    """
    found = {}
    for label in LABELS:
        folders = [data, *([storage.parent(data)] if split == TEST else [])]
        urls = [storage.join(folder, f"{label}_labels.npy") for folder in folders]
        url = next(filter(storage.exists, urls), None)
        if url is not None:
            found[label] = _numbers(url, count)
    return found


def _numbers(url: str, count: int) -> list[int]:
    wrong = UserError(f"{url}: expected a NumPy array of image numbers from 1 to {count}")
    if storage.size(url) > LARGEST:
        raise wrong
    try:
        array = np.load(io.BytesIO(storage.read_bytes(url)), allow_pickle=False)
        numbers = np.asarray(array, np.float64).ravel()  # an .npz file is no array
    except UserError:
        raise
    except Exception:  # NumPy raises many kinds for a file that is not its own
        raise wrong from None
    whole = numbers.size and np.all(numbers == np.rint(numbers))
    if not whole or numbers.min() < 1 or numbers.max() > count:
        raise wrong
    return [int(number) for number in numbers]
