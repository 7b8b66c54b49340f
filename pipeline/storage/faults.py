"""Which S3 faults are transient, and what the others mean to a user.

Only the server's error code is shown, never its message, which may quote the request.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from pipeline.errors import UserError

_PASSING_CODES = {
    "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "OperationAborted",
    "Throttling", "ThrottlingException", "RequestLimitExceeded", "IncompleteBody", "BadDigest",
    "XAmzContentSHA256Mismatch", "NoSuchUpload", "InvalidPart",
}  # fmt: skip
_PASSING_STATUS = {408, 409, 429}

_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_CURES = {
    "InvalidAccessKeyId": f"the access key is not known there; {_KEYS}",
    "SignatureDoesNotMatch": f"the secret key does not fit the access key; {_KEYS}",
    "ExpiredToken": "the credentials have expired; renew them (AWS_SESSION_TOKEN)",
    "TokenRefreshRequired": "the credentials have expired; renew them (AWS_SESSION_TOKEN)",
    "InvalidToken": "the session token is not valid; renew the credentials",
    "RequestTimeTooSkewed": "this machine's clock differs from the server's; set the clock",
    "EntityTooLarge": "the object is larger than the server allows",
    "InvalidBucketName": "the bucket's name is not valid",
    "QuotaExceeded": "the bucket's quota is used up; free some space",
}


class ShortBody(OSError):
    """The server sent fewer bytes than requested."""


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    code, status = _code_and_status(error)
    if code or status:
        known = not is_unknown(error)
        return known and (code in _PASSING_CODES or status in _PASSING_STATUS or status >= 500)
    from botocore.exceptions import (
        BotoCoreError,
        CredentialRetrievalError,
        HTTPClientError,
        MetadataRetrievalError,
    )
    from botocore.exceptions import ConnectionError as BotoConnectionError
    from botocore.parsers import ResponseParserError

    if isinstance(error, (FileNotFoundError, PermissionError, FileExistsError)):
        return False
    if isinstance(error, BotoCoreError):
        # The last two: the service that hands out a pod's credentials does not answer.
        passing = (CredentialRetrievalError, MetadataRetrievalError)
        return isinstance(error, (HTTPClientError, BotoConnectionError, *passing))
    return isinstance(error, (OSError, TimeoutError, ResponseParserError)) or _is_aiohttp(error)


def is_taken(error: BaseException) -> bool:
    """Whether a write was refused because the object exists."""
    return isinstance(error, FileExistsError) or _code_and_status(error)[1] == 412


def is_unknown(error: BaseException) -> bool:
    """Whether the store does not know what it was asked for, such as a conditional write."""
    code, status = _code_and_status(error)
    return code == "NotImplemented" or status == 501


def explain(url: str, error: BaseException) -> str:
    """One line about a fault that persisted: what, where and what to do."""
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    code, status = _code_and_status(error)
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return f"{url}: no S3 credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if code in _CURES:
        return f"{url}: {_CURES[code]} [{code}]"
    if status in (401, 403) or isinstance(error, PermissionError):
        return f"{url}: access denied by {endpoint()}; {_KEYS}, and the rights on the bucket"
    if status in (301, 307, 400):
        return (
            f"{url}: {endpoint()} refused the request [{code or status}]; check the region, "
            "the endpoint, and that the credentials have not expired"
        )
    if code or status:
        return f"{url}: {endpoint()} keeps answering {code or status}; try again later"
    reason = type(error).__name__
    return (
        f"{url}: no good answer from {endpoint()} ({reason}); check AWS_ENDPOINT_URL "
        "and the network"
    )


def _code_and_status(error: BaseException) -> tuple[str, int]:
    for link in causes(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict) and "Error" in response:
            code = str(response["Error"].get("Code", ""))
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return code, int(status or (code if code.isdigit() else 0))
    return "", 0


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_aiohttp(error: BaseException) -> bool:
    import aiohttp

    return isinstance(error, aiohttp.ClientError)


def endpoint() -> str:
    """The server's address, without anything that may be secret in a URL.

    Raises:
        UserError: if it is set, and is not an address.
    """
    name = "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    given = os.environ.get(name, "").strip()
    if not given:
        return "AWS S3"
    try:
        parts = urlsplit(given)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https"):
        raise UserError(f"{name} is not an address; give http(s)://host:port")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{f':{port}' if port else ''}"
