"""The published table (poster, "Quantitative Results"), beside which a run may be shown.

Its metric protocol is not stated, and the peers' protocols differ (docs/method.md): compare with
care. Each entry: PSNR in dB, SSIM, LPIPS.
"""

from __future__ import annotations

METHODS = ("DPDNet", "IFAN", "Restormer", "INIKNet", "NRKNet", "P2IKT", "IRNeXt", "ErA (poster)")
_VALUES = {
    "dpdd": (
        (24.348, 25.366, 25.980, 26.113, 26.110, 26.280, 26.300, 26.687),
        (0.747, 0.789, 0.811, 0.804, 0.810, 0.807, 0.814, 0.815),
        (0.277, 0.217, 0.178, 0.183, 0.223, 0.191, 0.206, 0.219),
    ),
    "realdof": (
        (22.870, 23.500, 25.091, 25.382, 25.027, 25.480, 25.660, 25.747),
        (0.670, 0.681, 0.762, 0.767, 0.766, 0.762, 0.755, 0.772),
        (0.425, 0.444, 0.285, 0.287, 0.338, 0.306, 0.336, 0.319),
    ),
    "rtf": (
        (23.608, 24.041, 24.212, 25.467, 25.929, 25.260, 25.333, 25.502),
        (0.591, 0.758, 0.821, 0.832, 0.829, 0.819, 0.854, 0.823),
        (0.296, 0.289, 0.224, 0.215, 0.218, 0.207, 0.249, 0.215),
    ),
}
WHOLE = {"dpdd": 76, "realdof": 50, "rtf": 22}  # images of the published test sets


def published_rows(dataset: str, images: int) -> list[dict[str, float | str]]:
    """The published figures for a whole test set; none for other data or a part of it."""
    if WHOLE.get(dataset) != images:
        return []
    columns = zip(METHODS, *_VALUES[dataset], strict=True)
    return [{"method": m, "psnr": p, "ssim": s, "lpips": q} for m, p, s, q in columns]
