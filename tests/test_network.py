"""The network as a whole: sizes, ablations, gradients, precision, costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_network import SMALL, rand

from era import ErA, ErAConfig, cost, era_loss, named_config
from era.estimator import RING_RANGE, RINGS, blur_features, luminance
from era.psf import PsfBank, corrected, disk
from era.updates import X_FORMS
from pipeline.config import load_train_config
from pipeline.errors import UserError


def network(**changes: object) -> ErA:
    torch.manual_seed(0)
    return ErA(replace(SMALL, **changes))


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (17, 64), (8, 9)])
def test_any_size(size: tuple[int, int]) -> None:
    blur = rand(2, 3, *size).float()
    output = network().eval()(blur)
    assert output.restored.shape == output.error.shape == blur.shape
    assert output.weights.shape == (2, 3, *size)
    assert output.kernels.shape == (2, 3, 7, 7)
    torch.testing.assert_close(output.weights.sum(1), torch.ones(2, *size))
    torch.testing.assert_close(output.kernels.sum((-2, -1)), torch.ones(2, 3))
    assert output.kernels.min() >= 0
    assert output.restored.min() >= 0 and output.restored.max() <= 1


ABLATIONS = [
    {"error_term": False},
    {"data_step": False},
    {"tied_lambda_e": True},
    {"p_form": "paper"},
    {"share_priors": False},
    {"stages": 1},
    {"luminance": False},
    {"prior": "resunet"},
    {"kernels": 1},
    {"kernel_size": 11, "radius_max": 5.0},
    *({"x_form": form} for form in X_FORMS),
]


@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
def test_every_ablation_trains(changes: dict[str, object]) -> None:
    model = network(**changes)
    blur, sharp = rand(1, 3, 24, 24).float(), rand(1, 3, 24, 24, seed=1).float()
    loss = era_loss(model(blur, reblur=True), blur, sharp)
    loss.total.sum().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in found)
    assert sum(float(g.abs().sum()) for g in found) > 0


def test_gradients_are_finite_where_e_is_zero() -> None:
    model = network(lambda_e=5.0)
    blur = rand(1, 3, 24, 24).float()
    output = model(blur, reblur=True)
    assert output.error_share == 0
    era_loss(output, blur, blur).total.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_e_is_not_zero_at_the_start_unless_tied() -> None:
    blur = rand(1, 3, 48, 48).float()
    assert network(lambda_e=0.001).train()(blur).error_share > 0.01
    assert network(lambda_3=0.9, tied_lambda_e=True).train()(blur).error_share == 0


def test_every_part_learns_from_the_second_stage_on() -> None:
    """E reaches X in its own stage, D_f through P in the next; without one it is not made."""
    assert not network(stages=1).error_priors
    model = network(stages=2)
    starts_at_zero = [unet.tail for unet in (*model.priors, *model.error_priors)]
    estimator = model.estimator
    starts_at_zero += [estimator.to_weights, estimator.to_confidence, estimator.to_kernels]
    for part in starts_at_zero:
        torch.nn.init.normal_(part.weight, std=0.1)
    blur, sharp = rand(1, 3, 24, 24).float(), rand(1, 3, 24, 24, seed=1).float()
    era_loss(model(blur, reblur=True), blur, sharp).total.sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert silent == []


def awake(model: ErA) -> ErA:
    """The network with weights where it starts with zeros: as if it had learned."""
    for unet in (*model.priors, *model.error_priors):
        torch.nn.init.normal_(unet.tail.weight, std=0.02)
    torch.nn.init.normal_(model.estimator.to_weights.weight, std=1.0)
    torch.nn.init.normal_(model.estimator.to_kernels.weight, std=0.3)
    return model


def test_bf16_is_near_float32() -> None:
    model, blur = awake(network()).eval(), rand(1, 3, 48, 48).float()
    with torch.no_grad():
        exact = model(blur)
        with torch.autocast("cpu", torch.bfloat16):
            near = model(blur)
    assert (exact.weights - exact.weights.mean((-2, -1), keepdim=True)).abs().max() > 0.05
    assert (exact.restored - blur).abs().max() > 0.1
    assert (exact.restored - near.restored).abs().max() < 0.01
    assert (exact.weights - near.weights).abs().max() < 0.005
    assert (exact.kernels - near.kernels).abs().max() < 0.0005


def test_features_and_kernels_leave_autocast() -> None:
    """After an 18 pixel disk the finest band holds less than bfloat16 can tell."""
    scene = torch.nn.functional.pad(rand(1, 3, 64, 64).float(), (18, 18, 18, 18), mode="reflect")
    blur = torch.nn.functional.conv2d(
        scene, disk(18.0, 37)[None, None].expand(3, 1, 37, 37), groups=3
    )
    bank = PsfBank(3, 7, 3.0)
    parts = bank.disks, bank.gaussians, bank.bases, 4 * rand(1, 3, 4).float()
    features, kernels = blur_features(blur), corrected(*parts)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(blur_features(blur), features)
        assert torch.equal(corrected(*parts), kernels)


def test_weight_map_has_no_checkerboard() -> None:
    """Where an image is the same everywhere, so is the map, away from the border."""
    model = awake(network()).eval()
    torch.nn.init.normal_(model.estimator.network.head.bias)
    with torch.no_grad():
        coarse = model.estimate(torch.full((1, 3, 256, 256), 0.3)).coarse
    inside = coarse[..., 20:-20, 20:-20]
    assert inside.shape[-1] == 24
    assert (inside - inside[..., :1, :1]).abs().max() < 1e-5
    assert (coarse - inside[..., :1, :1]).abs().max() > 1e-3  # the border is another matter


@pytest.mark.parametrize("radius", [4.0, 6.0])
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_a_disk_leaves_its_dark_ring_in_any_picture(radius: float, slope: float) -> None:
    """At 0.61 / radius cycles per pixel, the first zero of 2 J1(v) / v, for white noise and 1/f."""
    size = 160
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size))
    spectrum = torch.fft.rfft2(rand(size, size).float() - 0.5)
    scene = torch.fft.irfft2(spectrum / frequency.clamp_min(1 / size) ** slope)
    scene = (scene / scene.std() / 8 + 0.5)[None, None].expand(1, 3, -1, -1)
    blur = torch.nn.functional.conv2d(
        scene, disk(radius, 15)[None, None].expand(3, 1, 15, 15), groups=3
    )
    sharp, blurred = (blur_features(x)[0, 11:][:RINGS] for x in (scene[..., 7:-7, 7:-7], blur))
    centres = torch.linspace(*RING_RANGE, RINGS)
    near = (centres > 0.3 / radius) & (centres < 0.9 / radius)
    darkest = (blurred - sharp).mean((1, 2))[near].argmin()
    assert 0 < darkest < near.sum() - 1
    spacing = float(centres[1] - centres[0])
    assert abs(float(centres[near][darkest]) - 0.61 / radius) < 1.25 * spacing


def test_without_confidence_the_prior_stands_alone() -> None:
    model = awake(network(stages=2)).eval()
    blur = rand(1, 3, 40, 40).float()
    nothing = torch.zeros(1, 1, 40, 40)
    with torch.no_grad():
        trusted, doubted = model(blur), model(blur, confidence=nothing)
        model.config = replace(model.config, data_step=False)
        alone = model(blur)
    assert (trusted.restored - alone.restored).abs().max() > 0.01
    assert (doubted.error == 0).all()
    torch.testing.assert_close(doubted.restored, alone.restored, rtol=0, atol=1e-4)


def test_tile_with_the_whole_estimate_sees_the_same_weights() -> None:
    model = network().eval()
    blur = rand(1, 3, 64, 80).float()
    estimate = model.estimate(blur)
    whole = estimate.weights(0, 0, 64, 80)
    torch.testing.assert_close(estimate.weights(13, 22, 30, 41), whole[..., 13:43, 22:63])
    torch.nn.init.normal_(model.estimator.to_confidence.weight)
    estimate = model.estimate(blur)
    whole = estimate.confidence(0, 0, 64, 80)
    assert whole.std() > 0.01
    torch.testing.assert_close(estimate.confidence(13, 22, 30, 41), whole[..., 13:43, 22:63])


def test_starts_near_the_blurred_image() -> None:
    blur = rand(1, 3, 32, 32).float()
    smooth = torch.nn.functional.avg_pool2d(blur, 9, 1, 4, count_include_pad=False)
    assert (network().eval()(smooth).restored - smooth).abs().mean() < 0.05


def test_clamped_in_eval_mode_only() -> None:
    model = network()
    torch.nn.init.constant_(model.priors[0].tail.bias, 3.0)
    blur = rand(1, 3, 16, 16).float()
    assert model.train()(blur).restored.max() > 1
    assert model.eval()(blur).restored.max() <= 1


def test_costs_are_counted_without_computing() -> None:
    tiny = cost(named_config("tiny"), 256, 256)
    assert tiny.parameters == sum(p.numel() for p in ErA(named_config("tiny")).parameters())
    twice = cost(named_config("tiny"), 512, 512)
    assert 3.3 < twice.macs / tiny.macs < 4.5
    assert cost(named_config("paper"), 720, 1280).convolution_macs > 1e13


def test_configuration_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="did you mean stages"):
        named_config("tiny", stage=3)
    with pytest.raises(ValueError, match="kernel_size"):
        named_config("tiny", kernel_size=4)
    with pytest.raises(ValueError, match="at most"):
        named_config("tiny", radius_max=40.0)
    with pytest.raises(ValueError, match="prior must be one of resunet, unet"):
        named_config("tiny", prior="nafnet")
    with pytest.raises(ValueError, match="unknown size"):
        named_config("huge")
    assert ErAConfig.from_dict(SMALL.to_dict()) == SMALL


def test_a_network_that_fits_no_machine_is_refused_before_it_is_built() -> None:
    with pytest.raises(ValueError, match=r"parameters; at most 2,147,483,648"):
        named_config("tiny", prior_channels=(32768, 65536, 65536))
    for patch in (10**11, 8193, 15):
        with pytest.raises(UserError, match=r"train\.patch must list sizes of 16 to 8192 pixels"):
            load_train_config("tiny", [f"train.patch=[{patch}]"])


@pytest.mark.parametrize(
    "blur",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(1, 4, 8, 8),
        torch.zeros(0, 3, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 8, dtype=torch.float16),
        np.zeros((1, 3, 8, 8), np.float32),
    ],
)
def test_what_is_no_batch_of_images_is_refused(blur: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"expected a float tensor \(B, 3, H, W\) in \[0, 1\], got"
    ):
        ErA(named_config("tiny"))(blur)


def test_luminance_is_not_rounded_to_a_half_type() -> None:
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = luminance(image)
    assert torch.equal(found, luminance(image))
