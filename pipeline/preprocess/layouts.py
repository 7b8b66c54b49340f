"""Where each data set keeps its pictures, and which of them form a pair."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pipeline import storage
from pipeline.errors import UserError
from pipeline.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Pair:
    """The files of one future sample: their URLs, relative to the source."""

    key: str
    blur: str
    sharp: str | None = None
    radius: str | None = None

    @property
    def files(self) -> list[str]:
        """The files that exist for this pair."""
        return [name for name in (self.blur, self.sharp, self.radius) if name is not None]


@dataclass
class Layout:
    """A data set's splits, its oddities, and its faults.

    Attributes:
        splits: pairs by split.
        warnings: oddities that are no faults.
        problems: (split, key, text) of whatever cannot be paired; the key is empty where a whole
            split cannot.
        unpaired: files of such splits, which can be checked nevertheless.
    """

    splits: dict[str, list[Pair]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    unpaired: dict[str, list[str]] = field(default_factory=dict)

    def refuse(self, split: str, text: str, files: Iterable[str] = ()) -> None:
        """Record a split's problem and the files that it leaves without a partner."""
        self.problems.append((split, "", text))
        self.unpaired.setdefault(split, []).extend(files)


SYNTHESIS = "synthesis.json"  # of a set that `era synthesize` made
SPLITS = ("train", "val", "test")
LONGEST_KEY = 100 - len(".radius.npy")  # bytes: a tar header holds 100 of a member's name
DPDD_COUNTS = {"train": 350, "val": 74, "test": 76}


def read_layout(dataset: str, source: str) -> Layout:
    """List a data set's pairs and whatever does not fit its layout; no picture is opened.

    Raises:
        UserError: if nothing there fits the layout.
    """
    if dataset not in DATASETS:
        raise UserError(f"--dataset {dataset!r}: unknown; known: {', '.join(DATASETS)}")
    if not storage.exists(source):
        raise UserError(f"{source}: no such folder or file")
    layout = DATASETS[dataset](source)
    layout.splits = {split: pairs for split, pairs in layout.splits.items() if pairs}
    if not layout.splits and not layout.problems:
        raise UserError(
            f"{source}: no image found in the layout of {dataset!r} (see docs/own-data.md)"
        )
    return layout


def _dpdd(source: str) -> Layout:
    """``<split>_c/{source,target}`` (16 bits, or the 8-bit copy), or ``<split>/{inputC,target}``.

    The numbers in the names of source and target differ, so files are paired in sorted order.
    """
    found = Layout()
    made = storage.join(source, SYNTHESIS)
    known = storage.read_json(made) if storage.exists(made) else {}
    if isinstance(known, dict) and known.get("complete") is False:
        raise UserError(f"{source}: `era synthesize` did not finish this set; run it again first")
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
            if scene.startswith(".") or not storage.is_dir(storage.join(source, folder, scene)):
                continue
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
        _by_name(found, split, source, f"{split}/")
    if not splits:
        _by_name(found, "train", source, "")
    return found


def _csv(source: str) -> Layout:
    """Rows as spreadsheets save them: with or without a byte order mark, any line ends, separated
    by commas, semicolons or tabs."""
    text = storage.read_text(source).removeprefix("\ufeff")
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    # `newline=None` reads lone carriage returns as line ends, too.
    lines = io.StringIO(text, newline=None)
    found = Layout()
    try:
        rows = csv.DictReader(lines, delimiter=separator, skipinitialspace=True)
        columns = rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or []]
        named = [name for name in columns if name]
        if not {"split", "blur"} <= set(named) or len(set(named)) < len(named):
            text = "the columns split, blur, sharp (and radius) are needed, each once"
            raise UserError(f"{source}: {text}")
        others = sorted({*named} - {"split", "blur", "sharp", "radius"})
        if "sharp" not in named and others:
            raise UserError(
                f"{source}: no column sharp, but {', '.join(others[:5])}: name it sharp, or leave "
                "the others out if there is no ground truth"
            )
        for row in rows:
            _add_row(found, source, rows.line_num, row)
    except csv.Error as error:
        raise UserError(f"{source}: not valid CSV after line {rows.line_num} ({error})") from None
    for split, pairs in found.splits.items():
        found.splits[split] = list(dict.fromkeys(pairs))
        if twice := len(pairs) - len(found.splits[split]):
            found.warnings.append(f"{source}, {split}: {twice} rows are there again; one counts")
        lacking = sum(pair.sharp is None for pair in found.splits[split])
        if 0 < lacking < len(found.splits[split]):
            found.warnings.append(
                f"{source}, {split}: {lacking} of {len(found.splits[split])} rows have no sharp "
                "image; training refuses such a split"
            )
    return found


