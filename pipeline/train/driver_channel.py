"""Between the driver and rank 0: requests to stop one way, progress and warnings the other.

A small Ray actor on the driver's node. Workers print nothing: what they have to say goes through
here to the driver, which shows a bar, writes lines, or hands metrics to a sweep.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from pipeline.cluster import wait_for

POLL_SECONDS = 0.5
SETTLE_SECONDS = 600.0


@dataclass(frozen=True)
class Event:
    """Something rank 0 reports: the step reached, and metrics or a line of text."""

    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    line: str = ""
    checkpoint: str = ""  # URL of a checkpoint whose validation metrics these are
    warning: bool = False  # of the line


@dataclass(frozen=True)
class Report:
    """What the driver collects.

    Attributes:
        events: since the last time.
        contacts: how often rank 0 has called, which it does at each step.
        gone: how many groups of workers have said that they end for another one.
    """

    events: list[Event]
    contacts: int
    gone: int


class ChannelActor:
    """The actor's body; `start_channel` makes it an actor."""

    def __init__(self) -> None:
        self.stopping = False
        self.contacts = self.groups = self.gone = 0
        self.events: list[Event] = []
        self.with_driver = 0  # events that the driver has taken and not yet dealt with

    def enter(self) -> bool:
        """Note that a group of workers begins; return whether it is the first since a restart."""
        self.groups += 1
        return self.groups == 1

    def exchange(self, events: list[Event]) -> bool:
        """Take events from rank 0; tell it whether to save a checkpoint and end."""
        self.contacts += 1
        self.events += events
        return self.stopping

    def leave(self) -> None:
        """Note that the group of workers ends, and another one will begin."""
        self.gone += 1

    def note(self, events: list[Event]) -> None:
        """Take lines from any rank."""
        self.events += events

    def collect(self, stop: bool) -> Report:
        """Take the driver's request to stop, and hand it the events so far.

        Its next call means that it has dealt with them.
        """
        self.stopping |= stop
        events, self.events = self.events, []
        self.with_driver = len(events)
        return Report(events, self.contacts, self.gone)

    def settled(self) -> bool:
        """Whether the driver has dealt with every event."""
        return not self.events and not self.with_driver


def start_channel() -> Any:
    """Start the actor on this node and return its handle.

    It may be restarted: the driver repeats its request to stop, and at worst lines are lost.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": 5, "max_task_retries": 5}
    return ray.remote(ChannelActor).options(scheduling_strategy=here, **options).remote()


class DriverChannel:
    """Rank 0's end: never blocks a step."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.waiting: list[Event] = []
        self.reply: Any = None
        self.sent = 0.0
        self.stopping = False

    def first_group(self) -> bool:
        """Whether no group of workers is known to have begun before; to be asked once."""
        import ray

        return bool(ray.get(self.actor.enter.remote()))

    def tell(self, event: Event) -> None:
        """Queue an event for the driver."""
        self.waiting.append(event)

    def should_stop(self) -> bool:
        """Exchange events now and then, without waiting; say whether the driver asked to stop."""
        import ray

        if self.reply is not None:
            ready, _ = ray.wait([self.reply], timeout=0)
            if ready:
                self.stopping = bool(ray.get(self.reply)) or self.stopping
                self.reply = None
        elif time.monotonic() - self.sent >= POLL_SECONDS:
            self.reply = self.actor.exchange.remote(self.waiting)
            self.waiting, self.sent = [], time.monotonic()
        return self.stopping

    def flush(self) -> None:
        """Deliver what is left and wait for it."""
        import ray

        ray.get(self.actor.exchange.remote(self.waiting))
        self.waiting = []

    def leave(self) -> None:
        """Deliver what is left, and tell the driver that this group of workers ends."""
        import ray

        self.flush()
        ray.get(self.actor.leave.remote())

    def settle(self) -> bool:
        """Deliver what is left, wait until the driver has dealt with it; say whether to stop."""
        import ray

        self.flush()
        with contextlib.suppress(TimeoutError):  # the run continues
            settled = self.actor.settled
            wait_for(lambda: ray.get(settled.remote()), "the driver", SETTLE_SECONDS, pause=0.05)
        self.stopping = bool(ray.get(self.actor.exchange.remote([]))) or self.stopping
        return self.stopping


class ToDriver(logging.Handler):
    """Passes a worker's own log lines to the driver's terminal at once.

    Retries, outages and checkpoints passed over would otherwise be in Ray's log files alone.
    """

    def __init__(self, actor: Any, rank: int) -> None:
        super().__init__(logging.INFO)
        self.actor, self.rank = actor, rank

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line; warnings of other ranks name the rank."""
        warning = record.levelno >= logging.WARNING
        if self.rank and not warning:
            return
        text = f"rank {self.rank}: {record.getMessage()}" if self.rank else record.getMessage()
        with contextlib.suppress(Exception):  # a line is not worth a run
            self.actor.note.remote([Event(0, line=text, warning=warning)])
