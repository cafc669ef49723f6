"""The configuration of a training run: the command line, the TOML file, the help and what is logged are all made of it.

The text below a field is its help; its type says how it is written and which values are allowed. A value ``"auto"`` and
an empty ``resolutions`` are chosen when the run starts, by the data, the model and the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from engine.toml import to_toml
from engine.values import ON_OFF, Bounds, ConfigError, comma_separated, option

__all__ = [
    "AugmentConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "LoaderConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ResolutionConfig",
    "RunConfig",
]

MIN_RESOLUTION = 8
MAX_RESOLUTIONS = 6

_PRESET = "from --augment"

Name = Annotated[str, option(metavar="NAME")]
Count = Annotated[int, Bounds(0)]
LoaderName = Literal["auto", "roi", "dali", "ffcv", "torch", "synthetic"]
Positive = Annotated[int, Bounds(1)]
NonNegative = Annotated[float, Bounds(0)]
Probability = Annotated[float, Bounds(0, 1)]
Share = Annotated[float, Bounds(0, 1, below=True)]
Resolutions = Annotated[tuple[int, ...], comma_separated(int, "N,N,..."), Bounds(MIN_RESOLUTION)]
Starts = Annotated[tuple[float, ...], comma_separated(float, "0,X,..."), Bounds(0, 1, below=True)]
PresetProbability = Annotated[float | None, option(metavar="P", unset=_PRESET), Bounds(0, 1)]


@dataclass(frozen=True)
class DataConfig:
    """The images, their labels and the split."""

    data: Annotated[Positional[str], option(metavar="DATA")] = "demo"
    """A folder of images (train/ and val/ of class folders, or class folders), a known set (cifar10, ...) or demo."""
    csv: Annotated[Path | None, option(metavar="FILE", unset="none")] = None
    """CSV file with the path and the label of each image."""
    image_root: Annotated[Path | None, option(metavar="DIR", unset="DATA, or the CSV's own folder")] = None
    """Folder that the paths in --csv start from."""
    path_column: Name = "path"
    """Column of --csv with the paths."""
    label_column: Name = "label"
    """Column of --csv with the labels."""
    split_column: Name = "split"
    """Column of --csv that says train or val; without it the split is drawn."""
    val_fraction: Annotated[float, Bounds(0, 1, above=True, below=True)] = 0.1
    """Share of each class to validate on, where DATA has no validation set of its own."""
    limit_train: Count = 0
    """Use only so many training images (0: all)."""
    limit_val: Count = 0
    """Use only so many validation images (0: all)."""
    cache: Annotated[Path | None, option(metavar="DIR", unset="the user's cache folder")] = None
    """Where the demo set, downloads and indexes are kept."""


@dataclass(frozen=True)
class LoaderConfig:
    """What decodes the images and brings them to the model."""

    loader: LoaderName = "auto"
    """Backend; synthetic makes up images, to measure training alone.
    auto: by what is installed and how fast it proves here."""
    num_workers: Annotated[int | Literal["auto"], option("--workers", "-j", metavar="auto|N"), Bounds(0)] = "auto"
    """Worker processes of torch, threads of the others (auto: found while training)."""
    pack: Literal["auto", "shrink", "keep", "off"] = "auto"
    """What roi does with image files when it first sees them.
    shrink: pack them into the cache, as JPEGs of quality 90 and limited size.
    keep: pack them with their original JPEG data.
    off: read the files as they are.
    auto: shrink; off where --loader auto has chosen roi."""
    pack_side: Count = 0
    """Longest side of packed images, in pixels (0: 500, or twice the largest size trained at)."""
    renditions: Annotated[Resolutions, option(unset="none")] = ()
    """Longest sides of smaller versions to pack as well, for long phases at low resolution."""
    roi_resample: Literal["cpu", "device"] = "cpu"
    """Where roi resizes what it has decoded.
    cpu: in its threads.
    device: on the GPU, for cores that cannot keep up with it. Decoding stays, nine tenths of their work."""
    on_bad_sample: Literal["skip", "raise"] = "skip"
    """A file that cannot be decoded is replaced and listed in bad_samples.csv, or ends the run."""
    max_bad_fraction: Probability = 0.01
    """End the run when more than this share of a set is bad."""
    prefetch: Positive = 2
    """Batches that are prepared ahead, for each worker."""
    drop_last: bool = False
    """Leave out the last batch of an epoch when it is not full."""


@dataclass(frozen=True)
class ResolutionConfig:
    """The size of the images, and how it grows during training (progressive resizing)."""

    resolutions: Annotated[Resolutions, option(unset="by the data")] = ()
    """Sizes to train at, in pixels, rising, at most 6."""
    resolution_schedule: Literal["auto", "fixed", "linear", "stages", "metric"] = "auto"
    """fixed: the largest size throughout.
    linear: the size grows evenly over the run, in the given steps.
    stages: each size has its part of the run.
    metric: the size steps up when validation top-1 stops gaining.
    auto: stages, if there are several sizes."""
    stage_starts: Annotated[Starts, option(unset="even parts")] = ()
    """stages: where in the run each size starts, as fractions beginning with 0."""
    latest_starts: Annotated[Starts, option(unset="evenly up to 0.75")] = ()
    """metric: where in the run each size starts at the latest."""
    step_patience: Positive = 2
    """metric: evaluations over which the gain is taken."""
    step_min_gain: NonNegative = 0.3
    """metric: step up when the gain is below this, in percentage points."""
    step_cooldown: Count = 1
    """metric: evaluations after a step up that are ignored."""
    batch_sizes: Annotated[
        Literal["fixed", "auto"] | tuple[int, ...],
        comma_separated(int, "fixed|auto|N,N,...", words=("fixed", "auto")),
        Bounds(1),
    ] = "fixed"
    """fixed: --batch-size throughout.
    auto: --batch-size at the largest size; smaller images in larger batches with about as many pixels.
    N,N,...: one batch size for each of --resolutions."""
    lr_with_batch: Literal["none", "sqrt", "linear"] = "sqrt"
    """How the learning rate follows a batch that differs from --batch-size."""
    regularization: Literal["fixed", "adaptive"] = "fixed"
    """adaptive: weaker augmentation and dropout at smaller sizes (EfficientNetV2)."""
    regularization_start: Probability = 0.3
    """adaptive: strength at the smallest size, as a fraction of the full strength."""
    val_resolution: Annotated[int, option(metavar="N")] = 0
    """Size to validate at (0: the largest size trained at)."""
    crop_fraction: Annotated[float, option("--crop-pct"), Bounds(0, 1, above=True)] = 1.0
    """Side of the centered square to validate on, over the image's shorter side."""
    final_resolutions: Annotated[Resolutions, option(unset="none")] = ()
    """Evaluate the finished model at these sizes too."""


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are varied: by a preset, of which other options change single parts, or by your own list."""

    augment: Literal["none", "light", "standard", "strong"] = "light"
    """Preset."""
    crop: Annotated[Literal["random-resized", "padded", "center"] | None, option(metavar="NAME", unset=_PRESET)] = None
    """random-resized: a random part, resized; padded: shifted within a reflected border; center: none."""
    scale: Annotated[
        tuple[float, float] | None,
        comma_separated(float, "LOW,HIGH", length=2),
        option(unset=_PRESET),
        Bounds(0, 1, above=True),
    ] = None
    """Area of a random-resized crop over the image's."""
    ratio: Annotated[
        tuple[float, float] | None,
        comma_separated(float, "LOW,HIGH", length=2),
        option(unset=_PRESET),
        Bounds(0, above=True),
    ] = None
    """Width of a random-resized crop over its height."""
    hflip: PresetProbability = None
    """Probability of a horizontal flip."""
    rotation: Annotated[float | None, option(metavar="DEGREES", unset=_PRESET), Bounds(0, 180)] = None
    """Rotate by up to so many degrees either way."""
    color_jitter: Annotated[float | None, option(metavar="X", unset=_PRESET), Bounds(0, 1)] = None
    """Strength of random brightness, contrast, saturation and hue."""
    rand_augment: Annotated[
        tuple[int, int] | None,
        comma_separated(int, "LAYERS,MAGNITUDE", length=2),
        option(unset=_PRESET),
        Bounds(0, 30),
    ] = None
    """RandAugment: operations per image, and their magnitude of 0 to 30."""
    trivial_augment: Annotated[bool | None, ON_OFF, option(unset=_PRESET)] = None
    """TrivialAugment: one operation of random magnitude."""
    erasing: Annotated[float | None, option("--reprob", metavar="P", unset=_PRESET), Bounds(0, 1)] = None
    """Probability of erasing a random rectangle."""
    blur: PresetProbability = None
    """Probability of a Gaussian blur."""
    grayscale: PresetProbability = None
    """Probability of becoming gray."""
    mixup: Annotated[float | None, option(metavar="ALPHA", unset=_PRESET), Bounds(0)] = None
    """Mixup's alpha (0: off)."""
    cutmix: Annotated[float | None, option(metavar="ALPHA", unset=_PRESET), Bounds(0)] = None
    """CutMix's alpha (0: off)."""
    transforms: Annotated[Path | None, option(metavar="FILE", unset="none")] = None
    """Python file that is run and defines `transforms`, a torchvision Compose or a list of transforms.
    Replaces the preset and its options but mixup and cutmix. Its size is trained at, its normalization used."""
    reorder: Literal["exact", "approx", "off"] = "exact"
    """What the order of --transforms may be changed to, for speed.
    exact: one that changes nothing but rounding.
    approx: also pixels at edges and where values clip.
    off: the one as written is kept."""


