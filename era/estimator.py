"""Kernel estimation: a blurred image -> K global kernels, a K-channel weight map, a confidence.

A small network learns little about blur from raw pixels, but much from the local energies of
band-pass levels: defocus removes the fine bands first, and an aperture leaves dark rings in the
spectrum of any picture. All features are local (windows of a few hundred pixels), so that training
crops and whole photographs have the same statistics; only the few kernel coefficients are averaged
over the image, weighted by where each kernel is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from era.blur import no_autocast
from era.canvas import Canvas
from era.psf import CORRECTIONS, PsfBank, corrected
from era.resunet import SLOPE, ResUNet

STRIDE = 4  # the weight map is estimated at 1/4 of the resolution
LUMA = (0.299, 0.587, 0.114)
B3_SPLINE = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
BANDS = 5  # band-pass levels
NOISE_FLOOR = 1e-6  # energy of about 0.25/255; less is quantisation and noise
RINGS = 24  # narrow bands, evenly spaced between two frequencies (cycles per pixel)
RING_RANGE, RING_WIDTH = (0.025, 0.48), 0.02
RING_WINDOWS = (3, 9)  # quarter pixels, over which their energies are averaged
RING_FLOOR = 1e-7
START_CONFIDENCE = -1.0  # initial value before the sigmoid
MIRROR = 32  # pixels around the image; a ring filter reaches about that far


@dataclass(frozen=True)
class Estimate:
    """An estimated blur.

    Attributes:
        kernels: (B, K, k, k), non-negative, each summing to 1.
        coarse: weights (B, K, H/4, W/4), summing to 1 over K.
        coarse_confidence: (B, 1, H/4, W/4) in (0, 1), the weight of the data term.
    """

    kernels: Tensor
    coarse: Tensor
    coarse_confidence: Tensor

    def weights(self, top: int, left: int, height: int, width: int) -> Tensor:
        """The weight map (B, K, height, width) at a position in the image, summing to 1 over K.

        The values do not depend on how an image is tiled: a coarse margin is interpolated, too.
        """
        return self._fine(self.coarse, top, left, height, width)

    def confidence(self, top: int, left: int, height: int, width: int) -> Tensor:
        """The confidence (B, 1, height, width) at a position in the image."""
        return self._fine(self.coarse_confidence, top, left, height, width)

    @staticmethod
    def _fine(coarse: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
        rows, columns = coarse.shape[-2:]
        a, b = max(0, top // STRIDE - 1), min(rows, -(-(top + height) // STRIDE) + 1)
        c, d = max(0, left // STRIDE - 1), min(columns, -(-(left + width) // STRIDE) + 1)
        fine = F.interpolate(
            coarse[..., a:b, c:d], scale_factor=STRIDE, mode="bilinear", align_corners=False
        )
        y, x = top - a * STRIDE, left - c * STRIDE
        return fine[..., y : y + height, x : x + width]


class KernelEstimator(nn.Module):
    """Predicts the kernels and weights of `SpatiallyVaryingBlur` from the blurred image.

    Args:
        kernels, kernel_size, radius_max: the bank, see `PsfBank`.
        channels: of the small U-Net at 1/4 resolution, finest level first.
    """

    radii: Tensor
    disks: Tensor
    gaussians: Tensor
    bases: Tensor

    def __init__(
        self, kernels: int, kernel_size: int, radius_max: float, channels: tuple[int, ...]
    ) -> None:
        super().__init__()
        bank = PsfBank(kernels, kernel_size, radius_max)
        self.register_buffer("radii", bank.radii, persistent=False)
        self.register_buffer("disks", bank.disks, persistent=False)
        self.register_buffer("gaussians", bank.gaussians, persistent=False)
        self.register_buffer("bases", bank.bases, persistent=False)
        features = 1 + 2 * BANDS + len(RING_WINDOWS) * RINGS
        self.network = ResUNet(features, channels[0], channels, 1, residual=False, smooth=True)
        nn.init.kaiming_normal_(self.network.tail.weight, a=SLOPE)
        self.to_weights = nn.Conv2d(channels[0], kernels, 1)
        self.to_confidence = nn.Conv2d(channels[0], 1, 1)
        self.to_kernels = nn.Linear(channels[0], CORRECTIONS)
        with torch.no_grad():
            nn.init.zeros_(self.to_weights.weight)
            # Initial weights fall with the radius: H starts as a slight blur.
            near_identity = -2.0 * torch.arange(kernels, dtype=torch.float32)
            self.to_weights.bias = nn.Parameter(near_identity)
            nn.init.zeros_(self.to_confidence.weight)
            self.to_confidence.bias = nn.Parameter(torch.tensor([START_CONFIDENCE]))
            nn.init.zeros_(self.to_kernels.weight)
            nn.init.zeros_(self.to_kernels.bias)

    def forward(self, blur: Tensor) -> Estimate:
        """Estimate the blur of images (B, 3, H, W) in [0, 1].

        Only the network between features and maps runs under autocast.
        """
        deep = F.leaky_relu(self.network(blur_features(blur)), SLOPE)
        with no_autocast(blur):
            deep = deep.to(self.to_weights.weight.dtype)
            coarse = torch.softmax(self.to_weights(deep).float(), dim=1)
            confidence = torch.sigmoid(self.to_confidence(deep).float())
            pooled = torch.einsum("bkhw,bchw->bkc", coarse, deep.float())
            pooled = pooled / (coarse.sum(dim=(-2, -1))[..., None] + 1e-3)
            coefficients = self.to_kernels(pooled.to(self.to_kernels.weight.dtype)).to(self.disks)
            kernels = corrected(self.disks, self.gaussians, self.bases, coefficients)
        if blur.dtype == torch.float64:
            coarse, confidence = coarse.double(), confidence.double()
        return Estimate(kernels, coarse, confidence)

    def radius(self, weights: Tensor) -> Tensor:
        """The expected blur radius sum_k w_k r_k in pixels: (B, K, H, W) -> (B, 1, H, W)."""
        return (weights * self.radii.to(weights)[:, None, None]).sum(dim=1, keepdim=True)


def blur_features(blur: Tensor) -> Tensor:
    """Features of blur: (B, 3, H, W) -> (B, 1 + 2 BANDS + 2 RINGS, ceil(H/4), ceil(W/4)).

    The mean luminance (saturation hides blur); for each a-trous B3-spline band of the luminance,
    the logarithm of the mean energy in a window and of its local maximum; for each of the narrow
    rings of its spectrum, the logarithm of the mean energy in two windows. Never under autocast:
    the energy left in a fine band after a wide blur is below bfloat16's rounding error.
    """
    with no_autocast(blur):
        below, right = -blur.shape[-2] % STRIDE, -blur.shape[-1] % STRIDE
        luma = F.pad(luminance(blur), (0, right, 0, below), mode="replicate")
        return torch.cat([_bands(luma), _rings(luma)], dim=1)


def luminance(image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W); never under autocast, which would round it to a half type."""
    with no_autocast(image):
        return torch.einsum("bchw,c->bhw", image, _vector(image, LUMA))[:, None]


