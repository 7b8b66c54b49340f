"""What interrupts a run from outside: requests to stop, preemptions, and injected kills."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from ray.exceptions import RayActorError

from pipeline.config import TrainConfig
from pipeline.runfolder import RunFolder
from pipeline.runfolder.names import CHAOS
from pipeline.train.driver_channel import DriverChannel
from pipeline.train.gradients import sum_over_ranks

PREEMPTION_CHECK_SECONDS = 5.0


class NodeTakenAway(RayActorError):
    """Ends every rank once a checkpoint is saved, so that the node may go and be replaced at once.

    Ray Train treats it as the death of a preempted worker: it starts a new group of workers, and
    does not count a failure.
    """

    def __init__(self, step: int) -> None:
        super().__init__(error_msg=f"a node is being taken away; saved at step {step}")
        self._preempted = True
        self.step = step

    def __reduce__(self) -> tuple[type[NodeTakenAway], tuple[int]]:
        return NodeTakenAway, (self.step,)


@dataclass(frozen=True)
class Decision:
    """What all ranks do after a step: save and end; save because a node is being taken away."""

    stop: bool
    drain: bool


class Interruptions:
    """Decides about interruptions once a step, the same on every rank.

    Rank 0 casts votes, which travel with the sum of the loss terms: they cost no collective of
    their own.

    Args:
        config: the run's configuration.
        folder: the run's folder, where `chaos.jsonl` is kept.
        channel: to the driver, asked by rank 0.
        rank, world_size: of this worker.
        preemptible: whether Ray is to be asked for nodes that are being taken away.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        channel: DriverChannel,
        rank: int,
        world_size: int,
        preemptible: bool,
    ) -> None:
        self.config, self.folder, self.channel = config, folder, channel
        self.rank, self.world_size, self.preemptible = rank, world_size, preemptible
        self.looked = time.monotonic()
        self.draining_nodes: set[str] = set()

    def votes(self, step: int) -> list[bool]:
        """This rank's votes in the step that leads to `step` steps done: stop, ask Ray."""
        if self.rank:
            return [False, False]
        stop = self.channel.should_stop() and step < self.config.train.steps
        due = time.monotonic() - self.looked >= PREEMPTION_CHECK_SECONDS
        return [stop, self.preemptible and due]

    def decide(self, agreed: Sequence[bool]) -> Decision:
        """Turn the votes, summed over all ranks, into a decision; every rank must call it."""
        stop, ask = agreed
        if ask:
            self.looked = time.monotonic()
        return Decision(stop, ask and self._draining())

    def stopped_for_its_result(self) -> bool:
        """Whether the driver stops the run now that it knows all events; every rank must ask."""
        stop = self.rank == 0 and self.channel.settle()
        return bool(sum_over_ranks(torch.tensor(int(stop))) > 0)

    def _draining(self) -> bool:
        """Whether Ray reports that one more node is being taken away; a barrier over all ranks."""
        import ray.train

        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info is not None else set()
        new = not nodes <= self.draining_nodes
        self.draining_nodes |= nodes
        return new

    def strike(self, step: int) -> None:
        """Kill this process where `chaos.kill_every` asks for it, once per step of a run."""
        every = self.config.chaos.kill_every
        if not every or step % every or step >= self.config.train.steps:
            return
        if (step // every) % self.world_size != self.rank:
            return
        if self.folder.note_once(CHAOS, {"step": step, "rank": self.rank}):
            os.kill(os.getpid(), signal.SIGKILL)
