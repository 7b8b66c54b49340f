"""The photographs of the contest, from Debian's packages.

    python -m benchmarks.photos DIR      # DIR/{train,val,test}/

`photos.txt` names every file, its sha256 and its licence. What trains is free to be used so (CC0,
CC-BY, BSD, Apache); the test photographs (CC-BY-SA, LGPL) never train and are never handed on.
The packages come by `apt-get download`, which needs Debian 12 but no root.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError

LIST = Path(__file__).with_name("photos.txt")
BUNDLED = "scikit-image"  # of the environment, no package of Debian's
FREE = ("CC0-1.0", "CC-BY-4.0", "BSD-3-Clause", "Apache-2.0", "public domain")


class Photo(NamedTuple):
    """A line of photos.txt."""

    split: str
    package: str
    file: str
    sha256: str
    licence: str
    author: str

    @property
    def name(self) -> str:
        """The file's name in our folders; wallpapers are told apart by their folder's."""
        path = Path(self.file)
        return path.name if path.parent.name != "images" else f"{path.parts[-4]}{path.suffix}"


def listed() -> list[Photo]:
    """All lines of photos.txt."""
    lines = LIST.read_text().splitlines()
    return [Photo(*line.split("\t")) for line in lines if line and not line.startswith("#")]


def extract(folder: Path) -> None:
    """Put every photograph into `folder`/<split>/; what is there and right stays.

    Raises:
        UserError: for a package that cannot be had, or a file that is not the one listed.
    """
    missing = [photo for photo in listed() if not _sound(folder, photo)]
    for package in sorted({photo.package for photo in missing}):
        wanted = {photo.file: photo for photo in missing if photo.package == package}
        for file, data in (_bundled if package == BUNDLED else _packaged)(package, list(wanted)):
            photo = wanted.pop(file)
            if hashlib.sha256(data).hexdigest() != photo.sha256:
                raise UserError(f"{package}: {file} is another file than photos.txt lists")
            place = folder / photo.split / photo.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        if wanted:
            raise UserError(f"{package}: holds no {', '.join(wanted)}")


def _sound(folder: Path, photo: Photo) -> bool:
    place = folder / photo.split / photo.name
    return place.is_file() and hashlib.sha256(place.read_bytes()).hexdigest() == photo.sha256


def _bundled(_package: str, files: list[str]) -> list[tuple[str, bytes]]:
    import skimage

    data = Path(skimage.__file__).parent / "data"
    return [(file, (data / file).read_bytes()) for file in files]


def _packaged(package: str, files: list[str]) -> list[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as work:
        os.chmod(work, 0o755)  # noqa: PTH101 - apt's own user looks into it
        fetch = ["apt-get", "download", package]
        try:
            subprocess.run(fetch, cwd=work, capture_output=True, text=True, check=True)
        except FileNotFoundError:
            raise UserError("no apt-get here: the photographs come from Debian 12") from None
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["it failed"])[-1]
            raise UserError(f"{' '.join(fetch)}: {reason}") from None
        packages = list(Path(work).glob("*.deb"))
        command = ["dpkg-deb", "--fsys-tarfile", str(packages[0])]
        found = []
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as unpacker,
            tarfile.open(fileobj=unpacker.stdout, mode="r|") as tar,
        ):
            for member in tar:
                file = member.name.removeprefix("./")
                stream = tar.extractfile(member) if file in files else None
                if stream is not None:
                    found.append((file, stream.read()))
        return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    try:
        extract(parser.parse_args().folder)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
