"""The network's own loop and its loss against mathematics done by hand, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small_network import SMALL, blur_of, dense, rand
from torch import Tensor, nn

from era import (
    ErA,
    ErAConfig,
    Output,
    SpatiallyVaryingBlur,
    era_loss,
    parameter_groups,
    radius_loss,
)
from era.estimator import luminance
from era.updates import X_FORMS, Penalties, XProblem

HEIGHT, WIDTH = 6, 7
IN_RGB = replace(SMALL, luminance=False)
SCALARS = [
    (0.7, 0.3, 0.4, 0.06),
    (0.9, 0.2, 0.5, 0.04),
    (0.5, 0.4, 0.3, 0.05),
    (1.1, 0.1, 0.6, 0.03),
]


class Scale(nn.Module):
    """The proximal operator of a quadratic: v -> share v."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, v: Tensor) -> Tensor:
        return self.share * v


def unrolled(
    config: ErAConfig, scalars: list[tuple[float, ...]], phi: list[float], f: list[float]
) -> ErA:
    """The network with given scalars for each stage and quadratic priors."""
    model = ErA(config).double().train()
    model.scalars.raw.data = torch.tensor(scalars, dtype=torch.float64).expm1().log()
    model.priors = nn.ModuleList(Scale(share) for share in phi)
    model.error_priors = nn.ModuleList(Scale(share) for share in f)
    return model


def problem() -> tuple[Tensor, Tensor]:
    """Y with an error in it, and M with a margin."""
    Y = blur_of(height=HEIGHT, width=WIDTH).apply(rand(1, 3, HEIGHT, WIDTH, seed=5))
    M = torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.float64)
    M[..., 1:5, 1:6] = 0.8
    return Y + 0.3 * rand(1, 3, HEIGHT, WIDTH, seed=6), M


def columns(image: Tensor) -> Tensor:
    """(1, C, H, W) as one column for each colour."""
    return image[0].flatten(1).T


def test_loop_is_the_one_done_by_hand_with_matrices() -> None:
    """Scalars and priors of every stage, the data's weight, E in U, all multipliers, E's share."""
    H = blur_of(height=HEIGHT, width=WIDTH)
    Y, M = problem()
    phi, f = [0.9, 0.7, 0.8, 0.6], [0.5, 0.7, 0.6, 0.8]
    config = replace(IN_RGB, stages=4, share_priors=False, x_form="pcg", x_steps=60)
    X, E, share = unrolled(config, SCALARS, phi, f)._solve(Y, M, H)

    A, y, m = dense(H.apply, HEIGHT, WIDTH), columns(Y), columns(M)
    eye = torch.eye(len(A), dtype=torch.float64)
    x, e, p, gamma, omega, delta = y, *(torch.zeros_like(y) for _ in range(5))
    shares = []
    for stage, (l1, l2, l3, lE) in enumerate(SCALARS):
        z = phi[stage] * (x + omega / l2)
        s = m * l1 / (m + l1)
        v = s * (y - A @ z - gamma / l1) - delta + l3 * p
        e = (m > 0) * v.sign() * (v.abs() - lE).clamp_min(0) / (s + l3)
        u = (l1 * A @ z + gamma + m * (y - e)) / (m + l1)
        right = A.T @ (l1 * u - gamma) - omega + l2 * z
        x = torch.linalg.solve(l1 * A.T @ A + l2 * eye, right)
        p = f[stage] * (e + delta / l3)
        gamma, omega = gamma + l1 * (A @ x - u), omega + l2 * (x - z)
        delta = delta + l3 * (e - p)
        shares.append(float((e != 0).sum() / (3 * (m > 0).sum())))
    assert 0.1 < shares[0] < 0.9  # the threshold is at work
    torch.testing.assert_close(columns(X), x, rtol=0, atol=1e-9)
    torch.testing.assert_close(columns(E), e, rtol=0, atol=1e-9)
    assert float(share) == pytest.approx(sum(shares) / 4)


