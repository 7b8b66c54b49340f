"""Errors that users see, and text that is safe to show: one line, no secret, no traceback."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
from typing import Any

# Faults of the environment that no verb handles where they occur; not bugs of this program.
ENVIRONMENT = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EIO, errno.EFBIG,
}  # fmt: skip


class UserError(Exception):
    """The input is at fault: a file, a URL, a configuration, a bucket.

    The message is one line that says what is wrong, where, and what to do about it. The command
    line prints it and exits with code 2. It must never contain a credential.
    """


class StorageDown(UserError):
    """A storage has given no usable answer for about twenty seconds; a later retry may succeed."""


class DamagedError(UserError):
    """Data differs from what was written, or has disappeared; a retry cannot help."""


class Stopped(Exception):
    """A run ended early on request, with a checkpoint saved; the message names the request."""


_SECRET_NAME = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)(?!.*(PATH|FILE|DIR|MODE)$)", re.IGNORECASE
)
# A password may hold slashes and at signs: after a colon, all up to the last @ is hidden.
_IN_URL = re.compile(r"(?<=://)(?:[^/:\s'\"]*:[^\s'\"]*|[^/\s'\"]+)(?=@)")
_IN_QUERY = re.compile(
    r"([?&](?:[\w-]*(?:signature|credential|token|key|secret|password|sig)[\w-]*)=)[^&\s'\"]+",
    re.IGNORECASE,
)
# Controls but for tab and line feed, lone surrogates, and overrides of the writing direction.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_SHORTEST_SECRET = 6  # characters; masking anything shorter would garble ordinary words


def masked(text: str) -> str:
    """Replace secrets with ``***``: values of environment variables whose names say that they are
    secret, user names and passwords in URLs, and signatures or tokens in their queries."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return without_credentials(text)


def without_credentials(text: str) -> str:
    """Replace user names and passwords in URLs, and signatures in their queries, with ``***``."""
    return _IN_QUERY.sub(r"\1***", _IN_URL.sub("***", text))


def printable(text: str) -> str:
    """Escape control characters (except line breaks and tabs) and lone surrogates.

    File names may hold any byte: printed as they are, they could control the terminal, and text
    with lone surrogates cannot be encoded.
    """
    return _UNSAFE.sub(lambda match: _escaped(match.group()), text)


def publishable(value: Any) -> Any:
    """A JSON-able value without the credentials of URLs, which an option may have held."""
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, dict):
        return {publishable(key): publishable(item) for key, item in value.items()}
    return [publishable(item) for item in value] if isinstance(value, list | tuple) else value


def finite(value: Any) -> Any:
    """The same value with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


class SafeFormatter(logging.Formatter):
    """Lines without secrets, terminal controls or anything that cannot be encoded."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        # A line feed, from a file's name for example, must not look like another record.
        return printable(masked(super().format(record))).replace("\n", "\\n")

    def formatException(self, ei: object) -> str:  # noqa: N802
        """No traceback: some libraries log one for each failed request."""
        return ""


def one_line(text: str) -> str:
    """Safe to print as a single line: secrets masked, white space collapsed, controls escaped."""
    return printable(" ".join(masked(text).split()))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
