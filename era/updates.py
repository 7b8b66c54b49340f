"""The updates of the augmented Lagrangian, one pure function each (docs/method.md has the proofs).

    L = 1/2 |U - Y + E|_M^2 + phi(Z) + lambda_E |E|_1 + f(P)
        + <Gamma, H X - U> + lambda_1/2 |H X - U|^2
        + <Omega, X - Z>   + lambda_2/2 |X - Z|^2
        + <Delta, E - P>   + lambda_3/2 |E - P|^2

All tensors are (B, C, H, W) on the canvas. M is the weight of the data term: the confidence, at
most 1, inside the photograph, and 0 outside. Order within a stage: Z, which replaces X until X is
updated; E and U together; X; P; multipliers. Equation numbers are the paper's (arXiv 2606.06540).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from era.blur import SpatiallyVaryingBlur

Scalar = Tensor | float
Prox = Callable[[Tensor], Tensor]


class Penalties(NamedTuple):
    """The positive scalars of one stage: lambda_1, lambda_2, lambda_3 and lambda_E."""

    l1: Scalar
    l2: Scalar
    l3: Scalar
    lE: Scalar


def update_u(HX: Tensor, Gamma: Scalar, Y: Tensor, E: Scalar, M: Tensor, lam: Penalties) -> Tensor:
    """U = (lambda_1 H X + Gamma + M (Y - E)) / (M + lambda_1): eq. (5), with M.

    Outside the photograph (M = 0) U equals H X + Gamma / lambda_1: nothing is known there.

    >>> one, lam = torch.ones(1, 1, 2, 2), Penalties(0.5, 0.1, 0.1, 0.1)
    >>> U = update_u(HX=0.2 * one, Gamma=0.0, Y=0.8 * one, E=0.0, M=one, lam=lam)
    >>> torch.allclose(U, 0.6 * one)  # (0.5 * 0.2 + 0.8) / 1.5
    True
    >>> torch.equal(update_u(0.2 * one, 0.0, 0.8 * one, 0.0, 0 * one, lam), 0.2 * one)
    True
    """
    return (lam.l1 * HX + Gamma + M * (Y - E)) / (M + lam.l1)


def update_z(X: Tensor, Omega: Scalar, lam: Penalties, prox_phi: Prox) -> Tensor:
    """Z = D_phi(X + Omega / lambda_2), the prox of phi / lambda_2; missing on the poster.

    >>> update_z(torch.ones(2), 0.5, Penalties(1.0, 0.25, 1.0, 1.0), prox_phi=lambda x: x / 2)
    tensor([1.5000, 1.5000])
    """
    return prox_phi(X + Omega / lam.l2)


class XProblem(NamedTuple):
    """The input of an X update, which minimises L over X for these U, Z, Gamma, Omega from X."""

    H: SpatiallyVaryingBlur
    X: Tensor
    HX: Tensor
    U: Tensor
    Z: Tensor
    Gamma: Scalar
    Omega: Scalar
    lam: Penalties

    def right_side(self) -> Tensor:
        """H'(lambda_1 U - Gamma) - Omega + lambda_2 Z."""
        lam = self.lam
        return self.H.adjoint(lam.l1 * self.U - self.Gamma) - self.Omega + lam.l2 * self.Z

    def normal(self, x: Tensor) -> Tensor:
        """(lambda_1 H'H + lambda_2 I) x; the exact X solves normal(X) = right_side."""
        return self.lam.l1 * self.H.adjoint(self.H.apply(x)) + self.lam.l2 * x

    def gradient(self) -> Tensor:
        """dL/dX at X: H'(Gamma + lambda_1 (H X - U)) + Omega + lambda_2 (X - Z)."""
        lam = self.lam
        inner = self.Gamma + lam.l1 * (self.HX - self.U)
        return self.H.adjoint(inner) + self.Omega + lam.l2 * (self.X - self.Z)

    def stepped(self, step: Tensor) -> XProblem:
        """The same problem at X + step."""
        X = self.X + step
        return self._replace(X=X, HX=self.H.apply(X))


def update_x_wiener(problem: XProblem, steps: int = 1) -> Tensor:
    """X + sum_k w_k F^-1[ (conj(F h_k) F(r) - F(d)) / (|F h_k|^2 + lambda_2/lambda_1) ].

    r = U - Gamma / lambda_1 - H X is the part that X does not explain, d = (Omega + lambda_2
    (X - Z)) / lambda_1 pulls X back to Z; every pixel has its own Wiener filters. Exact for a
    single kernel. Not on the poster: it needs no adjoint and is the cheapest form.

    >>> from era.psf import disk
    >>> x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> H = SpatiallyVaryingBlur(disk(2.0, 5)[None, None], torch.ones(1, 1, 16, 16))
    >>> problem = XProblem(H, x, H.apply(x), x, x, 0.0, 0.0, Penalties(1.0, 0.1, 1.0, 1.0))
    >>> X = update_x_wiener(problem)
    >>> torch.allclose(problem.normal(X), problem.right_side(), atol=1e-5)  # the minimiser
    True
    """
    H, lam = problem.H, problem.lam

    def change(at: XProblem) -> Tensor:
        residual = at.U - at.Gamma / lam.l1 - at.HX
        pull = (at.Omega + lam.l2 * (at.X - at.Z)) / lam.l1
        return H.wiener(residual, pull, lam.l2 / lam.l1)

    return _stepped(problem, steps, change)


