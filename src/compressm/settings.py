"""All settings of a cut in one frozen value, shared by the API, the training loop and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum

from compressm.checks import require_integer, require_kind, require_number
from compressm.errors import ConfigError
from compressm.linalg.clamping import MARGIN
from compressm.linalg.forms import Frame
from compressm.reduction.criteria import Criterion, HankelEnergy, OrderPolicy
from compressm.reduction.keeping import BalancedSelection
from compressm.reduction.reducers import BalancedTruncation, Reducer
from compressm.reduction.result import GramianSource
from compressm.reduction.selection import ModalTruncation
from compressm.reduction.weighting import Limits
from compressm.surgery.policy import StatePolicy


class Balancing(Enum):
    """Which system is balanced where a complex one has a real output y = Re(C x)."""

    REAL = "real"  # the real system of order 2n that the layer is
    COMPLEX = "complex"  # the complex system (A, B, C) of order n, as the paper does

    @property
    def frame(self) -> Frame:
        """The coordinates that belong to it."""
        return Frame.REAL if self is Balancing.REAL else Frame.COMPLEX


class BatchOrder(Enum):
    """How the one order of a bank of systems (one for each channel of a layer) is chosen."""

    MAX = "max"  # the largest order that any of its systems wants
    POOLED = "pooled"  # the order that the mean of the systems' Hankel singular values wants


class Unstable(Enum):
    """What becomes of a layer with poles outside the unit circle, where its Gramians need stable ones."""

    ERROR = "error"  # UnstableSystemError; in training `on_error` says whether the cut of all layers is then skipped
    SKIP = "skip"  # this layer stays as it is, the others are cut
    CLAMP = "clamp"  # what is analysed, and stored by a cut, has these poles inside it by `stability_margin`


@dataclass(frozen=True)
class CompressionSettings:
    """How a layer is analysed and cut.

    * `criterion` chooses the order from the Hankel singular values; `multiple`, `minimum_gain` and `floor` are the
      limits around it (see `OrderPolicy`).
    * `batch_order`: how the systems of a bank, such as S4D's, agree on one order (see `BatchOrder`).
    * `balancing`: the real system behind y = Re(C x) (default), or the complex one as in the paper.
    * `controllability`: WHITE, or DATA from captured inputs. `observability`: WHITE, or LOSS from captured gradients of
      the loss. Where nothing was captured both are WHITE, and the report says so.
    * `horizon`: the number of steps of finite-horizon Gramians; None for infinite.
    * `reducer`: BalancedTruncation, SingularPerturbation (layers with a full D), BalancedSelection or ModalTruncation.
      A layer that stores only a choice of its present states gets BalancedSelection in place of the first two.
    * `optimizer_policy`: what becomes of the optimizer state of the parameters that are cut.
    * `exact_norms`: compute the H-infinity error exactly instead of a lower estimate on a grid.
    * `unstable`: ERROR, SKIP, or CLAMP to move unstable poles to the radius 1 - `stability_margin`, along their rays,
      in layers that store new poles. The report's `fallbacks` say what was done; a layer that is not cut keeps its
      poles. Stable layers are cut the same whatever it is.
    * `limits`: what a reduced system must satisfy to be stored.
    """

    criterion: Criterion = field(default_factory=HankelEnergy)
    multiple: int = 1
    minimum_gain: float = 0.0
    floor: int = 1
    batch_order: BatchOrder = BatchOrder.MAX
    balancing: Balancing = Balancing.REAL
    controllability: GramianSource = GramianSource.DATA
    observability: GramianSource = GramianSource.LOSS
    horizon: int | None = None
    reducer: Reducer | BalancedSelection | ModalTruncation = field(default_factory=BalancedTruncation)
    optimizer_policy: StatePolicy = StatePolicy.TRANSPORT
    exact_norms: bool = False
    limits: Limits = field(default_factory=Limits)
    unstable: Unstable = Unstable.ERROR
    stability_margin: float = 1e-3

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            require_kind(f"CompressionSettings.{name}", getattr(self, name), *kind)
        if self.controllability is GramianSource.LOSS or self.observability is GramianSource.DATA:
            raise ConfigError("Controllability is weighted by DATA and observability by LOSS, not the other way round.")
        if self.horizon is not None:
            require_integer("CompressionSettings.horizon", self.horizon, 1)
        margin = self.stability_margin
        require_number("CompressionSettings.stability_margin", margin, 0, 1, above=True, below=True, wanted=MARGIN)
        self.order_policy()

    def order_policy(self) -> OrderPolicy:
        """The criterion with its limits."""
        return OrderPolicy(self.criterion, self.multiple, self.minimum_gain, self.floor)

    def to_dict(self) -> dict[str, object]:
        """The settings as JSON values, for records and fingerprints."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


_KINDS: dict[str, tuple[type, ...]] = {
    "criterion": (Criterion,),
    "batch_order": (BatchOrder,),
    "balancing": (Balancing,),
    "controllability": (GramianSource,),
    "observability": (GramianSource,),
    "reducer": (Reducer, BalancedSelection, ModalTruncation),
    "optimizer_policy": (StatePolicy,),
    "exact_norms": (bool,),
    "limits": (Limits,),
    "unstable": (Unstable,),
}


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        inside = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"kind": type(value).__name__, **inside}
    return value
