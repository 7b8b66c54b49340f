"""Files on S3 and on servers that speak its protocol, through s3fs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from pipeline.errors import StorageDown, UserError
from pipeline.storage.entry import Entry, Kind
from pipeline.storage.faults import ShortBody, explain, is_transient
from pipeline.storage.recheck import recheck

T = TypeVar("T")

CONNECT_TIMEOUT, READ_TIMEOUT = 5, 8  # seconds without an answer
RETRY_FOR, LEAST_TRIES = 18.0, 3  # seconds; a long transfer has these tries whatever it takes
UPLOAD_PART = 32 << 20  # bytes; smaller files are one PUT
CONCURRENCY = 4


def bucket_files() -> BucketFiles:
    """The door's S3 side for this process and its present environment."""
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return _bucket_files(os.getpid(), settings)


@lru_cache(maxsize=4)
def _bucket_files(pid: int, settings: tuple[tuple[str, str], ...]) -> BucketFiles:
    import s3fs

    filesystem = s3fs.S3FileSystem(
        skip_instance_cache=True,
        use_listings_cache=False,
        default_block_size=UPLOAD_PART,
        max_concurrency=CONCURRENCY,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": READ_TIMEOUT,
            "retries": {"total_max_attempts": 1},  # all retries are made below, in one place
            **_checksum_settings(),
        },
    )
    filesystem.retries = 1
    return BucketFiles(filesystem)


def _checksum_settings() -> dict[str, str]:
    """Newer clients send trailing checksums that many S3 servers refuse; AWS itself needs none."""
    names = ("request_checksum_calculation", "response_checksum_validation")
    return {name: os.environ.get(f"AWS_{name.upper()}", "when_required") for name in names}


class BucketFiles:
    """The door's S3 side."""

    def __init__(self, filesystem: Any) -> None:
        self.fs = filesystem
        self.known_buckets: set[str] = set()

    def kind(self, url: str) -> Kind:
        try:
            info = self._try(url, self.fs.info, _key(url))
        except FileNotFoundError:
            self._require_bucket(url)
            return "missing"
        return "folder" if info["type"] == "directory" else "file"

    def size(self, url: str) -> int:
        return int(self._required(url, self.fs.info, _key(url))["size"] or 0)

    def modified(self, url: str) -> datetime:
        found: datetime = self._required(url, self.fs.info, _key(url))["LastModified"]
        return found.astimezone(UTC)

    def list_names(self, url: str) -> list[str]:
        key = _key(url)
        try:
            paths = self._try(url, self.fs.ls, key, detail=False)
        except FileNotFoundError:
            self._require_bucket(url)
            return []
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths if path != key})

    def find(self, url: str) -> list[Entry]:
        key = _key(url)
        try:
            found = self._try(url, self.fs.find, key, detail=True)
        except FileNotFoundError:
            found = {}
        if not found:
            self._require_bucket(url)
        below = {p[len(key) + 1 :]: int(i["size"] or 0) for p, i in found.items() if p != key}
        return [Entry(f"s3://{key}/{name}", name, below[name]) for name in sorted(below)]

    def read(self, url: str, start: int | None, end: int | None) -> bytes:
        if start is not None and end is not None and end <= start:
            return b""
        return self._required(url, self._read_once, _key(url), start, end)

    def _read_once(self, key: str, start: int | None, end: int | None) -> bytes:
        data: bytes = self.fs.cat_file(key, start=start, end=end)
        if end is not None and len(data) != end - (start or 0):
            raise ShortBody(f"{len(data)} bytes of {end - (start or 0)}")
        return data

    def write(self, url: str, data: bytes) -> None:
        self._required(url, self.fs.pipe_file, _key(url), data, chunksize=UPLOAD_PART)

    def write_from(self, path: Path, url: str) -> None:
        from pipeline.storage.local import explained

        with explained(path):
            path.stat()
        self._required(url, self.fs.put_file, str(path), _key(url), chunksize=UPLOAD_PART)

    def delete(self, url: str) -> None:
        kind = self.kind(url)
        if kind == "file":
            self._required(url, self.fs.rm_file, _key(url))
        elif kind == "folder":
            for entry in self.find(url):
                self._required(entry.url, self.fs.rm_file, _key(entry.url))

    def remove_unfinished(self, url: str) -> None:
        """Nothing to do: what is not whole is no object."""

    def check_writable(self, url: str) -> None:
        probe = f"{url.rstrip('/')}/.era-probe-{secrets.token_hex(4)}"
        self.write(probe, b"era")
        self._required(probe, self.fs.rm_file, _key(probe))

    def _require_bucket(self, url: str) -> None:
        """Tell a missing bucket from a missing key."""
        bucket = _key(url).partition("/")[0]
        if bucket in self.known_buckets:
            return
        try:
            self._try(url, self.fs.call_s3, "head_bucket", Bucket=bucket)
        except FileNotFoundError:
            raise _no_bucket(bucket) from None
        self.known_buckets.add(bucket)

    def _required(self, url: str, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call with retries; what is not there is the user's error."""
        try:
            return self._try(url, call, *args, **kwargs)
        except FileNotFoundError:
            self._require_bucket(url)
            raise UserError(f"{url}: no such object; check the URL") from None

    def _try(self, url: str, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call with retries; FileNotFoundError passes, all else is explained."""
        retrying = Retrying(
            retry=retry_if_exception(is_transient),
            wait=wait_random_exponential(multiplier=0.2, max=2.0),
            stop=_given_up,
            before=recheck,
            reraise=True,
        )
        try:
            return retrying(call, *args, **kwargs)
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:
            kind = StorageDown if is_transient(error) else UserError
            raise kind(explain(url, error)) from None


def _given_up(state: RetryCallState) -> bool:
    waited = state.seconds_since_start or 0.0
    return state.attempt_number >= LEAST_TRIES and waited >= RETRY_FOR


def _no_bucket(bucket: str) -> UserError:
    return UserError(
        f"s3://{bucket}: no such bucket; create it, or check its name and the endpoint"
    )


def _key(url: str) -> str:
    key = url.removeprefix("s3://").strip("/")
    if not key:
        raise UserError(f"{url}: names no bucket; give s3://bucket/key")
    return key
