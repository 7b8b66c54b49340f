"""The error that users see: one clear line, exit code 2, no traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something outside this program is wrong: a file, a URL, a configuration, a bucket.

    The message is one line that says what is wrong, where, and what to do about it. The command
    line prints it and exits with code 2. Never put a credential into it.
    """


class StorageDown(UserError):
    """A storage gave no good answer for some twenty seconds; trying again later may help."""


class DamagedError(UserError):
    """What was read is not what was written, or has vanished; trying again is useless."""


class Stopped(Exception):
    """A run ended early because it was asked to, with a checkpoint saved; says by what."""
