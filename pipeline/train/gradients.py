"""Two ways of reducing the gradients of all ranks.

`float`: DDP's all-reduce, each rank's loss weighted by its share of the global batch. With
`find_unused_parameters` DDP never reorders its buckets, so that a resumed run adds in the same
order as an undisturbed one: equal to the bit at the same world size.

`integer` (train.deterministic=strict): each sample's gradient is computed separately, converted to
fixed point, and summed as int64. Integer sums do not depend on their order, so the result is equal
to the bit under any world size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.data.augment import Tensors
from pipeline.train.objective import Objective

FIXED_POINT = 2.0**40  # one is this many units; finer than float32's resolution near 1e-5
LARGEST = 2.0**62 / FIXED_POINT  # a sum beyond this would overflow int64
TERMS = ("loss", "restored", "reblurred", "radius", "error_share")

Backward = Callable[[Tensor], None]
Votes = Callable[[], list[bool]]


@dataclass(frozen=True)
class Sums:
    """What the all-reduce of a step returns besides the gradients.

    Attributes:
        terms: (5,) float64, means over the global batch.
        cast: (votes,), by how many ranks each vote was cast.

    Both are still on the device: reading them waits for it.
    """

    terms: Tensor
    cast: Tensor


class FloatReduction:
    """DDP, with gradient accumulation over micro-batches."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.device = device
        self.module: nn.Module = objective
        if self.world > 1:
            self.module = DistributedDataParallel(
                objective,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,
                find_unused_parameters=True,
            )

    def accumulate(
        self,
        parts: list[Tensors],
        phase: str,
        global_batch: int,
        backward: Backward,
        votes: Votes = list,
    ) -> Sums:
        """Leave the global mean's gradient in `.grad`; return the mean terms and the votes."""
        total = torch.zeros(len(TERMS), dtype=torch.float64, device=self.device)
        for index, part in enumerate(parts):
            last = index + 1 == len(parts)
            ddp = self.module if isinstance(self.module, DistributedDataParallel) else None
            with nullcontext() if last or ddp is None else ddp.no_sync():
                loss, share = self.module(part.blur, part.sharp, part.radius, phase)
                # DDP divides the sum over the ranks by their number: undone here.
                backward(loss.total.sum() * (self.world / global_batch))
            terms = torch.stack([*(term.detach().sum() for term in loss), share * len(loss.total)])
            total += terms.double()
        cast = torch.tensor(votes(), dtype=torch.float64).to(self.device)
        total = sum_over_ranks(torch.cat([total, cast]))
        return Sums(total[: len(TERMS)] / global_batch, total[len(TERMS) :])


class IntegerReduction:
    """Sums single samples in fixed point: the same bits under any world size."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.device = device
        self.module: nn.Module = objective
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.count = sum(p.numel() for p in self.parameters)

    def accumulate(
        self,
        parts: list[Tensors],
        phase: str,
        global_batch: int,
        backward: Backward,
        votes: Votes = list,
    ) -> Sums:
        """Leave the global mean's gradient in `.grad`; return the mean terms and the votes.

        A gradient that is not finite, or would overflow, comes back as NaN on every rank.
        """
        total = torch.zeros(self.count + len(TERMS) + 2, dtype=torch.int64, device=self.device)
        used = [False] * len(self.parameters)
        for sample in _samples(parts):
            for parameter in self.parameters:
                parameter.grad = None
            loss, share = self.module(sample.blur, sample.sharp, sample.radius, phase)
            backward(loss.total.sum())
            terms = torch.stack([*(term.detach().sum() for term in loss), share])
            self._add(total, terms, global_batch)
            used = [u or p.grad is not None for u, p in zip(used, self.parameters, strict=True)]
        flags = torch.tensor([*used, *votes()], dtype=torch.int64).to(self.device)
        sizes = [len(total), len(used), len(flags) - len(used)]
        total, counts, cast = sum_over_ranks(torch.cat([total, flags])).split(sizes)
        anywhere = [count > 0 for count in counts.tolist()] if self.world > 1 else used
        return Sums(self._store(total, anywhere, global_batch), cast)

    def _add(self, total: Tensor, terms: Tensor, global_batch: int) -> None:
        """Add a sample's gradient and terms, and how often each of the two was not finite."""
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = torch.cat([g.reshape(-1) for g in grads] + [terms]).double().mul_(FIXED_POINT)
        bad = (flat.abs() < LARGEST / global_batch * FIXED_POINT).logical_not_()
        total[:-2] += flat.round_().masked_fill_(bad, 0.0).to(torch.int64)
        total[-2] += bad[: self.count].any()
        total[-1] += bad[self.count :].any()

    def _store(self, total: Tensor, used: list[bool], global_batch: int) -> Tensor:
        mean = total[:-2].double() / (FIXED_POINT * global_batch)
        mean[: self.count].masked_fill_(total[-2] > 0, float("nan"))
        mean[self.count :].masked_fill_(total[-1] > 0, float("nan"))
        pieces = mean[: self.count].split([p.numel() for p in self.parameters])
        for parameter, piece, any_used in zip(self.parameters, pieces, used, strict=True):
            parameter.grad = _laid_out(piece, parameter) if any_used else None
        return mean[self.count :]


def _laid_out(values: Tensor, parameter: Tensor) -> Tensor:
    """A gradient with its parameter's strides, without which fused optimisers refuse it."""
    return torch.empty_like(parameter).copy_(values.view(parameter.shape))


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, on every rank, where it was."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    # NCCL knows no CPU tensors.
    summed = values.cuda() if dist.get_backend() == "nccl" else values
    dist.all_reduce(summed)
    return summed.to(values.device)


def micro_batches(batch: Tensors, size: int) -> list[Tensors]:
    """Cut a rank's share of a batch into micro-batches of at most `size` samples (0: one)."""
    count = len(batch.blur)
    size = size or count
    return [_cut(batch, start, start + size) for start in range(0, count, size)]


def _samples(parts: list[Tensors]) -> Iterator[Tensors]:
    for part in parts:
        yield from micro_batches(part, 1)


def _cut(batch: Tensors, start: int, stop: int) -> Tensors:
    radius = None if batch.radius is None else batch.radius[start:stop]
    return Tensors(batch.blur[start:stop], batch.sharp[start:stop], radius)
