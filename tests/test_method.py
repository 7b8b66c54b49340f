"""The method against mathematics, in float64: what docs/method.md claims."""

from __future__ import annotations

import pytest
import torch
from small_network import blur_of, dense, rand
from torch import Tensor

from era import SpatiallyVaryingBlur
from era.canvas import Canvas, fast_size
from era.psf import disk
from era.updates import (
    X_FORMS,
    Penalties,
    XProblem,
    soft_threshold,
    update_delta,
    update_e,
    update_gamma,
    update_omega,
    update_p,
    update_p_paper,
    update_u,
    update_x_paper,
    update_x_pcg,
    update_z,
)

LAM = Penalties(0.7, 0.3, 0.4, 0.05)


# H


def test_adjoint() -> None:
    H = blur_of(batch=2)
    x, y = rand(2, 3, 12, 15, seed=3), rand(2, 3, 12, 15, seed=4)
    left, right = (H.apply(x) * y).sum(), (x * H.adjoint(y)).sum()
    assert abs(left - right) / abs(left) < 1e-10


def test_apply_is_the_sum_of_weighted_circular_convolutions() -> None:
    H = blur_of(height=8, width=9)
    x = rand(1, 1, 8, 9, seed=3)
    h = rand(1, 3, 5, 5, seed=1)
    h = h / h.sum((-2, -1), keepdim=True)
    expected = torch.zeros(8, 9, dtype=torch.float64)
    for k in range(3):
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                shifted = torch.roll(x[0, 0], (dy, dx), (0, 1))
                expected += H.weights[0, k] * h[0, k, dy + 2, dx + 2] * shifted
    torch.testing.assert_close(H.apply(x)[0, 0], expected)


def test_constants_stay_constant() -> None:
    grey = torch.full((1, 1, 12, 15), 0.4, dtype=torch.float64)
    assert (blur_of().apply(grey) - grey).abs().max() < 1e-14


def test_identity() -> None:
    h = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    h[..., 2, 2] = 1
    H = SpatiallyVaryingBlur(h, torch.ones(1, 1, 12, 15, dtype=torch.float64))
    x = rand(1, 3, 12, 15)
    torch.testing.assert_close(H.apply(x), x)
    torch.testing.assert_close(H.adjoint(x), x)
    torch.testing.assert_close(H.spectrum("mean"), torch.ones_like(H.spectrum("mean")))


def test_max_spectrum_majorises() -> None:
    """No x has more energy after H than S promises (Jensen)."""
    H = blur_of()
    matrix = dense(H.apply, 12, 15)
    bound = dense(lambda e: H.divide(e, 1 / H.spectrum("max")), 12, 15)
    least = torch.linalg.eigvalsh(bound - matrix.T @ matrix).min()
    assert least > -1e-12


def test_gram_spectrum_is_the_nearest_circulant() -> None:
    H = blur_of(height=6, width=7)
    matrix = dense(H.apply, 6, 7)
    normal = (matrix.T @ matrix).view(6, 7, 6, 7)
    places = [(y, x) for y in range(6) for x in range(7)]
    shifted = [torch.roll(normal[:, :, y, x], (-y, -x), (0, 1)) for y, x in places]
    circulant = torch.stack(shifted).mean(0)
    torch.testing.assert_close(torch.fft.rfft2(circulant).real, H.spectrum("gram")[0, 0])