def _vector(like: Tensor, values: tuple[float, ...]) -> Tensor:
    """Constants filled in on the device: copied there, they would make the CPU wait for it."""
    return torch.stack([like.new_full((), value) for value in values])


def _bands(luma: Tensor) -> Tensor:
    features = [F.avg_pool2d(luma, STRIDE) - 0.5]
    smooth = luma
    for level in range(BANDS):
        smoother = _a_trous(smooth, 2**level)
        energy = F.avg_pool2d((smooth - smoother).square(), STRIDE)
        window = F.avg_pool2d(energy, 3, stride=1, padding=1, count_include_pad=False)
        peak = F.max_pool2d(energy, 5, stride=1, padding=2)
        features += [_log_energy(window), _log_energy(peak)]
        smooth = smoother
    return torch.cat(features, dim=1)


def _rings(luma: Tensor) -> Tensor:
    """One ring at a time, to hold few copies of a large image."""
    height, width = luma.shape[-2:]
    canvas = Canvas.around(height, width, 2 * MIRROR, 1)
    spectrum = torch.fft.rfft2(canvas.extend(luma))
    rows = torch.fft.fftfreq(canvas.size[0], device=luma.device, dtype=luma.dtype)
    columns = torch.fft.rfftfreq(canvas.size[1], device=luma.device, dtype=luma.dtype)
    frequency = torch.hypot(rows[:, None], columns)
    energies = []
    for centre in torch.linspace(*RING_RANGE, RINGS).tolist():
        ring = torch.exp(-0.5 * ((frequency - centre) / RING_WIDTH).square())
        band = canvas.crop(torch.fft.irfft2(spectrum * ring, s=canvas.size))
        energies.append(F.avg_pool2d(band.square(), STRIDE))
    energy = torch.cat(energies, dim=1)
    windows = (
        F.avg_pool2d(energy, n, stride=1, padding=n // 2, count_include_pad=False)
        for n in RING_WINDOWS
    )
    return torch.cat([torch.log(window + RING_FLOOR) / 7 + 1 for window in windows], dim=1)


def _log_energy(energy: Tensor) -> Tensor:
    """Map energies from the noise floor to 1 onto about [-1, 1]."""
    return torch.log(energy + NOISE_FLOOR) / 7.0 + 1.0


def _a_trous(image: Tensor, spacing: int) -> Tensor:
    taps = _vector(image, B3_SPLINE)
    pad = 2 * spacing
    rows = F.pad(image, (0, 0, pad, pad), mode="replicate")
    image = F.conv2d(rows, taps[None, None, :, None], dilation=spacing)
    columns = F.pad(image, (pad, pad, 0, 0), mode="replicate")
    return F.conv2d(columns, taps[None, None, None, :], dilation=spacing)
