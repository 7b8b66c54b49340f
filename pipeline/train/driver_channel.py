"""The line between the driver and rank 0: stop requests one way, progress the other.

A small Ray actor on the driver's node. Workers print nothing; what they have to say goes through
here to the driver, which shows a bar, writes lines, or hands metrics to a sweep.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

POLL_SECONDS = 0.5
SETTLE_SECONDS = 600.0


@dataclass(frozen=True)
class Event:
    """Something rank 0 reports: the step reached, and metrics or a line of text."""

    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    line: str = ""
    checkpoint: str = ""  # URL of a checkpoint whose validation metrics these are


class ChannelActor:
    """The actor's body; `start_channel` makes it an actor."""

    def __init__(self) -> None:
        self.stopping = False
        self.events: list[Event] = []
        self.with_driver = 0  # events that the driver has taken and not dealt with

    def stop(self) -> None:
        """Ask the run to save a checkpoint and end."""
        self.stopping = True

    def exchange(self, events: list[Event]) -> bool:
        """Take events from rank 0; tell it whether to stop."""
        self.events += events
        return self.stopping

    def collect(self) -> list[Event]:
        """Hand the events so far to the driver; its next call means that it dealt with them."""
        events, self.events = self.events, []
        self.with_driver = len(events)
        return events

    def settled(self) -> bool:
        """Whether the driver has dealt with every event."""
        return not self.events and not self.with_driver


def start_channel() -> Any:
    """Start the actor on this node and return its handle."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(ChannelActor).options(num_cpus=0, scheduling_strategy=here).remote()


class DriverChannel:
    """Rank 0's end: never blocks a step."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.waiting: list[Event] = []
        self.reply: Any = None
        self.sent = 0.0
        self.stopping = False

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

    def settle(self) -> bool:
        """Deliver what is left, wait until the driver has dealt with it; say whether to stop."""
        import ray

        self.flush()
        end = time.monotonic() + SETTLE_SECONDS
        while not ray.get(self.actor.settled.remote()) and time.monotonic() < end:
            time.sleep(0.05)
        self.stopping = bool(ray.get(self.actor.exchange.remote([]))) or self.stopping
        return self.stopping