def test_in_luminance_the_data_step_moves_all_colours_alike() -> None:
    """The same loop on the luminance of a grey picture is the loop in RGB."""
    H = blur_of(height=HEIGHT, width=WIDTH)
    Y, M = problem()
    phi, f = [0.9, 0.7, 0.8, 0.6], [0.5, 0.7, 0.6, 0.8]
    config = replace(IN_RGB, stages=4, share_priors=False)
    grey = luminance(Y).expand(-1, 3, -1, -1)
    X, E, _ = unrolled(config, SCALARS, phi, f)._solve(grey, M, H)
    model = unrolled(replace(config, luminance=True), SCALARS, phi, f)
    X1, E1, _ = model._solve(grey, M, H)
    torch.testing.assert_close(X1, X)
    torch.testing.assert_close(E1, E[:, :1])
    identity = unrolled(replace(config, luminance=True), SCALARS, [1.0] * 4, f)
    X2, _, _ = identity._solve(Y, M, H)
    moved = X2 - Y
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved))
    assert moved.abs().max() > 1e-3


def solved(p_form: str, stages: int) -> float:
    """Relative error of the loop's X against the dense joint minimiser of

    1/2 |H X - Y + E|_M^2 + a/2 |X|^2 + b/2 |E|^2 (lambda_E is nearly nothing).
    """
    a, b, (l1, l2, l3) = 0.05, 0.5, (1.0, 0.1, 0.3)
    H = blur_of(height=HEIGHT, width=WIDTH)
    Y, M = problem()
    A, y, m = dense(H.apply, HEIGHT, WIDTH), columns(Y), columns(M)
    # E = M (Y - H X) / (M + b) in closed form; outside M nothing is claimed.
    weighted = (b * m / (m + b) * A).T
    exact = torch.linalg.solve(
        weighted @ A + a * torch.eye(len(A), dtype=torch.float64), weighted @ y
    )
    config = replace(IN_RGB, stages=stages, x_form="pcg", x_steps=3, p_form=p_form)
    scalars = [(l1, l2, l3, 1e-12)] * stages
    model = unrolled(config, scalars, [l2 / (l2 + a)], [l3 / (l3 + b)])
    with torch.no_grad():
        X = model._solve(Y, M, H)[0]
    return float((columns(X) - exact).norm() / exact.norm())


def test_loop_reaches_the_dense_minimiser() -> None:
    assert solved("derived", 1) > 0.1
    assert solved("derived", 100) < 1e-9


def test_loop_with_the_printed_p_never_arrives() -> None:
    assert min(solved("paper", stages) for stages in (30, 100, 300)) > 0.5


def test_majorised_step_divides_by_the_bound() -> None:
    """X - F^-1[ F(dL/dX) / (lambda_1 sum_k max(w_k) |F h_k|^2 + lambda_2) ], by plain FFTs."""
    H = blur_of(height=HEIGHT, width=WIDTH)
    lam = Penalties(0.7, 0.3, 0.4, 0.05)
    X, U, Z, Gamma, Omega = (rand(1, 3, HEIGHT, WIDTH, seed=20 + n) for n in range(5))
    gradient = H.adjoint(Gamma + lam.l1 * (H.apply(X) - U)) + Omega + lam.l2 * (X - Z)
    h = rand(1, 3, 5, 5, seed=1)
    padded = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.float64)
    padded[:, :5, :5] = (h / h.sum((-2, -1), keepdim=True))[0]
    spectra = torch.fft.fft2(padded).abs().square()
    bound = (H.weights[0].amax((-2, -1))[:, None, None] * spectra).sum(0)
    step = torch.fft.ifft2(torch.fft.fft2(gradient) / (lam.l1 * bound + lam.l2)).real
    found = X_FORMS["majorised"](XProblem(H, X, H.apply(X), U, Z, Gamma, Omega, lam), 1)
    torch.testing.assert_close(found, X - step)


# The loss


def output_of(restored: float, reblurred: float, weights: Tensor | None = None) -> Output:
    images = (torch.full((2, 3, 4, 5), value) for value in (restored, reblurred))
    X, HX = images
    return Output(
        restored=X,
        kernels=torch.ones(2, 3, 1, 1),
        weights=torch.full((2, 3, 4, 5), 1 / 3) if weights is None else weights,
        error=torch.zeros_like(X),
        reblurred=HX,
        error_share=torch.zeros(()),
    )


