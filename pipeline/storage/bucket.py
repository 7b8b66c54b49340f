"""Files on S3 and compatible servers, through s3fs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from fsspec.asyn import sync
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from pipeline.errors import StorageDown, UserError
from pipeline.storage.entry import Entry, Kind, Version
from pipeline.storage.faults import (
    ShortBody,
    endpoint,
    explain,
    is_taken,
    is_transient,
    is_unknown,
)
from pipeline.storage.recheck import recheck
from pipeline.storage.url import require_unversioned

T = TypeVar("T")

CONNECT_TIMEOUT, READ_TIMEOUT = 5, 8  # seconds without an answer
RETRY_FOR, LEAST_TRIES = 18.0, 3  # seconds; at least LEAST_TRIES, however long they take
UPLOAD_PART = 32 << 20  # bytes; smaller files are one PUT
CONCURRENCY = 4  # of one upload
PIECE = 256 << 10  # bytes, at most, of what is handed on at once
POOL = 32  # connections


def bucket_files() -> BucketFiles:
    """S3 operations with the present environment of this process."""
    return _bucket_files(os.getpid(), environment("AWS_"))


def environment(*prefixes: str) -> tuple[tuple[str, str], ...]:
    """The variables that a client is made from; a new one is made when they change."""
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith(prefixes)))


@lru_cache(maxsize=4)
def _bucket_files(pid: int, settings: tuple[tuple[str, str], ...]) -> BucketFiles:
    import s3fs

    endpoint()  # refused here if it is not an address
    filesystem = s3fs.S3FileSystem(
        skip_instance_cache=True,
        use_listings_cache=False,
        default_block_size=UPLOAD_PART,
        max_concurrency=CONCURRENCY,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": READ_TIMEOUT,
            "max_pool_connections": POOL,
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
    """Storage operations on S3; `clouds.CloudFiles` says what differs elsewhere."""

    scheme = "s3"
    least_tries = LEAST_TRIES

    @property
    def upload(self) -> dict[str, Any]:
        """Options of an upload."""
        return {"chunksize": UPLOAD_PART}

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

    def version(self, url: str) -> Version | None:
        try:
            info = self._try(url, self.fs.info, _key(url))
        except FileNotFoundError:
            self._require_bucket(url)
            return None
        return Version(int(info["size"] or 0), str(info.get("ETag") or info.get("etag") or ""))

    def list_names(self, url: str) -> list[str]:
        key = _key(url)
        try:
            paths = self._try(url, self.fs.ls, key, detail=False)
        except FileNotFoundError:
            self._require_bucket(url)
            return []
        below = (path.rstrip("/") for path in paths)
        return sorted({path.rpartition("/")[2] for path in below if path != key})

    def find(self, url: str) -> list[Entry]:
        key, found = _key(url), self._below(url)
        names = [path[len(key) + 1 :] for path in found if path != key]
        files = sorted(name for name in names if name and not name.endswith("/"))
        return [
            Entry(f"{self.scheme}://{key}/{name}", name, found[f"{key}/{name}"]) for name in files
        ]

    def _below(self, url: str) -> dict[str, int]:
        """Sizes of all objects below a folder by key, including web consoles' empty `name/`."""
        try:
            found = self._try(url, self.fs.find, _key(url), detail=True)
        except FileNotFoundError:
            found = {}
        if not found:
            self._require_bucket(url)
        return {path: int(info["size"] or 0) for path, info in found.items()}

    def read(self, url: str, start: int | None, end: int | None, most: int) -> bytes:
        if start is None and end is None:
            return self._required(url, self._read_whole, _key(url), most)
        if start is not None and end is not None and end <= start:
            return b""
        return self._required(url, self._read_once, _key(url), start, end)

    def read_pieces(self, url: str, start: int, end: int) -> list[bytes]:
        return self._required(url, self._read_pieces, _key(url), start, end)

    def _read_pieces(self, key: str, start: int, end: int) -> list[bytes]:
        """Bytes [start, end) as they arrive."""

        async def get() -> list[bytes]:
            answer = await self._get(key, Range=f"bytes={start}-{end - 1}")
            async with answer["Body"] as body:
                return [piece async for piece in body.iter_chunks(PIECE)]

        found: list[bytes] = sync(self.fs.loop, get)
        if sum(map(len, found)) != end - start:
            raise ShortBody(f"not {end - start} bytes")
        return found

    async def _get(self, key: str, **options: str) -> Any:
        bucket, name, version = self.fs.split_path(key)
        which = {"VersionId": version} if version else {}
        return await self.fs._call_s3("get_object", Bucket=bucket, Key=name, **which, **options)

    def _read_whole(self, key: str, most: int) -> bytes:
        """An object whose size is known before its content is read."""

        async def get() -> bytes:
            answer = await self._get(key)
            async with answer["Body"] as body:
                if answer["ContentLength"] > most:
                    raise UserError(
                        f"s3://{key}: {answer['ContentLength']} bytes; at most {most} are read"
                    )
                data: bytes = await body.read()
                return data

        found: bytes = sync(self.fs.loop, get)
        return found

    def _read_once(self, key: str, start: int | None, end: int | None) -> bytes:
        data: bytes = self.fs.cat_file(key, start=start, end=end)
        if end is not None and len(data) != end - (start or 0):
            raise ShortBody(f"{len(data)} bytes of {end - (start or 0)}")
        return data

    def write(self, url: str, data: bytes) -> None:
        require_unversioned(url)
        self._required(url, self.fs.pipe_file, _key(url), data, **self.upload)

    def create(self, url: str, data: bytes) -> bool:
        require_unversioned(url)
        return self._required(url, self._create, _key(url), data)

    def _create(self, key: str, data: bytes) -> bool:
        try:
            self.fs.pipe_file(key, data, mode="create")
        except OSError as error:
            if is_unknown(error):  # no conditional writes there
                return self._create_unless_seen(key, data)
            if not is_taken(error):
                raise
            return False
        return True

    def _create_unless_seen(self, key: str, data: bytes) -> bool:
        if self.fs.exists(key):
            return False
        self.fs.pipe_file(key, data, **self.upload)
        return True

    def write_from(self, path: Path, url: str) -> None:
        from pipeline.storage.local import explained, require_file

        require_unversioned(url)
        with explained(path):
            require_file(path)
        self._required(url, self.fs.put_file, str(path), _key(url), **self.upload)

    def delete(self, url: str) -> None:
        require_unversioned(url)
        kind = self.kind(url)
        if kind == "file":
            self._remove(url, _key(url))
        elif kind == "folder":
            for key in self._below(url):
                self._remove(f"{self.scheme}://{key}", key)

    def _remove(self, url: str, key: str) -> None:
        """Remove an object; s3fs itself cannot remove `folder/`, a web console's empty object."""
        bucket, _, name = key.partition("/")
        self._required(url, self.fs.call_s3, "delete_object", Bucket=bucket, Key=name)

    def remove_unfinished(self, url: str) -> None:
        """Nothing to do: an upload that was not completed is not an object."""

    def check_writable(self, url: str) -> None:
        probe = f"{url.rstrip('/')}/.era-probe-{secrets.token_hex(4)}"
        self.write(probe, b"era")
        self._remove(probe, _key(probe))

    def _require_bucket(self, url: str) -> None:
        """Raise a separate error if the bucket itself is missing."""
        bucket = _key(url).partition("/")[0]
        if bucket in self.known_buckets:
            return
        try:
            self._try(url, self._find_bucket, bucket)
        except FileNotFoundError:
            raise UserError(
                f"{self.scheme}://{bucket}: no such bucket; create it, or check its name and the "
                "endpoint"
            ) from None
        self.known_buckets.add(bucket)

    def _find_bucket(self, bucket: str) -> None:
        """Raise FileNotFoundError if there is no such bucket."""
        self.fs.call_s3("head_bucket", Bucket=bucket)

    def is_transient(self, error: BaseException) -> bool:
        """Whether trying again may help."""
        return is_transient(error)

    def explain(self, url: str, error: BaseException) -> str:
        """One line about a fault that persisted."""
        return explain(url, error)

    def _required(self, url: str, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call with retries; a missing object is a UserError."""
        try:
            return self._try(url, call, *args, **kwargs)
        except FileNotFoundError:
            self._require_bucket(url)
            raise UserError(f"{url}: no such object; check the URL") from None

    def _try(self, url: str, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call with retries; raises FileNotFoundError, or a UserError that explains the fault."""
        retrying = Retrying(
            retry=retry_if_exception(self.is_transient),
            wait=wait_random_exponential(multiplier=0.2, max=2.0),
            stop=self._given_up,
            before=recheck,
            reraise=True,
        )
        try:
            return retrying(call, *args, **kwargs)
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:
            kind = StorageDown if self.is_transient(error) else UserError
            raise kind(self.explain(url, error)) from None

    def _given_up(self, state: RetryCallState) -> bool:
        waited = state.seconds_since_start or 0.0
        return state.attempt_number >= self.least_tries and waited >= RETRY_FOR


def _key(url: str) -> str:
    return url.partition("://")[2].strip("/")
