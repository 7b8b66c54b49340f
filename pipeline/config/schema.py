"""The schema of a training configuration: every key with its type, default and meaning.

The comments on a key are its documentation: `make docs` writes docs/configuration.md from them.

Keys are of two kinds. Sections in `FROZEN_SECTIONS` define the result: they are frozen at a run's
first start, and a later change is refused. All others may change between attempts of one run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.config.values import Deterministic, Workers

FROZEN_SECTIONS = ("model", "data", "train", "loss")


@dataclass(frozen=True)
class RunSection:
    """Identifies the run. Everything it writes is in `<root>/<name>/`."""

    name: str = "run"  # folder name; the same name continues the run
    root: str = "runs"  # folder or URL that holds the runs
    revision: str = ""  # code revision recorded in checkpoints; empty: taken from git


@dataclass(frozen=True)
class ModelSection:
    """The network: a named size of `era.ErAConfig` and the fields that differ from it."""

    size: str = "tiny"  # tiny, base or paper
    # Fields of `era.ErAConfig` (see docs/python.md), such as {x_form: pcg, stages: 3}
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSection:
    """Training and validation data, and the order of the samples."""

    train: str = ""  # URL of the folder of one preprocessed split
    val: str = ""  # the same for validation; empty: no validation
    crops_per_image: int = 16  # crops drawn from each image per epoch
    window: int = 0  # number of shards shuffled together; 0: all
    min_sharpness_quantile: float = 0.3  # share of the least sharp positions never cropped
    rotate: bool = True  # augment with rotations by 90 degrees, besides flips
    skip_damaged: bool = False  # continue without a damaged or missing shard instead of stopping


@dataclass(frozen=True)
class TrainSection:
    """Optimization."""

    steps: int = 1000  # optimizer steps of the whole run
    global_batch: int = 8  # samples per optimizer step over all workers
    seed: int = 0  # for the initial weights and the order of samples; 0 to 2^63 - 1
    # false, true, strict, or auto (true on CPU, false on GPU)
    deterministic: Deterministic = Deterministic.AUTO
    # Crop sizes in pixels; each is used for an equal share of the steps, in this order
    patch: tuple[int, ...] = (128,)
    learning_rate: float = 2e-4  # peak of the cosine schedule
    scalar_rate: float = 20.0  # learning rate of the lambdas, relative to learning_rate
    min_learning_rate: float = 1e-6  # end of the cosine schedule
    warmup: float = 0.02  # share of the steps over which the learning rate rises
    weight_decay: float = 0.0  # AdamW's weight decay
    clip_norm: float = 0.2  # maximum norm of the whole gradient; 0: no clipping
    ema: float = 0.999  # decay of the averaged weights, which are the ones evaluated
    estimator_share: float = 0.0  # phase 1, share of the steps: the blur estimator alone
    prior_share: float = 0.0  # phase 2, share of the steps: the prior alone, without data step
    precision: str = "fp32"  # fp32, bf16 or fp16 (autocast; FFTs are always float32)
    tf32: bool = False  # allow TensorFloat-32 in matrix products and convolutions on GPUs
    channels_last: bool = False  # channels-last memory format for the convolutions
    compile: bool = False  # use torch.compile
    nonfinite_budget: int = 10  # steps that may be skipped because of a non-finite loss or gradient
    validate_every: int = 0  # steps between validations; 0: only after the last step


@dataclass(frozen=True)
class LossSection:
    """omega |X - X_gt|_1 + (1 - omega) |H X - Y|_1 (poster, Loss), and ours: radius times the
    cross-entropy of the weight map."""

    omega: float = 0.5  # weight of the first term, 0 to 1
    radius: float = 0.0  # weight of the blur-radius term; needs pairs with a known radius
    relative: float = 0.0  # above 0: the first term is divided by |Y - X_gt|_1 + relative


@dataclass(frozen=True)
class ScalingSection:
    """Processes and devices that share the work. Does not change which samples are used."""

    # number of training processes, or [least, most] for an elastic run
    workers: Workers = field(default_factory=lambda: Workers(1, 1))
    gpu: bool = False  # one GPU per worker
    threads: int = 1  # torch threads per worker
    micro_batch: int = 0  # samples per forward pass; 0: the worker's whole share of the batch
    cpus_per_worker: int = 1  # CPUs that Ray reserves for each worker


@dataclass(frozen=True)
class LoaderSection:
    """How samples are loaded. Does not change which samples are used."""

    workers: int = 0  # further loader threads per training process; 0: one in the background
    prefetch: int = 4  # batches prepared in advance


@dataclass(frozen=True)
class CacheSection:
    """Local copies of remote shards on each node."""

    dir: str = ""  # empty: $ERA_CACHE_DIR, else ~/.cache/era
    max_gb: float = 100.0  # maximum size of the cache per node, in GB


@dataclass(frozen=True)
class CheckpointSection:
    """When checkpoints are saved and how many are kept."""

    every: int = 200  # steps between checkpoints; one is also saved at the end
    keep_best: int = 2  # best checkpoints kept, besides the latest one


@dataclass(frozen=True)
class TrackingSection:
    """Metrics. metrics.jsonl is the record; Weights & Biases mirrors it."""

    wandb: str = "auto"  # online, offline, disabled, or auto (online if WANDB_API_KEY is set)
    project: str = "era"  # W&B project
    group: str = ""  # W&B group; a sweep sets its own
    log_every: int = 10  # steps between lines of training metrics
    images: int = 2  # validation images shown in W&B panels


@dataclass(frozen=True)
class DebugSection:
    """Debugging."""

    log_samples: bool = False  # write samples.jsonl: the samples of every step
    stop_at: int = 0  # end this attempt after this step with a checkpoint; 0: run to the end


@dataclass(frozen=True)
class ChaosSection:
    """Fault injection: the run kills its own workers, to demonstrate that it resumes."""

    kill_every: int = 0  # steps between kills; 0: never


@dataclass(frozen=True)
class StorageSection:
    """Storage shared by the cluster."""

    shared: bool = False  # local paths are on a file system that all nodes share


@dataclass(frozen=True)
class TrainConfig:
    """A whole training configuration."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    train: TrainSection = field(default_factory=TrainSection)
    loss: LossSection = field(default_factory=LossSection)
    scaling: ScalingSection = field(default_factory=ScalingSection)
    loader: LoaderSection = field(default_factory=LoaderSection)
    cache: CacheSection = field(default_factory=CacheSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    tracking: TrackingSection = field(default_factory=TrackingSection)
    debug: DebugSection = field(default_factory=DebugSection)
    chaos: ChaosSection = field(default_factory=ChaosSection)
    storage: StorageSection = field(default_factory=StorageSection)
