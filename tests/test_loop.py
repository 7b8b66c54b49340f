"""The loop of a single rank: precisions, options, and steps that are not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import config_of

from era import named_config
from pipeline.config.schema import LossSection
from pipeline.data.loader import TrainLoader
from pipeline.data.split import open_split
from pipeline.errors import UserError
from pipeline.train.lineage import Lineage
from pipeline.train.loop import Loop
from pipeline.train.objective import JOINT as JOINT_PHASE
from pipeline.train.objective import PRIOR, Objective
from pipeline.train.setup import imitated, order_plan
from pipeline.train.state import TrainState
from pipeline.train.validate import validate

JOINT = "train.estimator_share=0", "train.prior_share=0"


def loop_of(data: Path, *overrides: str, steps: int = 4, **callbacks: Any) -> Loop:
    """A loop over the first steps of a small run, in this process."""
    config = config_of(data, Path("unused"), "loop", *JOINT, *overrides)
    split = open_split(str(data / "train"), "", 1.0)
    loader = TrainLoader(split, order_plan(config), rank=0, world_size=1, start_step=0, steps=steps)
    cpu = torch.device("cpu")
    return Loop(config, TrainState(config, cpu), loader, cpu, split.has_radius, **callbacks)


def losses(loop: Loop) -> list[float]:
    """The losses of all steps of a loop."""
    found: list[float] = []
    loop.run(lambda result: found.append(result.values["train/loss"]))
    loop.loader.close()
    return found


@pytest.mark.parametrize(
    ("override", "tolerance"),
    [
        ("train.precision=bf16", 0.02),
        ("train.precision=fp16", 0.02),
        ("train.channels_last=true", 1e-3),
        ("scaling.micro_batch=2", 1e-3),
        pytest.param("train.compile=true", 1e-3, marks=pytest.mark.full),
    ],
)
def test_options_of_speed_give_nearly_the_same_curve(
    override: str, tolerance: float, tiny_data: Path
) -> None:
    plain, fast = losses(loop_of(tiny_data)), losses(loop_of(tiny_data, override))
    assert fast == pytest.approx(plain, rel=tolerance)
    if "precision" in override:
        assert fast != plain  # something else was computed


@pytest.mark.parametrize("phase", [PRIOR, JOINT_PHASE])
def test_relative_loss_reaches_the_prior_and_the_joint_phase(phase: str, tiny_data: Path) -> None:
    torch.manual_seed(0)
    model = loop_of(tiny_data, steps=1).state.model
    blur, sharp = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    sections = LossSection(omega=1.0), LossSection(omega=1.0, relative=0.1)
    plain, relative = (Objective(model, loss)(blur, sharp, None, phase)[0] for loss in sections)
    expected = plain.total / ((blur - sharp).abs().mean(dim=(1, 2, 3)) + 0.1)
    torch.testing.assert_close(relative.total, expected)


def test_a_half_type_that_the_processor_only_imitates_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False})
    assert "ten times" in imitated("bf16", cpu)
    assert not imitated("fp32", cpu)
    assert not imitated("bf16", torch.device("cuda"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert not imitated("bf16", cpu)
    assert imitated("fp16", cpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"fp16_arith": True})  # ARM's name
    assert not imitated("fp16", cpu)


def test_a_resume_under_other_conditions_is_said(tiny_data: Path) -> None:
    config = config_of(tiny_data, Path("unused"), "lineage", "run.revision=abc")
    split = open_split(str(tiny_data / "train"), "", 1.0)
    lineage = Lineage(config, named_config("tiny"), (split, None), world_size=2)
    meta = lineage.meta(7)
    assert not lineage.changes(meta)
    assert not lineage.changes({**meta, "world_size": 3, "step": 9, "git": None})
    older = {**meta, "threads": 4, "git": "def", "versions": {**meta["versions"], "torch": "2.0"}}
    line = lineage.changes(older)
    assert "scaling.threads 4 -> 1, revision def -> abc, torch 2.0 -> " in line
    assert "results may differ in the last digits" in line
    assert not lineage.changes({**meta, "versions": "a stranger's"})
    with pytest.raises(UserError, match=r"not what run x began with"):
        lineage.refuse_other_data({**meta, "data_manifest_sha256": "other"}, "x")
    other = {**meta, "micro_batch": 2, "device": "NVIDIA H100"}
    assert "scaling.micro_batch 2 -> 0, device NVIDIA H100 -> CPU" in lineage.changes(other)


def test_ranks_that_see_other_data_do_not_train(tiny_data: Path) -> None:
    config = config_of(tiny_data, Path("unused"), "lineage")
    train, val = (open_split(str(tiny_data / name), "", 1.0) for name in ("train", "val"))
    rank_0 = Lineage(config, named_config("tiny"), (train, val), world_size=2).meta(0)
    Lineage(config, named_config("tiny"), (train, val), world_size=2).refuse_unequal_data(rank_0)
    with pytest.raises(UserError, match=r"other data on .* than on rank 0's node"):
        Lineage(config, named_config("tiny"), (val, val), 2).refuse_unequal_data(rank_0)


def test_compiled_shapes_do_not_push_each_other_out(tiny_data: Path) -> None:
    """By default the ninth would run uncompiled, until a resumed process compiled it."""
    from torch._dynamo import config as dynamo

    loop_of(tiny_data, "train.compile=true", steps=1).loader.close()
    assert min(dynamo.recompile_limit, dynamo.accumulated_recompile_limit) > 100


def test_strict_gradients_lie_as_their_parameters_do(tiny_data: Path) -> None:
    """CUDA's fused optimiser refuses others."""
    loop = loop_of(tiny_data, "train.deterministic=strict", "train.channels_last=true", steps=1)
    strides: list[tuple[Any, Any]] = []

    def note(*_: Any) -> None:
        parameters = loop.state.model.parameters()
        strides.extend((p.grad.stride(), p.stride()) for p in parameters if p.grad is not None)

    loop.state.optimizer.register_step_pre_hook(note)
    losses(loop)
    assert any(len(found) == 4 and found[1] == 1 for _, found in strides)  # channels last
    assert all(found == wanted for found, wanted in strides)


