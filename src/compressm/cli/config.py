"""The settings of a run: one frozen dataclass, the only place where defaults are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import isfinite

from compressm.data.normalisation import Scaling
from compressm.errors import ConfigError
from compressm.layers.families import LayerKind
from compressm.layers.norm import NormKind
from compressm.reduction.criteria import Reference
from compressm.settings import Unstable
from compressm.surgery.policy import StatePolicy
from compressm.training.growing import RateRule
from compressm.training.presets import preset


class OptimizerKind(Enum):
    """Which optimizer trains the model."""

    ADAM = "adam"
    ADAMW = "adamw"


class PresetName(Enum):
    """Named settings of cuts, see `compressm.training.presets`."""

    DEFAULT = "default"  # weighted by data and loss, real output
    DATA = "data"  # the same without the loss
    WHITE = "white"  # classical Gramians, real output
    PAPER = "paper"  # as published


class RateSchedule(Enum):
    """What the learning rate does after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"  # down to `final_lr` at the last step


@dataclass(frozen=True)
class DataConfig:
    """Which data: a named set, or the user's own arrays at `path` (a `.npz` file, see `compressm.data.npz`)."""

    dataset: str = "digits"
    path: str | None = None
    scaling: Scaling = Scaling.STANDARD
    split_seed: int = 0  # of splits that are not official

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least("data.split_seed", self.split_seed, 0)


@dataclass(frozen=True)
class ModelOptions:
    """The model's form; its inputs and outputs follow from the data."""

    layer: LayerKind = LayerKind.LRU
    blocks: int = 2
    width: int = 24
    order: int = 64
    norm: NormKind = NormKind.BATCH
    dropout: float = 0.1
    bidirectional: bool = False
    r_min: float = 0.9
    r_max: float = 0.999
    init: str | None = None  # this and what follows: of some kinds of layers, see `ModelConfig`
    discretization: str | None = None
    dt_min: float | None = None
    dt_max: float | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("blocks", "width", "order"):
            _at_least(f"model.{name}", getattr(self, name), 1)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is {self.dropout}; wanted at least 0 and less than 1.")
        if not 0 <= self.r_min < self.r_max < 1:
            raise ConfigError(f"model.r_min is {self.r_min} and r_max {self.r_max}; wanted 0 <= r_min < r_max < 1.")


