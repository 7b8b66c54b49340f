"""Joining the Ray cluster that RAY_ADDRESS names."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys

from pipeline.cluster.process_state import environment, own_signal_handlers
from pipeline.errors import UserError

ANSWER_SECONDS = 8.0
CURE = "check the address, the port-forward, and that the head runs (`ray status`)"


def address_of() -> str:
    """The address of a cluster from RAY_ADDRESS; empty where it is not set."""
    return os.environ.get("RAY_ADDRESS", "")


def has_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster, or this process belongs to one already."""
    if address_of():
        return True
    ray = sys.modules.get("ray")  # a process that never imported Ray has joined nothing
    return ray is not None and bool(ray.is_initialized())


def join(address: str = "") -> None:
    """Join a cluster, once per process.

    Args:
        address: HOST:PORT; RAY_ADDRESS where it is empty.

    Raises:
        UserError: if the cluster does not answer within seconds, or runs another Ray or Python.
    """
    import ray

    if ray.is_initialized():
        return
    name = address or f"RAY_ADDRESS={address_of()}"
    address = address or address_of()
    require_answer(address, name)
    try:
        with own_signal_handlers(), environment(RAY_USAGE_STATS_ENABLED=usage_statistics()):
            ray.init(address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if "Version mismatch" in reason:
            raise UserError(f"{name}: {reason} Use the cluster's image") from None
        raise UserError(f"{name}: no Ray cluster answers there ({reason})") from None


def usage_statistics() -> str:
    """The value of RAY_USAGE_STATS_ENABLED: off unless the user has set it."""
    return os.environ.get("RAY_USAGE_STATS_ENABLED", "0")


def require_answer(address: str, name: str) -> None:
    """Refuse an address at which no Ray cluster answers; Ray itself would wait for minutes.

    Args:
        address: what to reach. name: the address's name in messages.

    Raises:
        UserError: within about twenty seconds.
    """
    if "://" in address:
        raise UserError(
            f"{name}: only HOST:PORT of a cluster can be joined, such as "
            "HOST:6379; to send a job from outside use `era submit --address http://HOST:8265`"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like, which Ray resolves
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
            _require_grpc(address)
    except (OSError, ValueError) as error:  # ValueError: of a name or number that is none
        reason = getattr(error, "strerror", "") or str(error) or type(error).__name__
        raise UserError(f"{name}: no Ray cluster answers there ({reason}); {CURE}") from None


def _require_grpc(address: str) -> None:
    """Wait until a gRPC server answers.

    Raises:
        TimeoutError: where something else, or a process that hangs, holds the port.
    """
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise TimeoutError("the port is open, but no Ray head speaks there") from None


def work_in(folder: str) -> None:
    """Change to the command's folder, so that relative paths mean the same in Ray's workers.

    Another machine may have no such folder; whatever is missing then is reported by name.
    """
    with contextlib.suppress(OSError):
        os.chdir(folder)
