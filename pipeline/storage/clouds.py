"""Files on Google Cloud Storage (gcsfs), Azure (adlfs), and, read-only, what else fsspec reads.

Their clients retry requests themselves; transient errors that remain are retried here, as on S3.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import UserError
from pipeline.storage.bucket import BucketFiles, environment
from pipeline.storage.faults import ShortBody, causes

_PASSING_STATUS = {408, 429}
_PASSING_KINDS = {  # of azure-core, requests and google-auth, by name: none of them need be there
    "ServiceRequestError", "ServiceResponseError", "ConnectTimeout", "ReadTimeout",
    "ConnectionError", "Timeout", "TransportError",
}  # fmt: skip
CONNECT_SECONDS, READ_SECONDS = 5.0, 30.0
_SETTINGS = ("GOOGLE_", "STORAGE_EMULATOR_HOST", "GCSFS_", "AZURE_", "FSSPEC_", "HF_")
_SERVICES = {  # by package: the service's name, and what to check when it refuses
    "gcsfs": ("Google Cloud Storage", "check GOOGLE_APPLICATION_CREDENTIALS, and its rights"),
    "adlfs": (
        "Azure Blob Storage",
        "check AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and "
        "AZURE_STORAGE_ACCOUNT_KEY, and the rights on the container",
    ),
}


def cloud_files(scheme: str) -> CloudFiles:
    """Operations on a store with the present environment of this process."""
    return _cloud_files(os.getpid(), scheme, environment(*_SETTINGS))


@lru_cache(maxsize=4)
def _cloud_files(pid: int, scheme: str, settings: tuple[tuple[str, str], ...]) -> CloudFiles:
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        if scheme in ("gs", "gcs"):
            options |= _of_gcs()
        return CloudFiles(scheme, _client(scheme)(**options))
    except Exception as error:  # each client has its own for a missing account
        name, cure = _service(scheme)
        raise UserError(
            f"{scheme}://: no usable credentials for {name} ({type(error).__name__}); {cure}"
        ) from None


def _of_gcs() -> dict[str, Any]:
    import aiohttp

    # It has none of its own: a connection that has gone silent would be waited for for ever.
    options: dict[str, Any] = {
        "requests_timeout": aiohttp.ClientTimeout(
            sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS
        )
    }
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        options["token"] = "anon"  # else it would look for an account first
    return options


def _client(scheme: str) -> Any:
    """The class of a scheme's client."""
    if scheme in ("gs", "gcs"):
        from gcsfs.core import GCSFileSystem  # the default one asks a gRPC service first

        return GCSFileSystem
    from fsspec import get_filesystem_class

    return get_filesystem_class(scheme)


def _service(scheme: str) -> tuple[str, str]:
    from pipeline.storage.url import CLOUDS

    package = CLOUDS.get(scheme, ("", ""))[0]
    return _SERVICES.get(package, (f"the store of {scheme}://", "check the URL and the rights"))


class CloudFiles(BucketFiles):
    """Storage operations through any client with fsspec's interface.

    Args:
        scheme: of the URLs.
        filesystem: the client.
    """

    least_tries = 1  # the client has tried several times
    upload: ClassVar[dict[str, Any]] = {}  # each client chooses its own part sizes

    def __init__(self, scheme: str, filesystem: Any) -> None:
        from pipeline.storage.url import CLOUDS

        super().__init__(filesystem)
        self.scheme, self.writable = scheme, scheme in CLOUDS

    def modified(self, url: str) -> datetime:
        key = url.partition("://")[2].strip("/")
        found: datetime = self._required(url, self.fs.modified, key)
        return found.astimezone(UTC)

    def read_pieces(self, url: str, start: int, end: int) -> list[bytes]:
        return [self.read(url, start, end, end)]

    def _read_whole(self, key: str, most: int) -> bytes:
        size = int(self.fs.info(key)["size"] or 0)
        if size > most:
            raise UserError(f"{self.scheme}://{key}: {size} bytes; at most {most} are read")
        return self._read_once(key, 0, size) if size else b""

    def write(self, url: str, data: bytes) -> None:
        self._require_writable(url)
        super().write(url, data)

    def write_from(self, path: Path, url: str) -> None:
        self._require_writable(url)
        super().write_from(path, url)

    def delete(self, url: str) -> None:
        self._require_writable(url)
        super().delete(url)

    def check_writable(self, url: str) -> None:
        self._require_writable(url)
        super().check_writable(url)

    def _remove(self, url: str, key: str) -> None:
        with suppress(FileNotFoundError):  # the answer to the request before was lost
            self._try(url, self.fs.rm_file, key)

    def _find_bucket(self, bucket: str) -> None:
        self.fs.ls(bucket, detail=False)

    def _require_writable(self, url: str) -> None:
        if not self.writable:
            raise UserError(f"{url}: {self.scheme}:// can be read only; write elsewhere")

    def is_transient(self, error: BaseException) -> bool:
        """Whether trying again may help."""
        status = _status(error)
        if status:
            return status in _PASSING_STATUS or status >= 500
        return any(_is_network(link) for link in causes(error))

    def explain(self, url: str, error: BaseException) -> str:
        """One line about a fault that persisted: what, where and what to do."""
        name, cure = _service(self.scheme)
        status = _status(error)
        if status in (401, 403) or isinstance(error, PermissionError):
            return f"{url}: access denied by {name}; {cure}"
        if status == 416 or isinstance(error, ShortBody):
            return f"{url}: ends too early; the file is cut short"
        if status:
            return f"{url}: {name} keeps answering {status}; try again later"
        return f"{url}: no good answer from {name} ({type(error).__name__}); {cure}"


def _status(error: BaseException) -> int:
    """The HTTP status that an error of any client tells; 0 if it tells none."""
    for link in causes(error):
        if str(link).startswith("Forbidden"):  # gcsfs
            return 403
        for name in ("code", "status_code", "status"):
            value = getattr(link, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return value
    return 0


def _is_network(error: BaseException) -> bool:
    import aiohttp

    known = (aiohttp.ClientError, ConnectionError, TimeoutError)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, known) or _PASSING_KINDS & kinds:
        return True
    return getattr(error, "retryable", False) is True  # google-auth's, of a token not refreshed