def update_x_majorised(problem: XProblem, steps: int = 1) -> Tensor:
    """X = X - F^-1[ F(dL/dX) / (lambda_1 S + lambda_2) ], S the ``max`` spectrum, never below H'H.

    The poster's step, corrected: its fixed point is the exact minimiser, and it cannot diverge.
    """
    denominator = problem.lam.l1 * problem.H.spectrum("max") + problem.lam.l2
    return _stepped(problem, steps, lambda at: -at.H.divide(at.gradient(), denominator))


def update_x_pcg(problem: XProblem, steps: int = 2) -> Tensor:
    """`steps` of conjugate gradients from X, preconditioned by lambda_1 S + lambda_2 (``gram``)."""
    denominator = problem.lam.l1 * problem.H.spectrum("gram") + problem.lam.l2
    X = problem.X
    residual = -problem.gradient()
    z = direction = problem.H.divide(residual, denominator)
    rz = _inner(residual, z)
    for step in range(steps):
        A_direction = problem.normal(direction)
        alpha = rz / _inner(direction, A_direction).clamp_min(_tiny(rz))
        X = X + alpha * direction
        if step + 1 < steps:
            residual = residual - alpha * A_direction
            z = problem.H.divide(residual, denominator)
            rz, rz_before = _inner(residual, z), rz
            direction = z + rz / rz_before.clamp_min(_tiny(rz)) * direction
    return X


def update_x_paper(problem: XProblem, steps: int = 1) -> Tensor:
    """X = F^-1[ F(H'(lambda_1 U - Gamma) - Omega + lambda_2 Z) / (lambda_1 F(H)^2 + lambda_2) ].

    Eq. (6) as printed, with F(H) taken as the spectrum of the mean blur. Exact only for a single
    uniform kernel (K = 1); for comparison.
    """
    denominator = problem.lam.l1 * problem.H.spectrum("mean") + problem.lam.l2
    return problem.H.divide(problem.right_side(), denominator)


X_FORMS: dict[str, Callable[[XProblem, int], Tensor]] = {
    "wiener": update_x_wiener,
    "majorised": update_x_majorised,
    "pcg": update_x_pcg,
    "paper": update_x_paper,
}


def soft_threshold(v: Tensor, threshold: Scalar) -> Tensor:
    """sign(v) max(|v| - threshold, 0), written so that its gradient is finite everywhere.

    >>> soft_threshold(torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0]), 1.0).abs()
    tensor([1., 0., 0., 0., 1.])
    """
    limit = torch.as_tensor(threshold, dtype=v.dtype, device=v.device)
    return v - torch.minimum(torch.maximum(v, -limit), limit)


def update_e(
    Y: Tensor, HX: Tensor, Gamma: Scalar, Delta: Scalar, P: Scalar, M: Tensor, lam: Penalties
) -> Tensor:
    """E = soft((s (Y - H X - Gamma / lambda_1) - Delta + lambda_3 P) / (s + lambda_3), threshold).

    s = M lambda_1 / (M + lambda_1), the threshold is lambda_E / (s + lambda_3). Together with the
    U that follows, it minimises over E and U jointly; eq. (7) uses the previous U, which hides all
    but lambda_1 / (1 + lambda_1) of the residual Y - H X. Zero outside the photograph.

    >>> Y = torch.tensor([0.5, 0.51, 1.0]).reshape(1, 1, 1, 3)  # the last pixel does not fit H X
    >>> lam = Penalties(l1=1.0, l2=1.0, l3=0.02, lE=0.1)
    >>> E = update_e(Y, torch.full_like(Y, 0.5), 0.0, 0.0, 0.0, torch.ones_like(Y), lam)
    >>> (E != 0).flatten().tolist()
    [False, False, True]
    """
    s = M * lam.l1 / (M + lam.l1)
    argument = s * (Y - HX - Gamma / lam.l1) - Delta + lam.l3 * P
    return (M > 0) * soft_threshold(argument / (s + lam.l3), lam.lE / (s + lam.l3))


def update_p(E: Tensor, Delta: Scalar, P: Scalar, lam: Penalties, prox_f: Prox) -> Tensor:
    """P = D_f(E + Delta / lambda_3), the prox of f / lambda_3: eq. (8), corrected."""
    return prox_f(E + Delta / lam.l3)


def update_p_paper(E: Tensor, Delta: Scalar, P: Scalar, lam: Penalties, prox_f: Prox) -> Tensor:
    """P = D_f(P - (Delta + lambda_3 E) / lambda_3): eq. (8) as printed, which diverges."""
    return prox_f(P - (Delta + lam.l3 * E) / lam.l3)


P_FORMS: dict[str, Callable[[Tensor, Scalar, Scalar, Penalties, Prox], Tensor]] = {
    "derived": update_p,
    "paper": update_p_paper,
}


def update_gamma(Gamma: Scalar, HX: Tensor, U: Tensor, lam: Penalties) -> Tensor:
    """Gamma + lambda_1 (H X - U): eq. (9)."""
    return Gamma + lam.l1 * (HX - U)


def update_omega(Omega: Scalar, X: Tensor, Z: Tensor, lam: Penalties) -> Tensor:
    """Omega + lambda_2 (X - Z): eq. (9)."""
    return Omega + lam.l2 * (X - Z)


def update_delta(Delta: Scalar, E: Tensor, P: Tensor, lam: Penalties) -> Tensor:
    """Delta + lambda_3 (E - P): eq. (9)."""
    return Delta + lam.l3 * (E - P)


def _stepped(problem: XProblem, steps: int, change: Callable[[XProblem], Tensor]) -> Tensor:
    """X after `steps` changes, at least one; after the last, H X is not needed again."""
    for _ in range(steps - 1):
        problem = problem.stepped(change(problem))
    return problem.X + change(problem)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(-2, -1), keepdim=True)


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny * 16
