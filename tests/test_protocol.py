"""Attempts of one run over a store that is late: docs/protocol.md, explored by hypothesis.

A longer search: python tests/test_protocol.py 10000
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from late_store import RUN, LateStore, Node, Request, curve

from pipeline import storage
from pipeline.checkpoint import CheckpointStore
from pipeline.runfolder.attempts import attempt_key
from pipeline.runfolder.names import COMMIT, NEWEST

NODE = st.integers(0, 9)  # which of the nodes, counted around
SCORE = st.integers(0, 3)  # of a validation


class Attempts(RuleBasedStateMachine):
    """Up to four attempts; each saves, hangs, wakes up, dies, and has requests that come late."""

    rules_run = 0

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.late: list[Request] = []
        self.promised = 0  # the newest step that its owner has saved
        self.late_commits: set[str] = set()
        self.pointer_may_be_old = False

    @initialize(conditional=st.booleans())
    def begin(self, conditional: bool) -> None:
        self.files = LateStore(conditional)
        storage._files = lambda url: self.files

    @property
    def alive(self) -> list[Node]:
        return [node for node in self.nodes if not node.dead]

    @property
    def owner(self) -> Node | None:
        return max(self.nodes, key=lambda node: attempt_key(node.attempt), default=None)

    @precondition(lambda self: len(self.nodes) < 4)
    @rule()
    def start(self) -> None:
        node = Node(self.files)
        self.nodes.append(node)
        if not self.pointer_may_be_old or self.files.listed is None:
            assert node.resumed >= self.promised, "something committed is lost"

    @precondition(lambda self: any(not node.saving for node in self.alive))
    @rule(which=NODE, scores=st.lists(SCORE, min_size=1, max_size=3))
    def save(self, which: int, scores: list[int]) -> None:
        node = self._one(which, saving=False)
        for score in scores:
            if not node.dead:
                self._begin_save(node, score)
                self._let_pass(node)

    @precondition(lambda self: any(not node.saving for node in self.alive))
    @rule(which=NODE, score=SCORE, requests=st.integers(0, 14))
    def hang_in_a_save(self, which: int, score: int, requests: int) -> None:
        node = self._one(which, saving=False)
        self._begin_save(node, score)
        self._let_pass(node, requests)

    @precondition(lambda self: any(node.saving for node in self.alive))
    @rule(which=NODE, requests=st.sampled_from([1, 1, 2, 3, 99]))
    def wake_up(self, which: int, requests: int) -> None:
        self._let_pass(self._one(which, saving=True), requests)

    @precondition(lambda self: any(node.saving for node in self.alive))
    @rule(which=NODE, verdict=st.sampled_from(["unanswered", "refused", "late"]))
    def fail(self, which: int, verdict: str) -> None:
        node = self._one(which, saving=True)
        request = node.let_pass(verdict)
        if verdict == "late" and request is not None:
            self.late.append(request)
        self._sent(node, request)

    @precondition(lambda self: self.alive)
    @rule(which=NODE)
    def die(self, which: int) -> None:
        node = self.alive[which % len(self.alive)]
        node.dead = True
        if node.waiting is not None:
            self.late.append(node.waiting)

    @precondition(lambda self: self.late)
    @rule(which=NODE)
    def arrive_late(self, which: int) -> None:
        request = self.late.pop(which % len(self.late))
        request.apply()
        self._came_late(request)

    @precondition(lambda self: self.files.conditional)
    @rule()
    def listings_fall_behind(self) -> None:
        self.files.listed = dict(self.files.objects)
        for node in self.nodes:
            node.may_save |= node.saving

    @rule()
    def listings_catch_up(self) -> None:
        self.files.listed = None

    @invariant()
    def nothing_committed_is_lost_or_changed(self) -> None:
        type(self).rules_run += 1
        objects = self.files.objects
        for url in [url for url in objects if url.endswith(f"/{COMMIT}")]:
            folder, prints = url.removesuffix(COMMIT), json.loads(objects[url])["files"]
            sound = all(
                hashlib.sha256(objects.get(folder + name, b"")).hexdigest() == entry["sha256"]
                for name, entry in prints.items()
            )
            assert sound or url in self.late_commits, f"{url} names files that are not there"

    @invariant()
    def the_newest_can_be_resumed(self) -> None:
        late, self.files.listed = self.files.listed, None
        found = CheckpointStore(RUN, warn=lambda _: None).load_latest()
        self.files.listed = late
        step = found.checkpoint.step if found else 0
        assert step >= self.promised, "something committed is lost"
        if found is not None:
            assert found.weights["w"].tolist() == [float(step)] * 2
            assert found.run_files["metrics.jsonl"] == curve(step), "more than one curve"
            assert found.training["by"] == found.checkpoint.commit.attempt
            if self.owner and self.owner.step == step > self.owner.resumed:
                assert found.training["by"] == self.owner.attempt, "the owner has not won"

    def teardown(self) -> None:
        for node in self.nodes:
            node.end()

    def _one(self, which: int, saving: bool) -> Node:
        nodes = [node for node in self.alive if node.saving == saving]
        return nodes[which % len(nodes)]

    def _begin_save(self, node: Node, score: int) -> None:
        node.may_save = node is self.owner or self.files.listed is not None
        node.begin_save(score)
        self._look_at(node)

    def _let_pass(self, node: Node, requests: int = 99) -> None:
        for _ in range(requests):
            if node.saving:
                self._sent(node, node.let_pass())

    def _sent(self, node: Node, request: Request | None) -> None:
        if request is not None and node is not self.owner:
            self._came_late(request)
        self._look_at(node)

    def _came_late(self, request: Request) -> None:
        self.pointer_may_be_old |= request.url.endswith(NEWEST)
        if request.url.endswith(COMMIT):  # its folder may have been removed
            self.late_commits.add(request.url)

    def _look_at(self, node: Node) -> None:
        """Where a save has ended, what its end must be."""
        if node.saving:
            return
        error = node.error()
        owns = node is self.owner
        if error is None:
            node.step += 1
            assert node.may_save, "two owners"
            self.promised = max(self.promised, node.step) if owns else self.promised
        else:
            node.dead = True
            if owns:
                assert "no answer" in str(error), f"the owner was stopped: {error}"


@pytest.fixture
def at_once() -> Iterator[None]:
    """Retries of storage operations wait for nothing."""
    with (
        patch("pipeline.storage.outage_retry.WAITS", (0.0,) * 5),
        patch.object(storage, "_files"),
    ):
        yield


def search(examples: int, steps: int) -> None:
    """Explore interleavings."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Attempts, settings=chosen)


@pytest.mark.usefixtures("at_once")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # ended nodes
def test_no_interleaving_of_attempts_loses_what_was_committed() -> None:
    search(examples=30, steps=40)


if __name__ == "__main__":
    with (
        patch("pipeline.storage.outage_retry.WAITS", (0.0,) * 5),
        patch.object(storage, "_files"),
    ):
        while Attempts.rules_run < int(sys.argv[1]):
            search(examples=100, steps=60)
    print(f"{Attempts.rules_run} steps, nothing lost")
