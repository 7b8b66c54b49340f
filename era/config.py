"""What a network is: every choice of the method in one frozen dataclass, and the named sizes."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

# Names of the updates that `era.updates` has under these keys; here, so that no torch is imported.
X_FORMS = ("wiener", "majorised", "pcg", "paper")
P_FORMS = ("derived", "paper")
PRIORS = ("resunet", "unet")
# Beyond any network that fits a machine; a mistyped number fails here instead of in its memory.
MAX_BANK = 1 << 24  # values of all kernels of the bank
MAX_PARAMETERS = 1 << 31  # of the convolutions that keep their level's channels
MAX_COUNT, MAX_LEVELS, MAX_CHANNELS, MAX_KERNEL = 1000, 8, 65_536, 1023
LEAST_SCALAR, GREATEST_SCALAR = 1e-9, 1e6  # of the lambdas: what float32 and softplus hold


@dataclass(frozen=True)
class ErAConfig:
    """The network's shape, its start, and the switches for ablations.

    Attributes:
        stages: T, unrolled iterations.
        kernels: K, basis kernels.
        kernel_size: k, odd, 1 to 1023 pixels; K k^2 is at most 2^24.
        radius_max: blur radius of the largest disk, above 0 and at most (k - 1) / 2 pixels.
        prior: resunet | unet, the network of D_phi.
        prior_channels, prior_blocks: D_phi, see `era.resunet.ResUNet`; a `unet` has no blocks.
        error_channels, error_blocks: D_f.
        prior_sees_blur: D_phi sees the estimated weight map and confidence beside the image.
        estimator_channels: the kernel estimator's U-Net.
        x_form: wiener | majorised | pcg | paper.
        x_steps: inner steps of the X form.
        p_form: derived | paper.
        error_term: use E, P and Delta; False is the ablation "without E".
        data_step: use E, U and X; False leaves the prior alone (X = Z).
        luminance: the data step sees and corrects the luminance alone, at a third of the cost.
        tied_lambda_e: lambda_E = lambda_3, as the poster prints it; E then starts at zero.
        share_priors: one D_phi (and D_f) for all stages, else one each.
        lambda_1 ... lambda_e: where the scalars start, 1e-9 to 1e6.

    Counts (stages, kernels, inner steps, blocks) are from 1 to 1000. The channels of a network are
    1 to 8 levels, finest first, of 1 to 65,536 channels each.

    Raises:
        ValueError: for values out of range; the message names each of them.
    """

    stages: int = 1
    kernels: int = 8
    kernel_size: int = 15
    radius_max: float = 7.0
    prior: str = "unet"
    prior_channels: tuple[int, ...] = (16, 32, 64)
    prior_blocks: int = 1
    prior_sees_blur: bool = False
    error_channels: tuple[int, ...] = (8, 16)
    error_blocks: int = 1
    estimator_channels: tuple[int, ...] = (24, 32)
    x_form: str = "wiener"
    x_steps: int = 1
    p_form: str = "derived"
    error_term: bool = True
    data_step: bool = True
    luminance: bool = True
    tied_lambda_e: bool = False
    share_priors: bool = True
    lambda_1: float = 0.1
    lambda_2: float = 0.01
    lambda_3: float = 0.02
    lambda_e: float = 0.002

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ValueError("; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `ErAConfig.from_dict` takes back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ErAConfig:
        """Build a configuration from plain values; lists become tuples.

        Raises:
            ValueError: for an unknown field or a value out of range.
        """
        return replace_checked(ErAConfig(), values)


def _problems(config: ErAConfig) -> list[str]:
    problems = []
    for name in ("stages", "kernels", "x_steps", "prior_blocks", "error_blocks"):
        if not 1 <= getattr(config, name) <= MAX_COUNT:
            problems.append(f"{name} must be from 1 to {MAX_COUNT}, got {getattr(config, name)}")
    for name in ("lambda_1", "lambda_2", "lambda_3", "lambda_e"):
        if not LEAST_SCALAR <= getattr(config, name) <= GREATEST_SCALAR:
            problems.append(
                f"{name} must be from {LEAST_SCALAR:g} to {GREATEST_SCALAR:g}, "
                f"got {getattr(config, name)}"
            )
    for name in ("prior_channels", "error_channels", "estimator_channels"):
        channels = getattr(config, name)
        if not 1 <= len(channels) <= MAX_LEVELS or not all(
            type(c) is int and 1 <= c <= MAX_CHANNELS for c in channels
        ):
            problems.append(
                f"{name} must list 1 to {MAX_LEVELS} integers from 1 to {MAX_CHANNELS}, "
                f"got {channels}"
            )
    if not problems and least_parameters(config) > MAX_PARAMETERS:
        problems.append(
            f"the channels make more than {least_parameters(config):,} parameters; at most "
            f"{MAX_PARAMETERS:,} are taken"
        )
    if not 1 <= config.kernel_size <= MAX_KERNEL or config.kernel_size % 2 == 0:
        problems.append(
            f"kernel_size must be odd and from 1 to {MAX_KERNEL}, got {config.kernel_size}"
        )
    if config.kernels * config.kernel_size**2 > MAX_BANK:
        problems.append(f"kernels x kernel_size^2 must be at most {MAX_BANK}")
    if not 0 < config.radius_max <= (config.kernel_size - 1) / 2:
        problems.append(
            f"radius_max {config.radius_max} must be positive and fit kernel_size "
            f"{config.kernel_size}: at most {(config.kernel_size - 1) / 2}"
        )
    if config.x_form not in X_FORMS:
        problems.append(f"x_form must be one of {', '.join(X_FORMS)}, got {config.x_form!r}")
    if config.prior not in PRIORS:
        problems.append(f"prior must be one of {', '.join(PRIORS)}, got {config.prior!r}")
    if config.p_form not in P_FORMS:
        problems.append(f"p_form must be one of {', '.join(P_FORMS)}, got {config.p_form!r}")
    return problems


def least_parameters(config: ErAConfig) -> int:
    """Fewer parameters than the network has: every level of each of its networks has two
    convolutions of 3x3 that keep the channels; all others together are a small multiple."""
    copies = 1 if config.share_priors else config.stages
    blocks = config.prior_blocks if config.prior == "resunet" else 1
    least = _squares(config.estimator_channels) + copies * blocks * _squares(config.prior_channels)
    if config.error_term and config.stages > 1:
        least += copies * config.error_blocks * _squares(config.error_channels)
    return least


def _squares(channels: tuple[int, ...]) -> int:
    return sum(2 * 9 * c * c for c in channels)


SIZES: dict[str, ErAConfig] = {
    # Minutes on a CPU: demonstration, tests, synthetic blur of up to 7 pixels.
    "tiny": ErAConfig(),
    # One GPU: blur at DPDD's scale.
    "base": ErAConfig(
        stages=5,
        kernels=8,
        kernel_size=41,
        radius_max=20.0,
        prior="resunet",
        prior_channels=(32, 64, 128, 256),
        prior_blocks=2,
        error_channels=(16, 32, 64),
        error_blocks=1,
        estimator_channels=(32, 64, 128),
    ),
    # As the paper describes it, as far as it is known.
    "paper": ErAConfig(
        stages=10,
        kernels=8,
        kernel_size=61,
        radius_max=25.0,
        luminance=False,
        prior="resunet",
        prior_channels=(64, 128, 256, 512),
        prior_blocks=2,
        error_channels=(64, 128, 256, 512),
        error_blocks=2,
        estimator_channels=(32, 64, 128, 256),
    ),
}


def named_config(size: str, /, **overrides: Any) -> ErAConfig:
    """Return the configuration of a named size (tiny, base, paper) with some fields changed.

    Raises:
        ValueError: for an unknown size or field, or a value out of range.
    """
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; known: {', '.join(SIZES)}")
    return replace_checked(SIZES[size], overrides)


def replace_checked(config: ErAConfig, values: dict[str, Any]) -> ErAConfig:
    """Return `config` with `values` replaced; unknown fields are refused with a suggestion."""
    known = {field.name: field for field in fields(ErAConfig)}
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ValueError(
                f"unknown field {name}" + (f"; did you mean {close[0]}?" if close else "")
            )
    tuples: dict[str, Any] = {
        k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in values.items()
    }
    for name, value in tuples.items():
        expected = type(getattr(config, name))
        number = expected is float and type(value) is int
        if type(value) is not expected and not number:
            raise ValueError(f"{name} must be of type {expected.__name__}, got {value!r}")
    return replace(config, **tuples)