@dataclass(frozen=True)
class TrainingConfig:
    """Optimization.

    `threads` is PyTorch's own choice where None, and `kernels` true where compiled kernels can run; what is used is
    written to the run's config. `cost_table` is a file of `compressm bench --write`, stored with the run. Up to
    `growing_batch` cases, where given, are taken as cuts leave memory for them; `growing_rate` says what becomes of the
    learning rate (see `compressm.training.growing`).
    """

    steps: int = 1200
    batch_size: int = 50
    growing_batch: int | None = None
    growing_rate: RateRule = RateRule.NONE
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    lr: float = 4e-3
    final_lr: float = 1e-7
    schedule: RateSchedule = RateSchedule.COSINE
    warmup: int = 0  # steps of linear rise
    weight_decay: float = 0.01  # not on the parameters of state space layers
    ssm_lr_factor: float = 0.5  # of the learning rate, for the parameters of state space layers
    seed: int = 0
    threads: int | None = None
    kernels: bool | None = None
    cost_table: str | None = None
    eval_every: int = 100
    log_every: int = 10

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, least in (
            ("steps", 1),
            ("batch_size", 2),
            ("warmup", 0),
            ("eval_every", 1),
            ("log_every", 1),
        ):
            _at_least(f"training.{name}", getattr(self, name), least)
        _at_least("training.seed", self.seed, 0, most=2**62)  # PyTorch's generators take 64 bits, with a sign
        for name in ("lr", "final_lr", "weight_decay", "ssm_lr_factor"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise ConfigError(f"training.{name} is {value}; wanted a finite number of 0 or more.")
        if self.threads is not None:
            require_threads("training.threads", self.threads)
        if self.growing_batch is not None:
            _at_least("training.growing_batch", self.growing_batch, self.batch_size)
        elif self.growing_rate is not RateRule.NONE:
            raise ConfigError(
                f"training.growing_rate is {self.growing_rate.value}, but the batch does not grow. Give the largest "
                "batch as training.growing_batch, too."
            )


@dataclass(frozen=True)
class CompressionConfig:
    """When and how far to cut. What is None follows the preset.

    When: `cuts` equidistant cuts in `window` (first, last step), or every `every` steps (inside `window` where given),
    or `at` the given steps. How far: by `discard` (fraction of the sum of Hankel singular values), or the k-th cut to
    the k-th of `orders`, or a fraction `drop` of the states at each cut, or as far as the `bound` on the H-infinity
    error allows. `reference`, `multiple`, `floor`, `minimum_gain`, `optimizer_policy` and `unstable` are those of
    `CompressionSettings`; `calibration_steps` before a cut are captured. `refit` fits each cut layer to the inputs that
    were captured. `guard` takes a cut back where the
    validation metric is worse by more than this after `guard_probe` steps, or right before the next cut.
    """

    enabled: bool = True
    preset: PresetName = PresetName.DEFAULT
    cuts: int | None = None
    window: tuple[int, int] | None = None
    at: tuple[int, ...] | None = None
    every: int | None = None
    discard: float | None = None
    orders: tuple[int, ...] | None = None
    drop: float | None = None
    bound: float | None = None
    reference: Reference | None = None
    multiple: int | None = None
    floor: int | None = None
    minimum_gain: float | None = None
    optimizer_policy: StatePolicy | None = None
    unstable: Unstable | None = None
    calibration_steps: int = 2
    refit: bool = False
    guard: float | None = None
    guard_probe: int = 50

    def __post_init__(self) -> None:
        """Check ranges and contradictions."""
        how = [name for name in ("discard", "orders", "drop", "bound") if getattr(self, name) is not None]
        if len(how) > 1:
            raise ConfigError(f"compression: {' and '.join(how)} contradict each other; give one of them.")
        when = [name for name in ("cuts", "at", "every") if getattr(self, name) is not None]
        if len(when) > 1:
            raise ConfigError(f"compression: {' and '.join(when)} contradict each other; give one of them.")
        if self.at is not None and self.window is not None:
            raise ConfigError("compression: at and window contradict each other; give one of them.")
        for name in ("discard", "drop"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"compression.{name} is {value}; wanted at least 0 and less than 1.")
        if self.guard is not None and not (isfinite(self.guard) and self.guard >= 0):
            raise ConfigError(f"compression.guard is {self.guard}; wanted how much worse is still fine, 0 or more.")
        for name in ("cuts", "every", "guard_probe"):
            if getattr(self, name) is not None:
                _at_least(f"compression.{name}", getattr(self, name), 1)
        for name in ("orders", "at"):
            for value in getattr(self, name) or ():
                _at_least(f"compression.{name}", value, 1)
        if self.reference is not None and how and how != ["discard"]:
            raise ConfigError(f"compression: reference goes with discard, not with {how[0]}.")
        for name, least in (("multiple", 1), ("floor", 1), ("calibration_steps", 0)):
            if getattr(self, name) is not None:
                _at_least(f"compression.{name}", getattr(self, name), least)
        if self.orders is not None:
            self._check_orders(self.orders)
        if self.refit:
            self._check_refit()

    def _check_refit(self) -> None:
        preset(self.preset.value).refitted()
        if self.bound is not None:
            raise ConfigError(
                "compression: refit and bound contradict each other: a layer that is fitted to its inputs keeps to no "
                "bound. Give one of them."
            )
        if self.calibration_steps == 0:
            raise ConfigError(
                "compression.refit fits a cut to captured inputs, but compression.calibration_steps is 0: none are "
                "captured. Capture 1 step or more, or leave refit out."
            )

    def _check_orders(self, orders: tuple[int, ...]) -> None:
        if not orders:
            raise ConfigError("compression.orders is empty; wanted one order for each cut.")
        for name, number in (("cuts", self.cuts), ("at", None if self.at is None else len(self.at))):
            if number is not None and number != len(orders):
                raise ConfigError(
                    f"compression.orders has {len(orders)} orders for {number} cuts ({name}); wanted one each."
                )


@dataclass(frozen=True)
class OutputConfig:
    """What a run leaves behind and how often. `checkpoint_every` bounds what a kill can cost."""

    checkpoint_every: int = 200
    keep: int = 2  # newest checkpoints that stay
    tensorboard: bool = True
    pictures: bool = True

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least("output.checkpoint_every", self.checkpoint_every, 1)
        _at_least("output.keep", self.keep, 1)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelOptions = field(default_factory=ModelOptions)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


def require_threads(name: str, value: int) -> None:
    """Raise ConfigError for a number of threads that no machine has; PyTorch would end the process."""
    _at_least(name, value, 1, most=1024)


def _at_least(name: str, value: int, least: int, most: int | None = None) -> None:
    if value < least or (most is not None and value > most):
        limit = "or more" if most is None else f"to {most}"
        raise ConfigError(f"{name} is {value}; wanted {least} {limit}.")
