"""A client of a Ray cluster's job server."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.cluster.process_state import environment
from pipeline.errors import UserError

CONNECT_SECONDS, ANSWER_SECONDS = 10, 60  # of one request
TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")


class TokenRefused(RuntimeError):
    """A job server wants a token, or another one; Ray's own error is no RuntimeError."""


def job_client(address: str) -> Any:
    """Connect to a job server; the result is Ray's `JobSubmissionClient` with `ray_version`.

    Args:
        address: its URL, such as http://127.0.0.1:8265.

    Raises:
        UserError: if the address is no such URL, nothing answers there, or the token is refused.
    """
    _check_address(address)
    _send_token()
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for talkative in (JobSubmissionClient.__module__, *TALKATIVE):
        logging.getLogger(talkative).setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        """Ray's client with time limits: no request waits forever on a dead connection."""

        def _do_request(self, method: str, endpoint: str, **rest: Any) -> Any:
            rest.setdefault("timeout", (CONNECT_SECONDS, ANSWER_SECONDS))
            try:
                return super()._do_request(method, endpoint, **rest)
            except AuthenticationError:
                raise TokenRefused("the cluster refuses the token") from None

        @property
        def ray_version(self) -> str:
            """The version of Ray on the cluster; no public call has it."""
            return str(self._server_ray_version)

    try:
        with no_address():
            return Client(address)
    except TokenRefused:
        wrong = "wants another token" if _has_token() else "requires a token"
        raise UserError(
            f"{address}: the cluster {wrong}; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file "
            "with it (on Kubernetes: key auth_token of the secret named as the RayCluster)"
        ) from None
    except (ConnectionError, RuntimeError, requests.RequestException) as error:
        raise UserError(
            f"{address}: no Ray job server answers there ({_reason(error)}); check the address, "
            "the port-forward, and that the head runs"
        ) from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{address}: what answers there is no Ray job server ({type(error).__name__})"
        ) from None


def no_address() -> AbstractContextManager[None]:
    """While open, unset the variables that Ray would prefer to an address it is given."""
    return environment(RAY_ADDRESS=None, RAY_API_SERVER_ADDRESS=None)


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        _ = parts.port  # checked when it is read
    except ValueError:
        raise UserError("--address: not a URL; expected such as http://127.0.0.1:8265") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("--address: expected the job server's URL, such as http://127.0.0.1:8265")
    if parts.username or parts.password or parts.query:
        raise UserError("--address: no credential belongs there; set RAY_AUTH_TOKEN instead")


def _send_token() -> None:
    """Let Ray send the token that it finds, which it does only in this mode."""
    if os.environ.get("RAY_AUTH_MODE"):
        return
    if _has_token():
        with environment(RAY_AUTH_MODE="token"):
            from ray._raylet import Config  # type: ignore[attr-defined]

            Config.initialize("")


def _has_token() -> bool:
    """Whether Ray finds a token: in the environment, or in the file that `ray` itself writes."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return True
    try:
        return (Path.home() / ".ray" / "auth_token").is_file()
    except (OSError, RuntimeError):  # no home
        return False


def _reason(error: BaseException) -> str:
    """Why nothing answers, in a few words."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]
