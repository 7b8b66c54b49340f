"""The working directory that travels with a job: what belongs to it, and how large it may be."""

from __future__ import annotations

import zipfile
from pathlib import Path

from pipeline.errors import UserError

LIMIT_MB = 100  # Ray keeps packages in the head's memory, and refuses more than 500 MiB
# In .gitignore's notation; Ray also honours the folder's own .gitignore and .rayignore.
EXCLUDES = (
    ".git/",
    ".venv/",
    ".env",
    "__pycache__/",
    ".*_cache/",
    "/data/",
    "/runs/",
    "/outputs/",
    "/wandb/",
    "/dist/",
    "*.egg-info/",
)


def pack(folder: str, into: str) -> tuple[Path, frozenset[str]]:
    """Zip a working directory, without data, history, environment and outputs.

    Args:
        folder: the working directory.
        into: a folder for the zip file.

    Returns:
        The zip file, and the relative paths in it.

    Raises:
        UserError: if there is no such folder, or it is too large; then the largest parts are named.
    """
    if not Path(folder).is_dir():
        raise UserError(f"--working-dir {folder}: no such folder")
    from ray._private.runtime_env.packaging import create_package  # the packer of `ray job submit`

    package = Path(into) / "working_dir.zip"
    create_package(folder, package, include_gitignore=True, excludes=list(EXCLUDES), logger=None)
    with zipfile.ZipFile(package) as archive:
        files = archive.infolist()
    size = package.stat().st_size / 1e6
    if size > LIMIT_MB:
        parts: dict[str, float] = {}
        for file in files:
            top = "/".join(file.filename.split("/")[:2])
            parts[top] = parts.get(top, 0) + file.compress_size / 1e6
        largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
        named = ", ".join(f"{name} ({megabytes:.0f} MB)" for name, megabytes in largest)
        raise UserError(
            f"--working-dir {folder}: {size:.0f} MB packed, the limit is {LIMIT_MB}; the largest: "
            f"{named}; name what should stay behind in .rayignore"
        )
    return package, frozenset(file.filename for file in files)
