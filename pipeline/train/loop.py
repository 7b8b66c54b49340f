"""The loop of one rank: from the state of a checkpoint to the last step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from pipeline.config import Deterministic, TrainConfig
from pipeline.data.augment import to_device
from pipeline.data.batch import Batch
from pipeline.errors import UserError
from pipeline.train.gradients import (
    TERMS,
    FloatReduction,
    IntegerReduction,
    micro_batches,
)
from pipeline.train.objective import ESTIMATOR, PRIOR, Objective, learning_rate, phase_of
from pipeline.train.state import TrainState

Votes = Callable[
    [int], list[bool]
]  # this rank's, by the number of steps done after the current one
MOST_SHAPES = 1024  # compiled: phases, patches, and sizes of micro-batches
Item = TypeVar("Item")
OnSkip = Callable[[int, list[str]], None]  # the step, and the samples of all ranks


@dataclass(frozen=True)
class StepResult:
    """A finished step: this rank's batch, values by metric name, and for each vote whether any
    rank cast it.
    """

    batch: Batch
    values: dict[str, float]
    agreed: list[bool]


StepDone = Callable[[StepResult], None]


class Loop:
    """Runs optimiser steps; callbacks save and show what is to be kept.

    Args:
        config: the run's configuration.
        state: where to start; advanced in place.
        loader: yields this rank's share of each step from `state.step` on.
        device: where to compute.
        radius_known: whether the data has true blur radii.
        votes: asked once a step; its flags travel with the sum of the loss terms.
        on_skip: called on every rank for a step that is skipped because it is not finite.
    """

    def __init__(
        self,
        config: TrainConfig,
        state: TrainState,
        loader: Iterable[Batch],
        device: torch.device,
        radius_known: bool,
        votes: Votes = lambda step: [],
        on_skip: OnSkip = lambda step, ids: None,
    ) -> None:
        self.config, self.state, self.loader, self.device = config, state, loader, device
        self.radius_known, self.votes, self.on_skip = radius_known, votes, on_skip
        objective = Objective(state.model, config.loss)
        strict = config.train.deterministic is Deterministic.STRICT
        self.reduction = (IntegerReduction if strict else FloatReduction)(objective, device)
        if config.train.compile:
            # Shapes are static: a size met again after a resume compiles to the same code, if that
            # of no other size has to go (by default the ninth would not be compiled any more).
            from torch._dynamo import config as dynamo

            dynamo.recompile_limit = dynamo.accumulated_recompile_limit = MOST_SHAPES
            self.reduction.module.compile(dynamic=False)

    def run(self, step_done: StepDone) -> None:
        """Step until the last, calling `step_done` after each.

        Raises:
            UserError: when more steps than `train.nonfinite_budget` had a non-finite gradient.
        """
        self.state.model.train()
        before = time.monotonic()
        for batch, waited in _timed(self.loader):
            values, agreed = self.step(batch)
            now = time.monotonic()
            values["time/step"] = now - before  # with the callbacks of the step before
            before = now
            values["time/data_share"] = waited / values["time/step"]
            self.state.step += 1
            step_done(StepResult(batch, values, agreed))

    def step(self, batch: Batch) -> tuple[dict[str, float], list[bool]]:
        """One optimiser step; returns its values by metric name, and the result of the votes."""
        config, state = self.config, self.state
        phase = phase_of(state.step, config.train, self.radius_known)
        tensors = to_device(batch, self.device, config.train.channels_last)
        parts = micro_batches(tensors, config.scaling.micro_batch)
        with self._autocast():
            sums = self.reduction.accumulate(
                parts, phase, config.train.global_batch, self._backward, self._votes
            )
        scaled = state.scaler.is_enabled()
        known = torch.zeros_like(sums.terms[:1])
        if not scaled or sums.terms.isfinite().all():
            known = state.clip_gradients().to(known).reshape(1)
        # The only point in a step that waits for the device.
        read = torch.cat([sums.terms, known, sums.cast.to(known)]).tolist()
        terms, norm = read[: len(TERMS)], read[len(TERMS)]
        finite = all(map(math.isfinite, terms))
        if finite:
            state.apply_gradients(norm)
        else:
            norm = state.drop_gradients()
        if not math.isfinite(norm) and not (finite and self._scale_too_large()):
            self._skip(batch)
        values = {f"train/{name}": value for name, value in zip(TERMS, terms, strict=True)}
        if phase in (ESTIMATOR, PRIOR):
            values.pop("train/error_share")
        values["train/gradient_norm"] = norm
        values["train/learning_rate"] = learning_rate(state.step, config.train)
        return values, [count > 0 for count in read[len(TERMS) + 1 :]]

    def _votes(self) -> list[bool]:
        return self.votes(self.state.step + 1)

    def _backward(self, loss: torch.Tensor) -> None:
        with torch.autocast(self.device.type, enabled=False):
            self.state.scaler.scale(loss).backward()

    def _autocast(self) -> AbstractContextManager[object]:
        types = {"bf16": torch.bfloat16, "fp16": torch.float16}
        dtype = types.get(self.config.train.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    def _scale_too_large(self) -> bool:
        """Whether fp16's loss scale, not a sample, is the cause; the scaler lowers it."""
        scaler = self.state.scaler
        return scaler.is_enabled() and scaler.get_scale() >= 1.0

    def _skip(self, batch: Batch) -> None:
        self.state.skipped += 1
        ids = gather_lists(batch.ids)
        self.on_skip(self.state.step, ids)
        budget = self.config.train.nonfinite_budget
        if self.state.skipped > budget:
            raise UserError(
                f"step {self.state.step}: the loss or gradient is not finite, and more than "
                f"train.nonfinite_budget={budget} steps were skipped for that; samples: "
                f"{' '.join(ids)}. Lower train.learning_rate, or look at these samples"
            )


def gather_lists(items: list[Item]) -> list[Item]:
    """All ranks' lists, joined in rank order, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(items)
    parts: list[list[Item]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def _timed(loader: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    before = time.monotonic()
    for batch in loader:
        yield batch, time.monotonic() - before
        before = time.monotonic()
