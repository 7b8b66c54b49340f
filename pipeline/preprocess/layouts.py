"""Where each data set keeps its pictures, and which belong together."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pipeline import storage
from pipeline.errors import UserError
from pipeline.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Pair:
    """One sample to be: the URLs of its files, relative to the source."""

    key: str
    blur: str
    sharp: str | None = None
    radius: str | None = None

    @property
    def files(self) -> list[str]:
        """Those that there are."""
        return [name for name in (self.blur, self.sharp, self.radius) if name is not None]


@dataclass
class Layout:
    """A data set's splits, what is odd about them without being wrong, and what is wrong.

    Attributes:
        problems: (split, text) of what cannot be paired.
        unpaired: files of such a split, which can be looked at all the same.
    """

    splits: dict[str, list[Pair]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    unpaired: dict[str, list[str]] = field(default_factory=dict)

    def refuse(self, split: str, text: str, files: Iterable[str] = ()) -> None:
        """Note a problem, and the files that have no partner because of it."""
        self.problems.append((split, text))
        self.unpaired.setdefault(split, []).extend(files)


SPLITS = ("train", "val", "test")
DPDD_COUNTS = {"train": 350, "val": 74, "test": 76}


def read_layout(dataset: str, source: str) -> Layout:
    """List a data set's pairs, and what does not fit the layout; no picture is opened.

    Raises:
        UserError: if there is nothing of the layout at all.
    """
    if dataset not in DATASETS:
        raise UserError(f"--dataset {dataset!r}: unknown; known: {', '.join(DATASETS)}")
    if not storage.exists(source):
        raise UserError(f"{source}: no such folder or file")
    layout = DATASETS[dataset](source)
    layout.splits = {split: pairs for split, pairs in layout.splits.items() if pairs}
    if not layout.splits and not layout.problems:
        raise UserError(f"{source}: no image found in the layout of {dataset!r} (see README.md)")
    return layout


def _dpdd(source: str) -> Layout:
    """``<split>_c/{source,target}`` (16-bit or its 8-bit copy), or ``<split>/{inputC,target}``.

    Names differ by one or two between source and target, so pairs go by sorted order.
    """
    found = Layout()
    for split in SPLITS:
        for blur, sharp in (
            (f"{split}_c/source", f"{split}_c/target"),
            (f"{split}/inputC", f"{split}/target"),
        ):
            if not storage.is_dir(storage.join(source, blur)):
                continue
            pairs = _by_order(found, split, source, blur, sharp, f"{split}_c/radius")
            if len(pairs) not in (0, DPDD_COUNTS[split]):
                found.warnings.append(
                    f"{split}: {len(pairs)} pairs; all of DPDD has {DPDD_COUNTS[split]}"
                )
            break
    return found


def _realdof(source: str) -> Layout:
    """``source/01.png`` with ``target/01.png``: 50 pairs for testing."""
    found = Layout(warnings=_count(source, "source", 50))
    _by_order(found, "test", source, "source", "target")
    return found


def _rtf(source: str) -> Layout:
    """``image/[0/]image_01.png`` with ``GT/sharp_01.png``: 22 pairs for testing."""
    folder = "image/0" if storage.is_dir(storage.join(source, "image/0")) else "image"
    found = Layout(warnings=_count(source, folder, 22))
    _by_order(found, "test", source, folder, "GT")
    return found


def _lfdof(source: str) -> Layout:
    """``<split>_data/input/IMG_x/*.png`` with ``<split>_data/ground_truth/IMG_x.png``."""
    found = Layout()
    for split in SPLITS:
        folder = f"{split}_data/input"
        pairs = found.splits[split] = []
        for scene in storage.list_names(storage.join(source, folder)):
            sharp = f"{split}_data/ground_truth/{scene}.png"
            blurred = [f"{folder}/{scene}/{name}" for name in _images(source, f"{folder}/{scene}")]
            if storage.exists(storage.join(source, sharp)):
                pairs += [Pair(_key(name), name, sharp) for name in blurred]
            else:
                found.refuse(split, f"{storage.join(source, sharp)} is missing", blurred)
    return found


def _cuhk(source: str) -> Layout:
    """A flat folder of photographs without ground truth."""
    names = _images(source, "")
    warnings = [] if len(names) == 704 else [f"{len(names)} images; all of CUHK has 704"]
    return Layout({"test": [Pair(_key(name), name) for name in names]}, warnings)


def _pixeldp(source: str) -> Layout:
    """``test_c/[source/]*``: no ground truth."""
    folder = "test_c/source" if storage.is_dir(storage.join(source, "test_c/source")) else "test_c"
    names = _images(source, folder)
    return Layout({"test": [Pair(_key(name), f"{folder}/{name}") for name in names]})


def _folder(source: str) -> Layout:
    """A CSV of pairs (split, blur, sharp[, radius]); or ``[<split>/]{blur,sharp[,radius]}``."""
    if source.lower().endswith(".csv"):
        return _csv(source)
    found = Layout()
    splits = [split for split in SPLITS if storage.is_dir(storage.join(source, f"{split}/blur"))]
    for split in splits:
        _by_order(found, split, source, f"{split}/blur", f"{split}/sharp", f"{split}/radius")
    if not splits:
        _by_order(found, "train", source, "blur", "sharp", "radius")
    return found


def _csv(source: str) -> Layout:
    rows = csv.DictReader(io.StringIO(storage.read_text(source)))
    wanted = {"split", "blur"}
    if not wanted <= set(rows.fieldnames or []):
        raise UserError(f"{source}: the columns split, blur, sharp (and radius) are needed")
    found = Layout()
    for number, row in enumerate(rows, start=2):
        split = (row["split"] or "").strip()
        if not re.fullmatch(r"[A-Za-z0-9_-]+", split) or not row["blur"]:
            text = f"{source}, line {number}: a split's name and a blurred image are needed"
            found.refuse(split, text)
            continue
        pair = Pair(
            _key(row["blur"]), row["blur"], row.get("sharp") or None, row.get("radius") or None
        )
        found.splits.setdefault(split, []).append(pair)
    return found


def base_of(source: str) -> str:
    """The folder that a layout's relative names start from."""
    return source.rpartition("/")[0] or "." if source.lower().endswith(".csv") else source


def _by_order(
    found: Layout, split: str, source: str, blur: str, sharp: str, radius: str = ""
) -> list[Pair]:
    """Pair two folders by sorted order; radius files are named as the blurred ones."""
    blurred, sharps = _images(source, blur), _images(source, sharp)
    radii = set(_images(source, radius)) if radius else set()
    if len(blurred) != len(sharps):
        text = (
            f"{storage.join(source, blur)} has {len(blurred)} images and "
            f"{storage.join(source, sharp)} has {len(sharps)}; pairs go by sorted order, so the "
            "counts must be equal"
        )
        found.refuse(
            split, text, [*(f"{blur}/{b}" for b in blurred), *(f"{sharp}/{s}" for s in sharps)]
        )
        return []
    found.splits[split] = [
        Pair(_key(b), f"{blur}/{b}", f"{sharp}/{s}", f"{radius}/{b}" if b in radii else None)
        for b, s in zip(blurred, sharps, strict=True)
    ]
    return found.splits[split]


def _count(source: str, folder: str, whole: int) -> list[str]:
    count = len(_images(source, folder))
    return [] if count in (0, whole) else [f"{count} pairs; the whole set has {whole}"]


def _images(source: str, folder: str) -> list[str]:
    """Image names in a folder, sorted; of names with numbers, 2 comes before 10."""
    names = storage.list_names(storage.join(source, folder) if folder else source)
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(
        images, key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)]
    )


def _key(name: str) -> str:
    """A sample's key: the file's stem without dots, which WebDataset would cut at."""
    return re.sub(r"[^\w-]", "_", storage.name_of(name).rpartition(".")[0])


DATASETS: dict[str, Callable[[str], Layout]] = {
    "dpdd": _dpdd,
    "realdof": _realdof,
    "rtf": _rtf,
    "lfdof": _lfdof,
    "cuhk": _cuhk,
    "pixeldp": _pixeldp,
    "folder": _folder,
}