@dataclass(frozen=True)
class ModelConfig:
    """The network and the precision it computes in."""

    model: Name = "auto"
    """Name of a timm or torchvision model (auto: a small one by image size and device)."""
    pretrained: bool = False
    """Start from the weights published with the model."""
    weights: Annotated[Path | None, option("--initial-checkpoint", metavar="FILE", unset="none")] = None
    """Start from this file (safetensors or a state dict); a head for other classes is made anew."""
    dropout: Annotated[Share, option("--drop")] = 0.0
    """Dropout before the classifier."""
    drop_path: Share = 0.0
    """Stochastic depth, where the model has it."""
    freeze: Annotated[str, option(metavar="NAME,...", unset="none")] = ""
    """Layers to keep as they are, with their batch-norm statistics, for example stem,layer1."""
    layer_decay: Annotated[float, Bounds(0, 1, above=True)] = 1.0
    """Factor of the learning rate from each layer to the one before it."""
    sync_bn: bool = False
    """Batch-norm statistics over all GPUs."""
    ema: Annotated[bool, option("--model-ema")] = False
    """Evaluate and keep an exponential moving average of the weights."""
    ema_decay: Annotated[Share, option("--model-ema-decay")] = 0.9998
    """Decay of the average, per step."""
    channels_last: bool = True
    """Memory layout with the channels innermost: faster convolutions."""
    compile: Annotated[bool, option("--torchcompile")] = False
    """Compile the model with torch.compile, once for each size."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision (auto: what the device is fast at)."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How long to train, and how the weights are updated."""

    epochs: Positive = 10
    """Passes over the training images."""
    batch_size: Annotated[int, option("-b"), Bounds(1)] = 64
    """Images per update, over all processes and accumulation steps."""
    opt: Name = "sgd"
    """sgd (Nesterov), adamw, or another optimizer of timm by name."""
    lr: Annotated[float | Literal["auto"], option(metavar="auto|LR"), Bounds(0, above=True)] = "auto"
    """Peak learning rate at --batch-size (auto: by optimizer and batch size)."""
    momentum: Share = 0.9
    """Momentum of sgd."""
    weight_decay: Annotated[float | Literal["auto"], option("--wd", metavar="auto|X"), Bounds(0)] = "auto"
    """Weight decay, of matrices and convolutions only (auto: by optimizer)."""
    schedule: Annotated[Literal["one-cycle", "cosine", "step", "linear", "constant"], option("--sched")] = "one-cycle"
    """Course of the learning rate over the samples seen."""
    warmup_epochs: Annotated[float | Literal["auto"], option(metavar="auto|X"), Bounds(0)] = "auto"
    """Epochs in which the learning rate rises (auto: by schedule and length)."""
    min_lr_fraction: Probability = 0.0
    """Learning rate at the end, as a fraction of the peak."""
    step_epochs: Annotated[float, option("--decay-epochs"), Bounds(0)] = 0.0
    """step: epochs between two steps (0: a third of the run)."""
    step_factor: Annotated[float, option("--decay-rate"), Bounds(0, 1, above=True)] = 0.1
    """step: what the learning rate is multiplied by."""
    grad_accum_steps: Positive = 1
    """Split each batch into so many parts that are computed one after the other, to save memory."""
    clip_grad: NonNegative = 0.0
    """Largest norm of the gradient (0: no limit)."""