def test_half_types_are_raised_and_autocast_is_left() -> None:
    H = SpatiallyVaryingBlur(
        blur_of().inverse(blur_of().otf)[..., :5, :5].abs().half(), blur_of().weights.half()
    )
    x = rand(1, 3, 12, 15).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert H.apply(x).dtype == torch.float32
        assert H.adjoint(x).dtype == torch.float32


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        SpatiallyVaryingBlur(rand(1, 2, 4, 4), rand(1, 2, 8, 8))
    with pytest.raises(ValueError, match="weights"):
        SpatiallyVaryingBlur(rand(1, 2, 3, 3), rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="square"):
        SpatiallyVaryingBlur(rand(1, 2, 4, 3), rand(1, 2, 8, 8))
    H, other = SpatiallyVaryingBlur(rand(1, 2, 3, 3), rand(1, 2, 8, 8)), rand(1, 3, 8, 9)
    for use in (H.apply, H.adjoint, lambda x: H.divide(x, 1.0), lambda x: H.wiener(x, x, 1.0)):
        with pytest.raises(ValueError, match=r"\(1, 3, 8, 9\): expected \(B, C, H, W\) of size"):
            use(other)  # its spectrum has the shape of H's


# The updates: each closed form zeroes the gradient of the augmented Lagrangian


class State:
    """A random point of the augmented Lagrangian, with quadratic phi and f."""

    def __init__(self) -> None:
        self.H = blur_of()
        names = ("X", "Y", "Z", "U", "E", "P", "Gamma", "Omega", "Delta")
        for seed, name in enumerate(names):
            setattr(self, name, rand(1, 2, 12, 15, seed=10 + seed) - 0.4)
        self.M = torch.zeros(1, 1, 12, 15, dtype=torch.float64)
        self.M[..., 2:10, 3:12] = 1

    def problem(self) -> XProblem:
        HX = self.H.apply(self.X)
        return XProblem(self.H, self.X, HX, self.U, self.Z, self.Gamma, self.Omega, LAM)

    def lagrangian(self, **changed: Tensor) -> Tensor:
        """L without phi, f and the l1 term."""
        v = {**self.__dict__, **changed}
        HX = self.H.apply(v["X"])
        return (
            0.5 * (v["M"] * (v["U"] - v["Y"] + v["E"]).square()).sum()
            + (v["Gamma"] * (HX - v["U"])).sum()
            + LAM.l1 / 2 * (HX - v["U"]).square().sum()
            + (v["Omega"] * (v["X"] - v["Z"])).sum()
            + LAM.l2 / 2 * (v["X"] - v["Z"]).square().sum()
            + (v["Delta"] * (v["E"] - v["P"])).sum()
            + LAM.l3 / 2 * (v["E"] - v["P"]).square().sum()
        )

    def gradient(self, name: str, value: Tensor, extra=lambda v: 0.0) -> Tensor:
        value = value.detach().requires_grad_()
        total = self.lagrangian(**{name: value}) + extra(value)
        return torch.autograd.grad(total, value)[0]


def test_u_zeroes_its_gradient() -> None:
    s = State()
    U = update_u(s.H.apply(s.X), s.Gamma, s.Y, s.E, s.M, LAM)
    assert s.gradient("U", U).abs().max() < 1e-14


def test_z_and_p_are_proximal_points() -> None:
    """With phi = a/2 |Z|^2 the prox of phi / lambda is v lambda / (lambda + a)."""
    s, a = State(), 0.8
    quadratic = lambda v: a / 2 * v.square().sum()  # noqa: E731
    Z = update_z(s.X, s.Omega, LAM, lambda v: v * LAM.l2 / (LAM.l2 + a))
    assert s.gradient("Z", Z, quadratic).abs().max() < 1e-14
    prox = lambda v: v * LAM.l3 / (LAM.l3 + a)  # noqa: E731
    P = update_p(s.E, s.Delta, s.P, LAM, prox)
    assert s.gradient("P", P, quadratic).abs().max() < 1e-14
    printed = update_p_paper(s.E, s.Delta, s.P, LAM, prox)
    assert s.gradient("P", printed, quadratic).abs().max() > 0.1


