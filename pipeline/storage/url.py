"""URLs: local paths, ``s3://bucket/key`` and the like; others are refused with the reason."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import UserError, masked

# s3: and s3:/x would be local paths
_CUT_SCHEME = re.compile(r"(s3|s3a|gs|gcs|az|abfss?|https?|s?ftp|hdfs):(/(?!/)|$)", re.IGNORECASE)
LONGEST = 4096  # characters; no path of Linux and no key of a bucket has more
_SIGNED = re.compile(r"[?&](x-amz-|signature=|awsaccesskeyid=|sig=|token=)", re.IGNORECASE)
# What a scheme needs: the package, and the extra that brings it.
CLOUDS = {
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"),
    "abfs": ("adlfs", "azure"),
    "abfss": ("adlfs", "azure"),
}
# Without listable folders, local, or wrappers around other URLs.
_UNFIT = {
    "http", "https", "ftp", "file", "local", "memory", "data", "reference", "dir", "zip", "tar",
    "libarchive", "blockcache", "cached", "filecache", "simplecache", "generic", "root",
}  # fmt: skip
_KEYS = {"s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"}


def is_local(url: str) -> bool:
    """Whether the URL is a path on this machine."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The path that a local URL names.

    Raises:
        UserError: for an empty URL, which would mean the current folder, and for other misuse.
    """
    check_url(url)
    name = url.removeprefix("file://")
    path = Path(name)
    if not name.startswith("~"):  # `./~x` would lose its dot
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # no such user, or no home
        if len(path.parts) == 1 and path.name != "~":  # a file's name that begins with a tilde
            return path
        raise UserError(
            f"{url}: {path.parts[0]} is nobody's home directory here; for a folder of that name "
            f"give ./{url}"
        ) from None


def absolute(url: str | os.PathLike[str]) -> str:
    """The URL as other processes can use it: local paths made absolute, no trailing slash."""
    url = os.fspath(url)
    check_url(url)
    return str(local_path(url).absolute()) if is_local(url) else url.rstrip("/")


def join(url: str, *parts: str) -> str:
    """Put names below a URL: ``join("s3://b/a/", "c", "d.png") == "s3://b/a/c/d.png"``."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(url: str) -> str:
    """The last name of a URL: ``name_of("s3://b/a/c.png") == "c.png"``."""
    return url.rstrip("/").rpartition("/")[2]


def parent(url: str) -> str:
    """The folder of a URL: ``parent("s3://b/a/c.png") == "s3://b/a"``; a root's is itself.

    >>> parent("s3://bucket"), parent("/c.png"), parent("c.png")
    ('s3://bucket', '/', '.')
    """
    scheme, mark, path = url.partition("://") if "://" in url else ("", "", url)
    folder, slash, _ = path.rstrip("/").rpartition("/")
    if mark and scheme != "file":
        return f"{scheme}://{folder or path}"
    return f"{scheme}{mark}{folder or slash or '.'}"


def check_url(url: str) -> None:
    """Refuse a URL that names nothing, is of another scheme, or contains credentials.

    Raises:
        UserError: without the credentials.
    """
    if not url.removeprefix("file://").strip():
        raise UserError("an empty URL: give a local path or s3://bucket/key")
    if len(url) > LONGEST:
        raise UserError(f"a URL of {len(url)} characters; at most {LONGEST} are taken")
    if "\0" in url:
        raise UserError("a URL contains a NUL character; give a local path or s3://bucket/key")
    if _CUT_SCHEME.match(url):
        scheme = url.partition(":")[0]
        raise UserError(f"{masked(url)}: {scheme}: names no bucket; give s3://bucket/key")
    if is_local(url):
        return
    scheme, _, rest = url.partition("://")
    if scheme != "s3":
        _require_package(url, scheme)
    if not rest.partition("/")[0]:
        raise UserError(f"{masked(url)}: names no bucket; give {scheme}://bucket/key")
    refuse_credentials(url)


def refuse_credentials(url: str) -> None:
    """Refuse a bucket's URL that contains a key, a password or a signature.

    Raises:
        UserError: without the credentials.
    """
    scheme, _, rest = url.partition("://")
    bucket = rest.partition("/")[0]
    if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):
        keys = _KEYS.get(scheme, "the environment variables of its client")
        raise UserError(
            f"an {scheme}:// URL with credentials; set {keys} instead, and give "
            f"{scheme}://bucket/key"
        )
    if _SIGNED.search(rest):
        raise UserError(
            f"{masked(url.partition('?')[0])}: a presigned URL cannot be used; give s3://bucket/key"
        )


def _require_package(url: str, scheme: str) -> None:
    """Refuse a scheme that nothing here can read."""
    if scheme in CLOUDS:
        package, extra = CLOUDS[scheme]
        if not _has(package):
            raise UserError(
                f"{masked(url)}: {scheme}:// is not supported without the package {package}: "
                f"pip install 'era-deblurring[{extra}]'"
            )
    elif not _readable(scheme):
        raise UserError(
            f"{masked(url)}: {scheme}:// is not supported, and no extra of this version adds it; "
            "use a local path, s3://bucket/key, gs://bucket/key or az://container/key"
        )


@lru_cache(maxsize=16)
def _has(package: str) -> bool:
    return find_spec(package) is not None


@lru_cache(maxsize=16)
def _readable(scheme: str) -> bool:
    """Whether fsspec can open a scheme with the packages installed here."""
    if scheme in _UNFIT or not scheme.isalnum():
        return False
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except (ImportError, ValueError):
        return False
    return True


def require_unversioned(url: str) -> None:
    """Refuse to write or delete one version of an object.

    Raises:
        UserError: for a URL with ``?versionId=``.
    """
    if "?versionId=" in url:
        raise UserError(f"{url}: a version can be read only; leave out ?versionId=")
