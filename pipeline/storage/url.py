"""URLs: local paths and ``s3://bucket/key``; what else they may look like is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import UserError, masked

# s3: and s3:/x would be local paths
_CUT_SCHEME = re.compile(r"(s3|s3a|gs|gcs|az|abfss?|https?|s?ftp|hdfs):(/(?!/)|$)", re.IGNORECASE)
_SIGNED = re.compile(r"[?&](x-amz-|signature=|awsaccesskeyid=|sig=|token=)", re.IGNORECASE)
_HINTS = {
    "gs": "; Google Cloud Storage answers S3 requests: set AWS_ENDPOINT_URL to "
    "https://storage.googleapis.com",
}


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


def absolute(url: str) -> str:
    """The URL as other processes can use it: local paths made absolute, no trailing slash."""
    check_url(url)
    return str(local_path(url).absolute()) if is_local(url) else url.rstrip("/")


def join(url: str, *parts: str) -> str:
    """Put names below a URL: ``join("s3://b/a/", "c", "d.png") == "s3://b/a/c/d.png"``."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(url: str) -> str:
    """The last name of a URL: ``name_of("s3://b/a/c.png") == "c.png"``."""
    return url.rstrip("/").rpartition("/")[2]


def check_url(url: str) -> None:
    """Refuse a URL that names nothing, is of another scheme, or contains credentials.

    Raises:
        UserError: without the credentials.
    """
    if not url.removeprefix("file://").strip():
        raise UserError("an empty URL: give a local path or s3://bucket/key")
    if "\0" in url:
        raise UserError("a URL contains a NUL character; give a local path or s3://bucket/key")
    if _CUT_SCHEME.match(url):
        scheme = url.partition(":")[0]
        raise UserError(f"{masked(url)}: {scheme}: names no bucket; give s3://bucket/key")
    if is_local(url):
        return
    scheme, _, rest = url.partition("://")
    if scheme != "s3":
        raise UserError(
            f"{masked(url)}: {scheme}:// is not supported, and no extra of this version adds it; "
            f"use a local path or s3://bucket/key{_HINTS.get(scheme, '')}"
        )
    bucket = rest.partition("/")[0]
    if not bucket:
        raise UserError(f"{url}: names no bucket; give s3://bucket/key")
    if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):
        raise UserError(
            "an s3:// URL with credentials; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY instead, and give s3://bucket/key"
        )
    if _SIGNED.search(rest):
        raise UserError(
            f"{masked(url.partition('?')[0])}: a presigned URL cannot be used; give s3://bucket/key"
        )


def require_unversioned(url: str) -> None:
    """Refuse to write or delete one version of an object.

    Raises:
        UserError: for a URL with ``?versionId=``.
    """
    if "?versionId=" in url:
        raise UserError(f"{url}: a version can be read only; leave out ?versionId=")
