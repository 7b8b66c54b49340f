"""Fetch the photographs that the shipped network learned from, as it saw them.

    python -m benchmarks.photograph_list DIR

photographs.tsv names each original by repository, commit, path and sha256. It is cropped, shrunk
and written to DIR as JPEG of quality 97; what is in DIR stays, so that an interrupted fetch goes
on. Left out are the five OpenEXR pictures, whose exposures were chosen by eye.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from pipeline.errors import UserError

LIST = Path(__file__).with_name("photographs.tsv")
SOURCE = "https://raw.githubusercontent.com"
TIMEOUT = 60.0  # seconds without a byte
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 97]
JPEG += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    try:
        fetch(parser.parse_args().folder)
    except UserError as error:
        parser.error(str(error))


def fetch(folder: Path, listed: Path = LIST, source: str = SOURCE) -> list[str]:
    """Fetch all photographs of a list into a folder; return the names of those left out.

    Raises:
        UserError: if one cannot be had, or is not the one that is listed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with listed.open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    left_out = [row["file"] for row in rows if row["path"].endswith(".exr")]
    session = requests.Session()
    session.mount("http", HTTPAdapter(max_retries=Retry(5, backoff_factor=1)))
    for row in tqdm(rows, unit="photograph", disable=None):
        place = folder / row["file"]
        if row["file"] in left_out or place.exists():
            continue
        part = place.with_name(f".part-{place.name}")  # OpenCV goes by the suffix
        if not cv2.imwrite(str(part), prepared(original(session, row, source), row), JPEG):
            raise UserError(f"{place}: cannot be written")
        part.rename(place)
    if left_out:
        print(f"left out, since their exposures were chosen by eye: {', '.join(left_out)}")
    return left_out


def original(session: requests.Session, row: dict[str, str], source: str) -> bytes:
    """The bytes of an original, held against their sha256."""
    url = f"{source}/{row['repository']}/{row['commit']}/{quote(row['path'])}"
    try:
        answer = session.get(url, timeout=TIMEOUT)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise UserError(f"{url}: {error}") from None
    if hashlib.sha256(answer.content).hexdigest() != row["sha256_original"]:
        raise UserError(f"{url}: another file than {LIST.name} lists")
    return answer.content


def prepared(data: bytes, row: dict[str, str]) -> np.ndarray:
    """An original's pixels (H, W, 3), BGR, cropped and shrunk as the list says."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if crop := re.fullmatch(r"crop x(\d+)-(\d+) y(\d+)-(\d+)", row["crop"]):
        left, right, top, bottom = map(int, crop.groups())
        pixels = pixels[top:bottom, left:right]
    longer = max(pixels.shape[:2])
    factor = round(longer * float(row["scale"])) / longer  # the list has four digits of it
    height, width = (round(side * factor) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
