"""The order of samples: properties that resumption rests on."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import (
    Order,
    OrderPlan,
    evaluation_indices,
    mix,
    mix_one,
    rank_slice,
    summed_area_table,
)

PLAN = OrderPlan(
    seed=3,
    global_batch=4,
    crops_per_image=2,
    window=0,
    patch=(8, 16),
    steps=20,
    rotate=True,
    min_sharpness_quantile=0.3,
)
SHARDS = st.lists(st.integers(1, 5), min_size=1, max_size=6)


def order_of(shards: list[int], **changes: object) -> Order:
    sizes = [(20 + i % 5, 24 + i % 7) for i in range(sum(shards))]
    return Order(replace(PLAN, **changes), shards, sizes)


@given(SHARDS, st.integers(0, 4), st.integers(1, 4), st.integers(0, 2**31), st.integers(0, 3))
def test_each_epoch_has_every_image_exactly_so_often(
    shards: list[int], window: int, crops: int, seed: int, epoch: int
) -> None:
    order = order_of(shards, window=window, crops_per_image=crops, seed=seed)
    first = epoch * order.per_epoch
    counts = Counter(order.image(p) for p in range(first, first + order.per_epoch))
    assert counts == dict.fromkeys(range(sum(shards)), crops)


@given(st.integers(1, 40), st.data())
def test_ranks_share_a_step_without_gap_or_overlap(batch: int, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, batch))
    slices = [rank_slice(batch, rank, world) for rank in range(world)]
    positions = [p for start, stop in slices for p in range(start, stop)]
    assert positions == list(range(batch))
    sizes = [stop - start for start, stop in slices]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@given(SHARDS, st.integers(0, 200))
def test_a_position_knows_nothing_of_what_came_before(shards: list[int], position: int) -> None:
    """Interrupted anywhere and continued, a fresh order gives the same samples."""
    walked = order_of(shards)
    crops = [walked.crop(p) for p in range(position + 1)]
    assert order_of(shards).crop(position) == crops[-1]


@given(SHARDS, st.integers(0, 500))
def test_crops_lie_inside_their_image(shards: list[int], position: int) -> None:
    order = order_of(shards)
    crop = order.crop(position)
    height, width = order.sizes[crop.image]
    assert 0 <= crop.top <= height - crop.size
    assert 0 <= crop.left <= width - crop.size
    assert 0 <= crop.flip < 8


@given(st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=20)
def test_windows_keep_shards_together(window: int, per_shard: int) -> None:
    """An epoch never needs more than `window` shards at a time."""
    shards = [per_shard] * 7
    order = order_of(shards, window=window)
    owner = np.repeat(np.arange(7), per_shard)
    seen = [int(owner[order.image(p)]) for p in range(order.per_epoch)]
    block = window * per_shard * PLAN.crops_per_image
    for number, start in enumerate(range(0, len(seen), block)):
        assert set(seen[start : start + block]) == set(order.window_shards(0, number))


def test_patch_schedule_follows_the_steps() -> None:
    order = order_of([3], patch=(8, 12, 16), steps=30)
    sizes = [order.patch(step * PLAN.global_batch) for step in range(30)]
    assert sizes == [8] * 10 + [12] * 10 + [16] * 10
    assert order_of([1], patch=(64,)).patch(0) == 20  # never more than the smallest image


def test_seed_changes_everything_and_epochs_differ() -> None:
    images = [[order_of([8], seed=seed).image(p) for p in range(16)] for seed in (0, 1)]
    assert images[0] != images[1]
    order = order_of([8])
    assert [order.image(p) for p in range(16)] != [order.image(p) for p in range(16, 32)]


def test_one_step_lasts_any_number_of_epochs() -> None:
    order = order_of([2], global_batch=50, crops_per_image=1)
    assert Counter(order.image(p) for p in range(50)) == {0: 25, 1: 25}


def test_sharp_places_are_preferred() -> None:
    sharpness = np.zeros((4, 4), np.float32)
    sharpness[:, 2:] = 1.0
    order = Order(replace(PLAN, patch=(16,)), [1], [(64, 64)])
    lefts = [order.crop(p, summed_area_table(sharpness.tolist())).left for p in range(200)]
    blind = [order.crop(p).left for p in range(200)]
    assert np.mean(lefts) > np.mean(blind)


def test_a_map_that_has_no_means_gives_a_place() -> None:
    """Its sums pass what a float holds, and their differences are no numbers."""
    order = Order(replace(PLAN, patch=(16,)), [1], [(64, 64)])
    with np.errstate(all="ignore"):
        table = summed_area_table([[1e308] * 4] * 4)
        crops = [order.crop(p, table) for p in range(20)]
    assert all(0 <= crop.left <= 48 for crop in crops)


@given(st.integers(1, 100), st.integers(1, 12))
def test_evaluation_covers_every_image_once(count: int, world: int) -> None:
    parts = [evaluation_indices(count, rank, world) for rank in range(world)]
    assert sorted(i for part in parts for i in part) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
def test_both_forms_of_the_hash_agree(parts: list[int]) -> None:
    assert mix_one(*parts) == int(mix(*(np.uint64(part) for part in parts))[0])


def test_random_numbers_never_change() -> None:
    """Golden values: another order would be another data set for every run on record."""
    assert mix(0, 1, 2).tolist() == [GOLDEN_MIX]
    order = order_of([3, 2])
    assert [order.crop(p).id("k") for p in range(4)] == GOLDEN_IDS


GOLDEN_MIX = 12421565313168862949
GOLDEN_IDS = ["k@11,4,8,5", "k@13,1,8,5", "k@3,11,8,5", "k@13,7,8,1"]


@given(SHARDS, st.integers(0, 4), st.integers(0, 60))
def test_windows_name_the_shards_that_their_positions_read(
    shards: list[int], window: int, position: int
) -> None:
    order = order_of(shards, window=window)
    owner = np.repeat(np.arange(len(shards)), shards)
    epoch, number = order.window(position)
    assert epoch == position // order.per_epoch
    assert int(owner[order.image(position)]) in order.window_shards(epoch, number)


@given(SHARDS, st.integers(0, 7), st.integers(1, 3), st.lists(st.integers(0, 400), max_size=20))
def test_windows_are_the_shards_added_up(
    shards: list[int], window: int, crops: int, positions: list[int]
) -> None:
    """Against the plain definition, with the epochs in any order."""
    order = order_of(shards, window=window, crops_per_image=crops)
    for position in positions:
        epoch, place = divmod(position, order.per_epoch)
        number = 0
        while place >= (size := crops * sum(shards[s] for s in order.window_shards(epoch, number))):
            place, number = place - size, number + 1
        assert order.window(position) == (epoch, number)


def test_finding_a_window_costs_the_same_in_large_sets() -> None:
    """It is looked up with every batch, which must not scan 10,000 windows."""
    order = order_of([1] * 10_000, window=1)
    order.window(0)
    lines = 0

    def count(frame: FrameType, event: str, argument: object) -> Callable[..., object]:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        found = [order.window(p)[1] for p in range(0, 20_000, 100)]
    finally:
        sys.settrace(before)
    assert found == list(range(0, 10_000, 50))
    assert lines < 200 * 50  # by adding up, over a million
