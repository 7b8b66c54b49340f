"""Which photographs are meant, and where each one goes."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline import storage
from pipeline.errors import StorageDown, UserError
from pipeline.images.kinds import PHOTO_SUFFIXES, is_image_name

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
MOST_NAME = 255  # bytes


def expand(inputs: Inputs) -> tuple[list[str], list[str]]:
    """The files that are meant, without duplicates; and what matches nothing or is no file.

    Raises:
        UserError: if no file is left.
    """
    files: dict[str, str] = {}
    problems = []
    for one in [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs:
        given = os.fspath(one)
        try:
            found = _meant(given)
        except StorageDown:
            raise
        except UserError as error:
            problems.append(str(error))
            continue
        for url in found:
            files.setdefault(_identity(url), url)
    if not files:
        raise UserError(problems[0] if problems else "no input given")
    return list(files.values()), problems


def _meant(given: str) -> list[str]:
    url = _absolute(given)
    missing = "no such photograph"
    if storage.is_dir(url):
        found, missing = _images_in(url, "*"), "no photographs in this folder"
    elif any(mark in storage.name_of(url) for mark in "*?[") and not storage.exists(url):
        found = _images_in(storage.parent(url), storage.name_of(url))
    elif storage.exists(url) and not is_regular(url):
        raise UserError(f"{given}: is no regular file (a pipe or a device)")
    else:
        found = [url] if storage.exists(url) else []
    if not found:
        raise UserError(f"{given}: {missing}")
    return found


def is_regular(url: str) -> bool:
    """Whether a URL can be read to its end: pipes and devices are never opened."""
    return not storage.is_local(url) or storage.local_path(url).is_file()


def outputs_of(
    files: Sequence[str], names: Sequence[str], out: str, beside: Sequence[str]
) -> list[str]:
    """The restored photographs' URLs.

    Args:
        names: of the restored files.
        beside: endings of the further pictures that are written beside each one.

    Raises:
        UserError: for what would overwrite an input or another output.
    """
    outputs = [storage.join(out, name) for name in names]
    for file, output in zip(files, outputs, strict=True):
        if _real(file) == _real(output):
            raise UserError(f"--out {out}: is the folder of {file}; inputs are never overwritten")
        if storage.is_local(output) and storage.local_path(output).is_dir():
            raise UserError(f"{output}: is a folder; {file} would be written there")
    inputs = {_real(file): file for file in files}
    sources: dict[str, str] = {}  # of each picture that is written
    for file, output in zip(files, outputs, strict=True):
        for url in [output, *(beside_url(output, ending) for ending in beside)]:
            name = storage.name_of(url)
            if len(os.fsencode(name)) > MOST_NAME:
                raise UserError(
                    f"{name[:40]}...: too long for the name of a file ({MOST_NAME} bytes)"
                )
            if url in sources:
                raise UserError(
                    f"{name}: both {sources[url]} and {file} would be written there; "
                    "restore them into two folders"
                )
            if _real(url) in inputs:
                raise UserError(
                    f"--out {out}: {name} there is the input {inputs[_real(url)]}; inputs are "
                    "never overwritten"
                )
            sources[url] = file
    return outputs


def beside_url(output: str, ending: str) -> str:
    """The URL of a further picture: ``NAME.ENDING.png``."""
    name = storage.name_of(output)
    return storage.join(storage.parent(output), f"{name.rpartition('.')[0] or name}.{ending}.png")


def _absolute(given: str) -> str:
    """The URL of an input; a file whose name begins with a tilde is no home folder."""
    if given.startswith("~") and Path(given).exists():
        return str(Path(given).absolute())
    return storage.absolute(given)


def _identity(url: str) -> str:
    """The same for every spelling of a file's folder; a link to a file is a photograph of its own.

    Not Path.resolve(), which raises RuntimeError where links lead back to themselves.
    """
    if not storage.is_local(url):
        return url
    path = storage.local_path(url)
    return f"{os.path.realpath(path.parent)}/{path.name}"


def _images_in(folder: str, pattern: str) -> list[str]:
    names = fnmatch.filter(storage.list_names(folder), pattern)
    urls = [storage.join(folder, name) for name in names if is_image_name(name, PHOTO_SUFFIXES)]
    return [url for url in urls if is_regular(url)]


def _real(url: str) -> str:
    """The same for every URL of one file, links included."""
    # Not Path.resolve(), which raises RuntimeError where links lead back to themselves.
    return os.path.realpath(storage.local_path(url)) if storage.is_local(url) else url
