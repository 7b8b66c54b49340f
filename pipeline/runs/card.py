"""The model card of a bundle, filled in from the run."""

from __future__ import annotations

from typing import Any

from era import ErAConfig
from pipeline.checkpoint import Checkpoint
from pipeline.data.manifest import load_manifest
from pipeline.errors import UserError, one_line

PROTOCOL = (
    "Means over the images of the validation split, whole images (above two megapixels in "
    "overlapping tiles), protocol `standard`: RGB in "
    "[0, 1], clamped, not requantised; SSIM with a 7x7 uniform window."
)
TRAIN_KEYS = (
    "global_batch", "patch", "learning_rate", "precision", "deterministic", "seed", "ema",
)  # fmt: skip


def network_of(checkpoint: Checkpoint) -> ErAConfig:
    """The configuration of a checkpoint's network.

    Raises:
        UserError: if it is not one that this version knows.
    """
    try:
        return ErAConfig.from_dict(checkpoint.meta["model"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{checkpoint.url}: its network is not one that this version knows ({error})"
        ) from None


def model_card(checkpoint: Checkpoint, config: dict[str, Any], name: str, parameters: int) -> str:
    """Return README.md: the model, its training data, scores and limits.

    Raises:
        UserError: if its network is not one that this version knows.
    """
    model = network_of(checkpoint)
    parts = [
        _head(name),
        _section("Model", _model(parameters, model, config)),
        _section("Training data", _data(checkpoint, config)),
        _section("Training", _training(checkpoint, config)),
        _section("Scores", _scores(checkpoint)),
        _section("Limits", _limits(model)),
        _section("Use", _use()),
        _section("Licence", ["Weights and code: Apache-2.0. The data keeps its own licence."]),
    ]
    return "\n".join(parts)


def _head(name: str) -> str:
    return (
        "---\nlicense: apache-2.0\nlibrary_name: era\npipeline_tag: image-to-image\n"
        f"tags: [deblurring, defocus, deep-unrolling]\n---\n\n# {name}\n\n"
        "ErA restores a photograph that is out of focus, with a blur that varies over the image.\n"
    )


def _section(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def _model(parameters: int, model: ErAConfig, config: dict[str, Any]) -> list[str]:
    size = _table(config, "model").get("size", "unknown")
    return [
        f"- size `{size}`, {parameters:,} parameters: {model.stages} stages, {model.kernels} "
        f"kernels of {model.kernel_size} x {model.kernel_size} pixels, radius to "
        f"{model.radius_max:g} pixels",
        f"- error term: {'on' if model.error_term else 'off'}; X update: {model.x_form}",
    ]


def _data(checkpoint: Checkpoint, config: dict[str, Any]) -> list[str]:
    known = checkpoint.meta.get("data_manifest_sha256", "")
    data = _table(config, "data")
    train, val = (url if isinstance(url := data.get(use), str) else "" for use in ("train", "val"))
    return [
        *([f"- train: {_described(train, known)}"] if train else []),
        *([f"- val: `{_quoted(val)}`"] if val else []),
        f"- sha256 of the training split's manifest: `{known or 'unknown'}`",
    ]


def _quoted(url: str) -> str:
    """For a line of Markdown, whatever a stranger's configuration holds."""
    return one_line(url).replace("`", "'")


def _described(url: str, digest: object) -> str:
    """What the manifest there says, if it is the one that the run learned from."""
    try:
        manifest, found = load_manifest(url)
    except UserError:
        return f"`{_quoted(url)}` (out of reach when this card was written)"
    if found != digest:
        if not digest:
            return f"`{_quoted(url)}` (it is not recorded which data were there)"
        return f"`{_quoted(url)}` (other data were there when this card was written)"
    truth = "with true blur radii" if manifest.radius else "without blur radii"
    return (
        f"{manifest.dataset} layout, split {manifest.split}: {manifest.samples} images, "
        f"{manifest.bit_depth} bits, {truth} (`{_quoted(url)}`)"
    )


def _table(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A section; empty if it is missing or not a mapping."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _training(checkpoint: Checkpoint, config: dict[str, Any]) -> list[str]:
    train = _table(config, "train")
    meta = checkpoint.meta
    versions = ", ".join(f"{k} {v}" for k, v in _table(meta, "versions").items())
    return [
        f"- step {checkpoint.step} of {train.get('steps', '?')}; weights are the moving average",
        *(f"- {key}: {train[key]}" for key in TRAIN_KEYS if key in train),
        f"- loss: {_table(config, 'loss')}",
        f"- sha256 of what defines the result: `{meta.get('frozen_sha256', 'unknown')}`",
        f"- {versions or 'versions unknown'}; code `{meta.get('git') or 'unknown'}`",
    ]


def _scores(checkpoint: Checkpoint) -> list[str]:
    if not checkpoint.metrics:
        return ["This checkpoint was not validated."]
    rows = [f"| {name} | {value:.4f} |" for name, value in sorted(checkpoint.metrics.items())]
    return [PROTOCOL, "", "| metric | value |", "|---|---|", *rows]


def _limits(model: ErAConfig) -> list[str]:
    return [
        f"- Blur wider than a disk of {model.radius_max:g} pixels radius is outside its model.",
        "- Defocus only: not motion blur, noise, compression or low resolution.",
        "- The scores hold for data like the training data; other cameras need an evaluation.",
        "- Restored detail is an estimate: don't use it as evidence or for measurements.",
    ]


def _use() -> list[str]:
    return ["```", "era restore photo.jpg --out restored --checkpoint THIS_FOLDER", "```"]
