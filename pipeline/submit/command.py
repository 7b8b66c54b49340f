"""What is to be run, wherever it runs: the verb, its checked arguments, the URLs it touches."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import TrainConfig, to_plain
from pipeline.config.yaml_text import inline
from pipeline.errors import UserError
from pipeline.runfolder import read_result

log = logging.getLogger("era")
AS_JSON = "--json"
INPUTS = ("inputs", "source", "data", "checkpoint", "compare", "lpips_weights")
OUTPUTS = ("dest", "out")
STOPPED = 143  # exit code of a stopped job: SIGTERM, as a shell reports it


@dataclass(frozen=True)
class Command:
    """`era VERB ARGUMENTS`, checked.

    Attributes:
        verb: preprocess, train, tune, evaluate or restore.
        arguments: as that verb takes them, meaning the same on any machine.
        target: URL of what it makes; two jobs must not make the same at once.
        reads: what it reads, name -> URL.
        writes: what it writes, name -> URL.
        config: the training configuration (train and tune only).
        at_once: trials that may run side by side (tune only).
        shared: local paths name one file system on every node.
    """

    verb: str
    arguments: tuple[str, ...]
    target: str
    reads: dict[str, str] = field(default_factory=dict)
    writes: dict[str, str] = field(default_factory=dict)
    config: TrainConfig | None = None
    at_once: int = 1
    shared: bool = False

    def entrypoint(self, as_json: bool = False) -> str:
        """The shell command of the job."""
        return shlex.join(["era", self.verb, *self.arguments, *([AS_JSON] if as_json else [])])


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its exit code is the verb's own, 143 if it was stopped, 1 if it was lost."""

    job: str
    state: str
    exit_code: int
    message: str = ""
    log: str = ""  # its last part
    result: dict[str, Any] | None = None  # of a run that was finished before


def training_command(
    verb: str, arguments: Sequence[str], config: TrainConfig, at_once: int, shared: bool
) -> Command:
    """A command of `train` or `tune`, from its loaded configuration.

    Raises:
        UserError: if there is nothing to learn from.
    """
    if not config.data.train:
        raise UserError("data.train is empty: give the URL of a preprocessed split")
    return Command(
        verb,
        tuple(arguments),
        target=storage.join(config.run.root, config.run.name),
        reads={"data.train": config.data.train, "data.val": config.data.val},
        writes={"run.root": config.run.root},
        config=config,
        at_once=at_once,
        shared=shared or config.storage.shared,
    )


def urls_command(
    verb: str, arguments: Sequence[str], values: dict[str, Any], shared: bool
) -> Command:
    """A command of a verb without a configuration, from its parsed options."""
    reads, writes = _named(values, INPUTS), _named(values, OUTPUTS)
    for one in values.get("against") or ():
        name, _, folder = one.partition("=")
        reads[f"--against {name}"] = folder
    target = next(iter(writes.values()), "")
    return Command(verb, tuple(arguments), target, reads, writes, shared=shared)


def same_work(one: str, other: str) -> bool:
    """Whether two entrypoints do the same, however they print their result."""
    return one.removesuffix(f" {AS_JSON}") == other.removesuffix(f" {AS_JSON}")


def recorded_result(command: Command) -> dict[str, Any] | None:
    """What a finished run or sweep has left in its folder; None where it cannot be read here."""
    if command.config is None:
        return None
    try:
        return read_result(command.target)
    except UserError as error:
        log.info("the result in %s can't be read from here: %s", command.target, error)
        return None


def inline_config(config: TrainConfig) -> str:
    """The whole configuration as a value of `--config`, for machines that don't have its file."""
    return inline(to_plain(config))


def refuse_places(command: Command, several_nodes: bool, shipped: Collection[str]) -> None:
    """Refuse URLs with credentials, and paths that the job's machines would understand otherwise.

    Args:
        command: what is to be run.
        several_nodes: whether the cluster has, or may grow to, more than one node.
        shipped: relative paths of the files that travel with the job.

    Raises:
        UserError: naming the first such place, and what to give instead.
    """
    for name, url in [*command.reads.items(), *command.writes.items()]:
        if not storage.is_local(url):
            storage.refuse_credentials(url)  # who may list jobs can read their commands
        elif url and not _is_name(name, url):
            _refuse_local(command, name, url, several_nodes, shipped)


def _refuse_local(
    command: Command, name: str, url: str, several_nodes: bool, shipped: Collection[str]
) -> None:
    if name not in command.writes and _is_shipped(url, shipped):
        return
    if several_nodes and not command.shared:
        raise UserError(
            f"{name}={url} is a path of one machine, and the cluster has several nodes; use "
            "s3://bucket/key, or say storage.shared=true (--shared) if all of them mount it"
        )
    if not Path(url.removeprefix("file://")).is_absolute():
        raise UserError(
            f"{name}={url} is relative to this folder, which the job doesn't have; "
            "use s3://bucket/key, or an absolute path of the cluster's"
        )


def _named(values: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        value = values.get(name)
        many = value if isinstance(value, (list, tuple)) else [value]
        found.update({name + ("" if i == 0 else f"[{i}]"): str(v) for i, v in enumerate(many) if v})
    return found


def _is_name(name: str, url: str) -> bool:
    """Whether a checkpoint is the name of a shipped model rather than a path."""
    return name in ("checkpoint", "compare") and "/" not in url


def _is_shipped(url: str, shipped: Collection[str]) -> bool:
    place = url.removeprefix("./").rstrip("/")
    return any(name == place or name.startswith(f"{place}/") for name in shipped)