@dataclass(frozen=True)
class LossConfig:
    """What is minimized."""

    smoothing: Annotated[Share, option("--label-smoothing")] = 0.1
    """Label smoothing."""
    class_weights: Literal["none", "inverse", "effective"] = "none"
    """Weigh classes by their inverse frequency, or by their effective number of samples."""
    focal_gamma: NonNegative = 0.0
    """Focus on hard samples with this exponent (0: plain cross entropy)."""
    balanced_sampling: bool = False
    """Draw every class equally often."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A loss that is not finite ends the run, or its update is skipped and counted."""


@dataclass(frozen=True)
class RunConfig:
    """Where the run is kept, when it ends, and what it shows."""

    output: Annotated[Path, option(metavar="DIR")] = Path("runs")
    """Folder in which the run's own folder is made."""
    name: Annotated[str, option("--experiment", metavar="NAME", unset="none")] = ""
    """Added to the name of the run's folder."""
    seed: Annotated[int, Bounds(0, 2**63 - 1)] = 0
    """Seed of everything that is drawn."""
    device: Name = "auto"
    """auto, cpu, cuda or cuda:N."""
    deterministic: bool = False
    """Use deterministic algorithms only, even where they are slower."""
    resume: Annotated[str | None, option(metavar="auto|PATH", unset="none")] = None
    """A run's folder or checkpoint to go on with.
    auto: the newest unfinished run under --output with the same options and data, if there is one."""
    save_every: Annotated[str, option(metavar="TIME")] = "10min"
    """Time between two checkpoints within an epoch."""
    time_limit: Annotated[str, option(metavar="TIME", unset="none")] = ""
    """Stop after this time, for example 90s, 20min or 1h30min."""
    target: Annotated[str, option(metavar="METRIC=X", unset="none")] = ""
    """Stop once validation reaches this, for example top1=93."""
    early_stop: Count = 0
    """Stop after so many epochs without a better top-1 (0: never)."""
    log_every: Annotated[int, option("--log-interval"), Bounds(1)] = 20
    """Steps between two records in metrics.jsonl."""
    tta: bool = False
    """Evaluate each image together with its mirror image."""
    plan: bool = False
    """Print the stages with their expected cost, and stop."""
    threads: Count = 0
    """Threads of PyTorch on the CPU (0: by the cores)."""


@dataclass(frozen=True)
class Config:
    """Everything that a training run is told."""

    data: DataConfig = field(default_factory=DataConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    resolution: ResolutionConfig = field(default_factory=ResolutionConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_toml(self) -> str:
        """Return the configuration as TOML, which ``--config`` takes."""
        return to_toml(self)
