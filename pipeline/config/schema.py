"""The schema of a training configuration. Every key, its unit and its default stand here.

Keys are of two kinds. Sections in `FROZEN_SECTIONS` define the result: they are frozen at a run's
first start, and a later change is refused. All others may change between attempts of one run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FROZEN_SECTIONS = ("model", "data", "train", "loss")


@dataclass
class RunSection:
    """Which run this is: `<root>/<name>/` holds all that it leaves."""

    name: str = "run"
    root: str = "runs"
    revision: str = ""  # of the code, kept with each checkpoint; default: what git says


@dataclass
class ModelSection:
    """A named size of `era.ErAConfig` (tiny, base, paper) and what differs from it."""

    size: str = "tiny"
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataSection:
    """What is learned from, and the order in which it comes."""

    train: str = ""  # URL of one split folder
    val: str = ""  # URL of one split folder; validation is skipped when empty
    crops_per_image: int = 16  # crops of each image in one epoch
    window: int = 0  # shards shuffled together; 0 = all of them
    min_sharpness_quantile: float = 0.3  # the least sharp share of places is passed over
    rotate: bool = True  # quarter turns, besides flips
    skip_damaged: bool = False  # train without a damaged or vanished shard instead of stopping


@dataclass
class TrainSection:
    """The optimisation."""

    steps: int = 1000
    global_batch: int = 8  # samples per optimiser step over all workers
    seed: int = 0
    deterministic: Any = "auto"  # false | true | strict | auto (true on CPU)
    patch: list[int] = field(default_factory=lambda: [128])  # crop sizes, equal shares of the steps
    learning_rate: float = 2e-4
    scalar_rate: float = 20.0  # the lambdas learn this many times faster
    min_learning_rate: float = 1e-6  # where the cosine ends
    warmup: float = 0.02  # share of the steps
    weight_decay: float = 0.0
    clip_norm: float = 0.2  # of the whole gradient; 0 = off
    ema: float = 0.999  # decay of the averaged weights
    estimator_share: float = 0.0  # first share of the steps: blur estimator alone
    prior_share: float = 0.0  # then this share: prior alone, without the data step
    precision: str = "fp32"  # fp32 | bf16 | fp16
    tf32: bool = False
    channels_last: bool = False
    compile: bool = False
    nonfinite_budget: int = 10  # steps that may be skipped for a non-finite gradient
    validate_every: int = 0  # steps; 0 = only at the last step


@dataclass
class LossSection:
    """omega |X - X_gt|_1 + (1 - omega) |H X - Y|_1 + radius |r - r_gt| (poster, Loss)."""

    omega: float = 0.5
    radius: float = 0.0  # weight of the blur-radius term, where the true radius is known
    relative: float = 0.0  # above 0: the first term is divided by |Y - X_gt|_1 + this


@dataclass
class ScalingSection:
    """How many processes share the work; never changes what is computed."""

    workers: Any = 1  # an integer, or [least, most] for an elastic run
    gpu: bool = False
    threads: int = 1  # torch threads per worker
    micro_batch: int = 0  # samples per forward pass; 0 = the worker's whole share
    cpus_per_worker: int = 1


@dataclass
class LoaderSection:
    """How samples reach the trainer; never changes which."""

    workers: int = 0  # loader processes per trainer; 0 = a thread of its own
    prefetch: int = 4  # batches made ahead


@dataclass
class CacheSection:
    """Where each node keeps copies of remote shards."""

    dir: str = ""  # default: $ERA_CACHE_DIR, else ~/.cache/era
    max_gb: float = 100.0


@dataclass
class CheckpointSection:
    """When the state is saved and how many are kept."""

    every: int = 200  # steps
    keep_best: int = 2


@dataclass
class TrackingSection:
    """W&B mirrors metrics.jsonl; `auto` is online with a key (WANDB_API_KEY), else offline."""

    wandb: str = "auto"  # auto | online | offline | disabled
    project: str = "era"
    group: str = ""
    log_every: int = 10  # steps between lines of metrics
    images: int = 2  # validation images drawn in panels


@dataclass
class DebugSection:
    """For proofs and searches."""

    log_samples: bool = False  # samples.jsonl: which samples every step saw
    stop_at: int = 0  # end this attempt after that step, with a checkpoint; 0 = at the last


@dataclass
class ChaosSection:
    """Kills the run's own workers, so that a user can see it resume."""

    kill_every: int = 0  # steps; 0 = never


@dataclass
class StorageSection:
    """What the cluster shares."""

    shared: bool = False  # local paths name one file system on every node


@dataclass
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