@pytest.mark.parametrize("part", ["optimizer", "averages", "step", "torch_rng"])
def test_a_checkpoint_without_a_part_is_one_line(part: str, tiny_data: Path) -> None:
    state = loop_of(tiny_data, steps=1).state
    training = {name: value for name, value in state.training().items() if name != part}
    with pytest.raises(UserError, match="no training state that this version knows"):
        state.restore(state.weights(), training)


def test_a_long_validation_shows_that_it_is_alive(tiny_data: Path) -> None:
    split, calls = open_split(str(tiny_data / "val"), "", 1.0), []
    model = loop_of(tiny_data, steps=1).state.ema.eval()
    validate(model, split, 0, 1, 0, lambda: calls.append(1))
    assert len(calls) == len(split)


def test_a_checkpoint_of_another_network_is_refused(tiny_data: Path) -> None:
    state = loop_of(tiny_data, steps=1).state
    weights = state.weights()
    weights.pop("scalars.raw")
    with pytest.raises(UserError, match="choose another"):
        state.restore(weights, state.training())


def test_fp16_lowers_its_scale_instead_of_blaming_samples(tiny_data: Path) -> None:
    loop = loop_of(tiny_data, "train.precision=fp16", "train.nonfinite_budget=0", steps=12)
    loop.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    before = loop.state.weights()
    assert len(losses(loop)) == 12
    assert loop.state.skipped == 0
    assert loop.state.scaler.get_scale() < 2.0**20
    assert any(not torch.equal(before[k], v) for k, v in loop.state.weights().items())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loss_that_is_not_finite_uses_up_the_budget(precision: str, tiny_data: Path) -> None:
    noted: list[list[str]] = []
    options = f"train.precision={precision}", "train.nonfinite_budget=1"
    loop = loop_of(tiny_data, *options, on_skip=lambda step, ids: noted.append(ids))
    next(loop.state.model.priors.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"more than train\.nonfinite_budget=1"):
        losses(loop)
    loop.loader.close()
    assert [len(ids) for ids in noted] == [5, 5]  # of the fatal step too


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_votes_travel_with_each_step(mode: str, tiny_data: Path) -> None:
    asked: list[int] = []

    def votes(step: int) -> list[bool]:
        asked.append(step)
        return [step == 2, step == 3]

    found: list[list[bool]] = []
    loop = loop_of(tiny_data, f"train.deterministic={mode}", steps=3, votes=votes)
    loop.run(lambda result: found.append(result.agreed))
    loop.loader.close()
    assert asked == [1, 2, 3]
    assert found == [[False, False], [True, False], [False, True]]
