"""From a user's name for a checkpoint to a network that is ready to use."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from era.config import least_parameters
from pipeline import storage
from pipeline.errors import DamagedError, UserError
from pipeline.runfolder import BEST_BY, Checkpoint, RunFolder, open_checkpoint
from pipeline.runfolder.names import COMMIT, CONFIG, MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from era import ErA, ErAConfig

log = logging.getLogger("era")
SHIPPED = Path(__file__).parents[1] / "models"  # one bundle per folder


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode on the CPU, and where it came from."""

    model: ErA
    config: ErAConfig
    meta: dict[str, Any]
    url: str


def load_model(url: str) -> LoadedModel:
    """Load the network of a run (its best, else last), a checkpoint, a bundle or a shipped name.

    Of a run, a checkpoint that proves to be damaged is passed over with a warning, and the next
    best is loaded.

    Raises:
        UserError: if there is none, or it is damaged, or of a version that does not fit.
    """
    candidates = _candidates(url, BEST_BY)
    for checkpoint in candidates[:-1]:
        try:
            return _load(checkpoint)
        except DamagedError as error:
            log.warning("checkpoint passed over: %s", error)
    return _load(candidates[-1])


def resolve(url: str, metric: str = BEST_BY) -> Checkpoint:
    """Find the checkpoint that a URL, or the name of a shipped model, means.

    Of a run, one whose weights prove to be damaged is passed over with a warning.

    Raises:
        UserError: if there is none.
    """
    candidates = _candidates(url, metric)
    for checkpoint in candidates[:-1]:
        try:
            checkpoint.read(MODEL)
            return checkpoint
        except DamagedError as error:
            log.warning("checkpoint passed over: %s", error)
    return candidates[-1]


def _candidates(url: str, metric: str) -> list[Checkpoint]:
    """What a URL may mean, in order of preference; never empty."""
    if url in shipped_models():
        if any(storage.exists(f"./{url}/{name}") for name in (COMMIT, CONFIG)):
            log.warning("%s: the included network is meant; for the folder give ./%s", url, url)
        return [open_checkpoint(str(SHIPPED / url))]
    url = storage.absolute(url)
    if storage.exists(storage.join(url, COMMIT)):
        return [open_checkpoint(url)]
    if not storage.exists(url):
        known = f" (shipped models: {', '.join(shipped_models())})" if shipped_models() else ""
        raise UserError(f"{url}: no such run, checkpoint or model{known}")
    found = RunFolder(url).best_then_latest(metric)
    if not found:
        raise UserError(
            f"{url}: no finished checkpoint there; give a run, a checkpoint or a bundle"
        )
    return found


def _load(checkpoint: Checkpoint) -> LoadedModel:
    import torch  # a run's driver, which computes nothing, does without

    from era import ErA, ErAConfig

    state = checkpoint.load_model_state()
    try:
        config = ErAConfig.from_dict(checkpoint.meta["model"])
        _require_fitting(config, state)
        model = ErA(config)
        model.load_state_dict(state)
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = " ".join(line.strip() for line in lines[:2])[:200]
        raise UserError(
            f"{checkpoint.url}: its network is not one that this version knows ({reason})"
        ) from None
    # Convolutions take a third less time on a CPU when a pixel's channels are adjacent in memory.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return LoadedModel(model.eval(), config, checkpoint.meta, checkpoint.url)


def _require_fitting(config: ErAConfig, state: dict[str, Tensor]) -> None:
    """Compare sizes before memory is taken: a stranger's configuration could ask for terabytes.

    Raises:
        ValueError: if the weights are too few.
    """
    least = least_parameters(config)
    found = sum(tensor.numel() for tensor in state.values())
    if least > found:
        raise ValueError(f"{found:,} parameters; its configuration has more than {least:,}")


def shipped_models() -> list[str]:
    """Names of the models that come with the program."""
    if not SHIPPED.is_dir():
        return []
    names = [path.name for path in SHIPPED.iterdir() if (path / COMMIT).is_file()]
    return sorted(name for name in names if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name))
