"""LPIPS (Zhang et al., CVPR 2018) with an AlexNet trunk, without torchvision.

The linear heads (version 0.1, 1,152 numbers) are in this folder. The trunk's weights are the ones
that torchvision publishes (`alexnet-owt-7be5be79.pth`); they are not distributed with this program.
Without them LPIPS is omitted, and the summary says why.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import storage
from pipeline.arrays import Image
from pipeline.errors import UserError

WEIGHTS = "alexnet-owt-7be5be79.pth"
HEADS = Path(__file__).with_name("lpips_heads.safetensors")
CHANNELS = (64, 192, 384, 256, 256)


class Lpips(nn.Module):
    """The distance of two images (B, 3, H, W) in [0, 1]: (B,), 0 for equal images."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )
        self.heads = nn.ModuleList(nn.Conv2d(c, 1, 1, bias=False) for c in CHANNELS)
        # LPIPS's own normalisation of images in [-1, 1].
        mean = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        deviation = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Sum over the layers of the mean weighted squared difference of unit features."""
        total = a.new_zeros(len(a))
        for x, y, head in zip(self._layers(a), self._layers(b), self.heads, strict=True):
            difference = (F.normalize(x, eps=1e-10) - F.normalize(y, eps=1e-10)).square()
            total = total + head(difference).mean(dim=(1, 2, 3))
        return total

    def _layers(self, image: Tensor) -> list[Tensor]:
        x = (2 * image - 1 - self.mean) / self.deviation
        layers = []
        for part in self.features:
            x = part(x)
            if isinstance(part, nn.ReLU):
                layers.append(x)
        return layers


def find_weights(given: str) -> tuple[str, str]:
    """The trunk's weights, or the reason for their absence: one of the two is empty.

    Args:
        given: URL, or empty for torch's usual cache.

    Raises:
        UserError: if given weights are missing.
    """
    if given:
        if not storage.exists(given):
            raise UserError(f"--lpips-weights {given}: no such file")
        return given, ""
    with suppress(RuntimeError):  # no home folder
        home = os.environ.get("TORCH_HOME") or str(Path.home() / ".cache" / "torch")
        usual = Path(home) / "hub" / "checkpoints" / WEIGHTS
        if usual.is_file():
            return str(usual), ""
    return "", f"no AlexNet weights: give --lpips-weights, or put {WEIGHTS} into torch's cache"


@lru_cache(maxsize=1)
def load_lpips(weights: str) -> Lpips:
    """LPIPS with a trunk in torchvision's layout; only tensors are unpickled.

    Raises:
        UserError: if the file holds something else.
    """
    import io

    model = Lpips().eval().requires_grad_(False)
    try:
        state = torch.load(
            io.BytesIO(storage.read_bytes(weights)), weights_only=True, map_location="cpu"
        )
        trunk = {k: v for k, v in state.items() if k.startswith("features.")}
        model.features.load_state_dict({k.removeprefix("features."): v for k, v in trunk.items()})
    except UserError:
        raise
    except Exception as error:  # torch.load raises many kinds for a file that is not its own
        raise UserError(
            f"{weights}: not AlexNet's weights as torchvision keeps them ({type(error).__name__})"
        ) from None
    model.heads.load_state_dict(load_file(HEADS))
    return model


def lpips(restored: Image, sharp: Image, weights: str) -> float:
    """LPIPS of two prepared images (H, W, 3) in [0, 1]; both sides at least 32 pixels."""
    pair = [torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in (restored, sharp)]
    a, b = (image.permute(2, 0, 1)[None] for image in pair)
    with torch.inference_mode():
        return float(load_lpips(weights)(a, b)[0])
