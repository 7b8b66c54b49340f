"""The spatially varying blur H = sum_k diag(w_k) C(h_k), its adjoint and its spectra.

C(h) is circular convolution. Weights belong to output pixels: if every kernel sums to one and the
weights sum to one over k, constants are preserved, H 1 = 1. (docs/method.md, "H")
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SpectrumBound = str  # "mean" | "gram" | "max"


class SpatiallyVaryingBlur:
    """H for a batch of images, by FFT, circular on the given size.

    Args:
        kernels: (B, K, k, k), non-negative, each summing to 1; k odd and at most H and W.
        weights: (B, K, H, W), summing to 1 over K.

    Raises:
        ValueError: if the shapes do not fit each other, or a kernel does not fit the image; of
            all methods, if an image has another size than the weights.

    Half types are computed in float32 (FFTs have no bfloat16), float64 in float64. All methods run
    outside autocast.

    >>> import torch
    >>> from era.psf import disk
    >>> kernels = torch.stack([disk(0.0, 7), disk(3.0, 7)])[None]  # sharp, and a radius of 3 pixels
    >>> right = torch.linspace(0, 1, 32).expand(1, 1, 24, 32)
    >>> H = SpatiallyVaryingBlur(kernels, torch.cat([1 - right, right], dim=1))
    >>> x = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    >>> tuple(H.apply(x).shape)
    (1, 3, 24, 32)
    >>> torch.allclose(H.apply(torch.ones_like(x)), torch.ones_like(x), atol=1e-5)  # H 1 = 1
    True
    >>> torch.allclose(H.apply(x)[..., 0], x[..., 0], atol=1e-5)  # sharp at the left
    True
    >>> H.adjointness_error() < 1e-5
    True
    """

    def __init__(self, kernels: Tensor, weights: Tensor) -> None:
        self.weights = _at_least_float32(weights)
        self.size = (weights.shape[-2], weights.shape[-1])
        if kernels.shape[:2] != weights.shape[:2]:
            raise ValueError(f"kernels {tuple(kernels.shape)} and weights {tuple(weights.shape)}")
        if kernels.shape[-1] != kernels.shape[-2]:
            raise ValueError(f"kernels {tuple(kernels.shape)} must be square")
        if kernels.shape[-1] % 2 == 0 or kernels.shape[-1] > min(self.size):
            raise ValueError(f"kernel size {kernels.shape[-1]} must be odd and fit {self.size}")
        self.otf = kernel_spectrum(_at_least_float32(kernels), self.size)  # (B, K, H, W//2+1)

    def apply(self, x: Tensor) -> Tensor:
        """H x = sum_k w_k * (h_k conv x), for x of shape (B, C, H, W)."""
        with no_autocast(x):
            spectrum = self._rfft2(x)[:, None]
        return self._weighted(lambda otf: otf * spectrum, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """H' y = sum_k h_k corr (w_k * y), for y of shape (B, C, H, W): the weights are applied
        before the correlation."""
        with no_autocast(y):
            self._require_fitting(y)
            weighted = self.weights[:, :, None] * _at_least_float32(y)[:, None]
            return self.inverse((self.otf.conj()[:, :, None] * rfft2(weighted)).sum(dim=1))

    def adjointness_error(self, channels: int = 3, samples: int = 1, seed: int = 0) -> float:
        """An estimate of |A - B'|_F / |A|_F for A = `apply` and B = `adjoint`; rounding only.

        It is sqrt(mean (<v, A u> - <u, B v>)^2) / sqrt(mean <v, A u>^2) over Gaussian u and v, the
        estimate of deepinv's ``LinearPhysics.adjointness_test``.

        Args:
            channels: C of the random images (B, C, H, W).
            samples: pairs of random images to average over.
            seed: of their generator.
        """
        random = torch.Generator().manual_seed(seed)
        shape = (samples, 2, len(self.weights), channels, *self.size)
        pairs = torch.randn(shape, generator=random, dtype=torch.float64).to(self.weights)
        direct, difference = 0.0, 0.0
        with torch.no_grad():
            for u, v in pairs:
                forward = (v * self.apply(u)).double().sum()
                backward = (u * self.adjoint(v)).double().sum()
                direct += float(forward.square())
                difference += float((forward - backward).square())
        return (difference / direct) ** 0.5

    def wiener(self, residual: Tensor, pull: Tensor, ratio: Tensor | float) -> Tensor:
        """sum_k w_k F^-1[ (conj(F h_k) F r - F d) / (|F h_k|^2 + ratio) ]: local Wiener filters.

        Args:
            residual, pull: r and d, both (B, C, H, W).
            ratio: lambda_2 / lambda_1 > 0, of shape (), the regularisation.

        Returns:
            (B, C, H, W).
        """
        with no_autocast(residual):
            r, d = self._rfft2(residual)[:, None], self._rfft2(pull)[:, None]
        return self._weighted(lambda otf: (otf.conj() * r - d) / (power(otf) + ratio), residual)

    def _weighted(self, spectra: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """sum_k w_k * F^-1[ spectra(F h_k) ], F h_k being (B, k, 1, H, W//2+1).

        Without gradients no intermediate result is needed later: one kernel at a time takes a
        fraction of the memory and stays in the processor's cache.
        """
        count = self.otf.shape[1]
        step = count if torch.is_grad_enabled() else 1
        with no_autocast(like):
            total = None
            for start in range(0, count, step):
                part = slice(start, start + step)
                filtered = self.inverse(spectra(self.otf[:, part, None]))
                one = (self.weights[:, part, None] * filtered).sum(dim=1)
                total = one if total is None else total + one
        assert total is not None
        return total

    def spectrum(self, bound: SpectrumBound) -> Tensor:
        """A real spectrum S (B, 1, H, W//2+1) that replaces H'H in a division.

        ``mean``: |sum_k mean(w_k) F h_k|^2, the poster's F(H)^2 taken literally.
        ``gram``: sum_kl mean(w_k w_l) conj(F h_k) F h_l, the circulant matrix nearest to H'H in the
        Frobenius norm (T. Chan); the best preconditioner.
        ``max``: sum_k max(w_k) |F h_k|^2, an upper bound of H'H (Jensen), so that a step divided by
        it never overshoots.

        Raises:
            ValueError: for any other name.
        """
        with no_autocast(self.weights):
            if bound == "mean":
                mean = self.weights.mean(dim=(-2, -1))[..., None, None]
                return power((mean * self.otf).sum(dim=1, keepdim=True))
            if bound == "max":
                most = self.weights.amax(dim=(-2, -1))[..., None, None]
                return (most * power(self.otf)).sum(dim=1, keepdim=True)
            if bound == "gram":
                pixels = self.size[0] * self.size[1]
                gram = torch.einsum("bkhw,blhw->bkl", self.weights, self.weights) / pixels
                mixed = torch.einsum("bkl,blhw->bkhw", gram.to(self.otf.dtype), self.otf)
                return (self.otf.conj() * mixed).real.sum(dim=1, keepdim=True)
        raise ValueError(f"spectrum {bound!r}: expected mean, gram or max")

    def divide(self, x: Tensor, denominator: Tensor) -> Tensor:
        """F^-1[ F x / denominator ] (B, C, H, W), for x of that shape and a real denominator
        (B or 1, 1, H, W//2+1)."""
        with no_autocast(x):
            return self.inverse(self._rfft2(x) / denominator)

    def _rfft2(self, x: Tensor) -> Tensor:
        self._require_fitting(x)
        return rfft2(x)

    def _require_fitting(self, x: Tensor) -> None:
        """An image of another size can have a spectrum of the same one, which is not its own."""
        if tuple(x.shape[-2:]) != self.size:
            raise ValueError(f"images {tuple(x.shape)}: expected (B, C, H, W) of size {self.size}")

    def inverse(self, spectrum: Tensor) -> Tensor:
        """The inverse real FFT on this operator's size: (..., H, W//2+1) -> (..., H, W)."""
        return torch.fft.irfft2(spectrum, s=self.size)


def kernel_spectrum(kernels: Tensor, size: tuple[int, int]) -> Tensor:
    """F h on a canvas: kernels (..., k, k) zero-padded to `size`, centre rolled to (0, 0)."""
    k = kernels.shape[-1]
    padded = torch.nn.functional.pad(kernels, (0, size[1] - k, 0, size[0] - k))
    return torch.fft.rfft2(torch.roll(padded, shifts=(-(k // 2), -(k // 2)), dims=(-2, -1)))


def rfft2(x: Tensor) -> Tensor:
    """The real FFT over the last two axes, in float32 at least."""
    return torch.fft.rfft2(_at_least_float32(x))


def power(spectrum: Tensor) -> Tensor:
    """|F|^2 as conj(F) F; unlike abs()**2 its gradient is finite at zero."""
    return spectrum.real.square() + spectrum.imag.square()


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def no_autocast(x: Tensor) -> torch.autocast:
    """A context that computes in the tensors' own precision on the device of `x`."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)