def test_e_and_u_are_the_joint_minimiser() -> None:
    """With a confidence below one inside the photograph, as the network gives it."""
    s = State()
    s.M = 0.2 + 0.8 * rand(1, 1, 12, 15, seed=30)
    HX = s.H.apply(s.X)
    E = update_e(s.Y, HX, s.Gamma, s.Delta, s.P, s.M, LAM)
    s.U = update_u(HX, s.Gamma, s.Y, E, s.M, LAM)
    s.E = E
    assert s.gradient("U", s.U).abs().max() < 1e-14
    gradient = s.gradient("E", E)
    zero = E == 0
    assert 0 < zero.double().mean() < 1
    assert (gradient[zero].abs() <= LAM.lE + 1e-14).all()
    torch.testing.assert_close(gradient[~zero], -LAM.lE * E[~zero].sign())


def test_e_is_zero_outside_the_photograph() -> None:
    s = State()
    E = update_e(s.Y, s.H.apply(s.X), s.Gamma, s.Delta, s.P, s.M, LAM)
    assert (E * (s.M == 0) == 0).all()
    assert (E * (s.M > 0) != 0).any()


@pytest.mark.parametrize(("form", "steps"), [("pcg", 40), ("majorised", 400)])
def test_x_forms_reach_the_exact_minimiser(form: str, steps: int) -> None:
    s = State()
    X = X_FORMS[form](s.problem(), steps)
    assert s.gradient("X", X).abs().max() < 1e-9


@pytest.mark.parametrize("form", ["wiener", "pcg", "majorised", "paper"])
def test_one_kernel_gives_the_posters_x(form: str) -> None:
    """K = 1 makes H one circular convolution, for which every form is the printed formula."""
    s = State()
    s.H = blur_of(kernels=1)
    X = X_FORMS[form](s.problem(), 1)
    assert s.gradient("X", X).abs().max() < 1e-13


def test_printed_x_misses_for_varying_blur() -> None:
    s = State()
    problem = s.problem()
    printed = s.gradient("X", update_x_paper(problem)).abs().max()
    assert printed > 10 * s.gradient("X", update_x_pcg(problem, 4)).abs().max()


def test_multipliers_ascend() -> None:
    s = State()
    HX = s.H.apply(s.X)
    torch.testing.assert_close(update_gamma(s.Gamma, HX, s.U, LAM), s.Gamma + 0.7 * (HX - s.U))
    torch.testing.assert_close(update_omega(s.Omega, s.X, s.Z, LAM), s.Omega + 0.3 * (s.X - s.Z))
    torch.testing.assert_close(update_delta(s.Delta, s.E, s.P, LAM), s.Delta + 0.4 * (s.E - s.P))


def test_soft_threshold_has_finite_gradients_at_zero() -> None:
    v = torch.tensor([-1.0, -0.1, 0.0, 0.1, 1.0], requires_grad=True)
    out = soft_threshold(v, 0.2)
    out.sum().backward()
    torch.testing.assert_close(out, torch.tensor([-0.8, 0.0, 0.0, 0.0, 0.8]))
    assert torch.isfinite(v.grad).all()


# The canvas


def test_fast_sizes_have_small_primes() -> None:
    assert [fast_size(n) for n in (7, 11, 200, 201)] == [8, 12, 200, 216]
    assert fast_size(130, 8) == 144


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 40), (33, 17)])
def test_canvas_holds_and_returns_the_photograph(height: int, width: int) -> None:
    canvas = Canvas.around(height, width, 10, 4)
    image = rand(1, 3, height, width)
    assert torch.equal(canvas.crop(canvas.extend(image)), image)
    mask = canvas.zero_pad(torch.ones_like(image[:, :1]))
    assert mask.sum() == canvas.crop(mask).sum() == height * width
    assert all(side % 4 == 0 for side in canvas.size)


def test_disk_has_its_radius() -> None:
    kernel = disk(3.0, 9).double()
    offsets = torch.arange(9) - 4
    second = (kernel * (offsets[:, None] ** 2 + offsets**2)).sum()
    assert abs(kernel.sum() - 1) < 1e-6
    assert abs(second - 3.0**2 / 2) < 0.3
