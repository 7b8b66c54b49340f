"""A Ray cluster owned by this process: on the loopback interface only, shut down at the end."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.cluster.joining import has_cluster, join, usage_statistics
from pipeline.cluster.process_state import environment, own_signal_handlers
from pipeline.errors import UserError

SOCKET_PATH = 103 if sys.platform == "darwin" else 107  # bytes of a Unix socket's path
NICENESS = "RAY_worker_niceness"
PRESTART = "RAY_prestart_worker_first_driver"
BELOW = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


@contextmanager
def connected(processors: int, resources: dict[str, float] | None = None) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names; without one, run a local cluster in this block.

    Args:
        processors: logical CPUs of the cluster that is started; at least those of the machine.
        resources: further resources of the cluster that is started.

    Raises:
        UserError: if the named cluster does not answer, or no cluster can be started here.
    """
    if has_cluster():
        join()
        yield
        return
    with local_cluster(max(processors, os.cpu_count() or 1), resources):
        yield


@contextmanager
def local_cluster(processors: int, resources: dict[str, float] | None = None) -> Iterator[None]:
    """Run a Ray cluster on 127.0.0.1, protected by a token of its own.

    Ray's own helpers look for "the" cluster of a machine, and for its dashboard at the usual port.
    They could find another run's, consider this run's driver dead, and remove its workers. Hence
    its processes are given its address, and a dashboard port that nothing listens on.
    """
    import ray

    with tempfile.TemporaryDirectory(prefix="era-token-") as private:
        port, dashboard = _free_ports()
        address = f"127.0.0.1:{port}"
        variables: dict[str, str | None] = {
            "RAY_ADDRESS": address,
            "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE"),  # Ray sets it
            "RAY_GCS_SERVER_PORT": str(port),
            "RAY_USAGE_STATS_ENABLED": usage_statistics(),
            # With Ray's default of 15, other processes of the machine would starve the workers.
            NICENESS: os.environ.get(NICENESS, "0"),
            PRESTART: os.environ.get(PRESTART, "0"),  # idle processes, one per processor
            **_interfaces(),
            **_token(Path(private)),
        }
        with own_signal_handlers(), _loopback_only(), environment(**variables):
            folder = _short_folder()
            try:
                ray.init(
                    address="local",
                    num_cpus=processors,
                    resources=resources,
                    include_dashboard=False,
                    dashboard_host="127.0.0.1",
                    dashboard_port=dashboard,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=folder,
                )
            except (OSError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(
                    f"no Ray cluster can be started on this machine ({reason}); try again, or see "
                    f"the logs below {folder or '/tmp/ray'}"
                ) from None
        try:
            yield
        finally:
            with own_signal_handlers():
                ray.shutdown()
                _forget_token()


def on_loopback() -> bool:
    """Whether the cluster that this process belongs to listens on the loopback interface only."""
    import ray

    return str(ray.get_runtime_context().gcs_address).startswith("127.0.0.1:")


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Make Ray listen on 127.0.0.1, by the switch with which it does so on macOS and Windows.

    Given a loopback address, `ray.init` would replace it by the machine's own.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _interfaces() -> dict[str, str]:
    """The interfaces of torch's process groups, unless the user has set them."""
    present = {name for _, name in socket.if_nameindex()}
    loopback = next((name for name in ("lo", "lo0") if name in present), "")
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {name: loopback for name in names if loopback and name not in os.environ}


def _token(folder: Path) -> dict[str, str]:
    """A token for this cluster alone, in a file that only this user can read.

    Ray's own would be written to ~/.ray, readable by everybody, and would need a home folder.
    """
    given = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if any(os.environ.get(name) for name in given):
        return {}
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_TOKEN_PATH": str(path)}


def _forget_token() -> None:
    """Drop what Ray's C++ part has cached, for a cluster that this process may join later."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


def _short_folder() -> str | None:
    """Another folder for Ray's session where the usual one is too long for Unix sockets."""
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(usual)) + BELOW <= SOCKET_PATH:
        return None
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = Path(f"/tmp/ray-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid == os.getuid():
            return str(folder)
        reason = f"{folder} belongs to another user"
    except OSError as error:
        reason = f"{folder}: {error.strerror}"
    raise UserError(
        f"{name}={usual} is too long for Ray's sockets ({SOCKET_PATH - BELOW} characters at most), "
        f"and {reason}; set RAY_TMPDIR to a shorter folder"
    )


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]