def _add_row(found: Layout, source: str, line: int, row: dict[str, str | None]) -> None:
    folder = f"{base_of(source)}/"
    split, blur, sharp, radius = (
        (row.get(name) or "").strip().removeprefix(folder)
        for name in ("split", "blur", "sharp", "radius")
    )
    if not any((split, blur, sharp, radius)):
        return  # an empty row of a spreadsheet
    unusable = not blur or "\0" in blur + sharp + radius
    if unusable or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", split):
        text = f"{source}, line {line}: a split's name and a blurred image are needed"
        found.refuse(split, text)
        return
    if ".." in f"{blur}/{sharp}/{radius}".replace("\\", "/").split("/"):
        found.refuse(split, f"{source}, line {line}: '..' leads out of its folder")
        return
    if any(name.startswith("/") or "://" in name for name in (blur, sharp, radius)):
        text = f"{source}, line {line}: names are relative to the CSV file's folder, {folder}"
        found.refuse(split, text)
        return
    pair = Pair(_key(blur), blur, sharp or None, radius or None)
    found.splits.setdefault(split, []).append(pair)


def base_of(source: str) -> str:
    """The folder that a layout's relative names start from."""
    return storage.parent(source) if source.lower().endswith(".csv") else source


def _by_name(found: Layout, split: str, source: str, folder: str) -> None:
    """Pair ``blur``, ``sharp`` and ``radius`` below `folder` by their names without suffixes."""
    blurred, sharps, radii = (
        _by_stem(found, split, source, f"{folder}{kind}") for kind in ("blur", "sharp", "radius")
    )
    if (blurred or sharps) and not blurred.keys() & sharps.keys():
        text = (
            f"{storage.join(source, f'{folder}blur')}: no image has the name of one in "
            f"{storage.join(source, f'{folder}sharp')}; pairs go by equal names, or by a CSV file"
        )
        found.refuse(split, text, [*blurred.values(), *sharps.values()])
        return
    partners = ((blurred, sharps, "sharp"), (sharps, blurred, "blur"), (radii, blurred, "blur"))
    for here, there, where in partners:
        found.problems += [
            (split, _key(name), f"{name} has no partner of that name in {folder}{where}")
            for stem, name in here.items()
            if stem not in there
        ]
    found.splits[split] = [
        Pair(_key(name), name, sharps[stem], radii.get(stem))
        for stem, name in blurred.items()
        if stem in sharps
    ]


def _by_stem(found: Layout, split: str, source: str, folder: str) -> dict[str, str]:
    """The images of a folder by their names without suffixes; the first where two have one name."""
    images: dict[str, str] = {}
    for name in _images(source, folder):
        stem = name.rpartition(".")[0]
        if stem in images:
            text = f"{folder}/{name} and {images[stem]} have one name"
            found.problems.append((split, _key(name), text))
        images.setdefault(stem, f"{folder}/{name}")
    return images


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
    """Image names in a folder, sorted; of names with numbers, 2 comes before 10.

    Hidden files are passed over, such as the `._NAME` that macOS leaves beside NAME.
    """
    names = storage.list_names(storage.join(source, folder) if folder else source)
    images = [n for n in names if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith(".")]
    return sorted(
        images, key=lambda name: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", name)]
    )


def _key(name: str) -> str:
    """A sample's key: the file's stem without dots, where WebDataset would cut it.

    A tar header holds 100 bytes of a member's name: long stems are cut, and a digest keeps them
    apart. The sample's JSON has the whole name.
    """
    last = storage.name_of(name)
    key = re.sub(r"[^\w-]", "_", last.rpartition(".")[0] or last)
    if len(key.encode()) <= LONGEST_KEY:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    short = key.encode()[: LONGEST_KEY - len(digest) - 1].decode(errors="ignore")
    return f"{short}-{digest}"


DATASETS: dict[str, Callable[[str], Layout]] = {
    "dpdd": _dpdd,
    "realdof": _realdof,
    "rtf": _rtf,
    "lfdof": _lfdof,
    "cuhk": _cuhk,
    "pixeldp": _pixeldp,
    "folder": _folder,
}