def test_loss_by_hand() -> None:
    sharp, blur = torch.full((2, 3, 4, 5), 0.5), torch.full((2, 3, 4, 5), 0.3)
    sharp[1] = 0.9
    loss = era_loss(output_of(0.7, 0.7), blur, sharp, omega=0.25)
    torch.testing.assert_close(loss.restored, torch.tensor([0.2, 0.2]))
    torch.testing.assert_close(loss.reblurred, torch.tensor([0.4, 0.4]))
    torch.testing.assert_close(loss.total, torch.full((2,), 0.25 * 0.2 + 0.75 * 0.4))
    with pytest.raises(ValueError, match="reblur=True"):
        era_loss(replace(output_of(0.7, 0.7), reblurred=None), blur, sharp)
    relative = era_loss(output_of(0.7, 0.7), blur, sharp, omega=1.0, relative=0.1)
    torch.testing.assert_close(relative.total, torch.tensor([0.2 / 0.3, 0.2 / 0.7]))


def test_radius_term_by_hand() -> None:
    """Cross-entropy with shares between neighbours of the bank; unknown places do not count."""
    radii = torch.tensor([0.0, 2.0, 4.0])
    weights = torch.tensor([0.2, 0.3, 0.5]).view(1, 3, 1, 1).expand(1, 3, 1, 4)
    true = torch.tensor([1.0, 3.5, 9.0, math.nan]).view(1, 1, 1, 4)
    half_way = -0.5 * math.log(0.2) - 0.5 * math.log(0.3)
    near_the_last = -0.25 * math.log(0.3) - 0.75 * math.log(0.5)
    expected = torch.tensor([(half_way + near_the_last - math.log(0.5)) / 3])
    torch.testing.assert_close(radius_loss(weights, radii, true), expected, rtol=1e-4, atol=0)
    nothing = torch.full_like(true, math.nan)
    assert radius_loss(weights, radii, nothing) == 0
    assert radius_loss(weights[..., :1], radii[:1], true[..., :1]).isfinite().all()

    output = replace(output_of(0.5, 0.3), weights=weights)
    images = torch.full((2, 3, 4, 5), 0.5), torch.full((2, 3, 4, 5), 0.3)
    loss = era_loss(output, images[1], images[0], 0.5, 2.0, true, radii)
    torch.testing.assert_close(loss.total, (2 * expected).expand(2), rtol=1e-4, atol=0)


def test_second_term_moves_the_prediction_through_h() -> None:
    """d/dt |H X(t) - Y|_1 by autograd and by differences, t in the prior; H X is not detached."""
    torch.manual_seed(0)
    model = ErA(SMALL).double().train()
    for part in (*model.priors, *model.error_priors):
        nn.init.normal_(part.tail.weight, std=0.05)
    blur, sharp = rand(1, 3, 24, 24), rand(1, 3, 24, 24, seed=1)
    parameter = model.priors[0].tail.bias

    def second_term() -> Tensor:
        return era_loss(model(blur, reblur=True), blur, sharp, omega=0.0).total.sum()

    second_term().backward()
    slope = float(parameter.grad.norm())
    direction = parameter.grad / slope
    found = []
    for t in (1e-6, -1e-6):
        parameter.data += t * direction
        found.append(float(second_term().detach()))
        parameter.data -= t * direction
    assert abs(slope) > 1e-2
    assert slope == pytest.approx((found[0] - found[1]) / 2e-6, rel=1e-3)


def test_second_term_is_blurred_on_the_canvas() -> None:
    """Without a data step and with the priors' start as identity, X is Y laid on the canvas."""
    torch.manual_seed(0)
    model = ErA(replace(SMALL, data_step=False)).double().train()
    blur = rand(1, 3, 18, 21)
    output = model(blur, reblur=True)
    canvas = model.canvas(18, 21)
    H = SpatiallyVaryingBlur(output.kernels, canvas.extend_edge(output.weights))
    torch.testing.assert_close(output.restored, blur)
    torch.testing.assert_close(output.reblurred, canvas.crop(H.apply(canvas.extend(blur))))
    assert (output.reblurred - blur).abs().max() > 0.01


def test_scalars_learn_faster_in_a_group_of_their_own() -> None:
    model = ErA(SMALL)
    networks, scalars = parameter_groups(model, 20.0)
    assert (networks["rate"], scalars["rate"]) == (1.0, 20.0)
    assert [id(p) for p in scalars["params"]] == [id(model.scalars.raw)]
    named = {id(p) for n, p in model.named_parameters() if n != "scalars.raw"}
    assert {id(p) for p in networks["params"]} == named
