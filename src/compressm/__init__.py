"""State space models that shrink while they train.

Two lines in a training loop::

    compressor = InTrainingCompressor(model, optimizer, total_steps=10_000)
    ...
    compressor.step()  # after optimizer.step()

Nothing is imported before it is used: `import compressm` takes no time, and `compressm --help` waits for no PyTorch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors; the same names as below
    from compressm.adapters.base import Form as Form
    from compressm.adapters.base import StateSpaceAdapter as StateSpaceAdapter
    from compressm.adapters.calibration import Calibration as Calibration
    from compressm.adapters.registry import find_layers as find_layers
    from compressm.adapters.registry import register_adapter as register_adapter
    from compressm.adapters.update import LayerUpdate as LayerUpdate
    from compressm.adapters.update import Pullback as Pullback
    from compressm.adapters.update import Reset as Reset
    from compressm.adapters.update import Select as Select
    from compressm.checkpoint import load_checkpoint as load_checkpoint
    from compressm.checkpoint import save_checkpoint as save_checkpoint
    from compressm.compress import analyze as analyze
    from compressm.compress import compress_ as compress_
    from compressm.errors import CompressmError as CompressmError
    from compressm.linalg.forms import Frame as Frame
    from compressm.linalg.hankel import hankel_singular_values as hankel_singular_values
    from compressm.linalg.statespace import StateSpace as StateSpace
    from compressm.reduction.criteria import ErrorBound as ErrorBound
    from compressm.reduction.criteria import FixedFraction as FixedFraction
    from compressm.reduction.criteria import FixedOrder as FixedOrder
    from compressm.reduction.criteria import HankelEnergy as HankelEnergy
    from compressm.reduction.criteria import Reference as Reference
    from compressm.reduction.keeping import BalancedSelection as BalancedSelection
    from compressm.reduction.reducers import BalancedTruncation as BalancedTruncation
    from compressm.reduction.reducers import SingularPerturbation as SingularPerturbation
    from compressm.reduction.report import CompressionReport as CompressionReport
    from compressm.reduction.report import ReductionPlan as ReductionPlan
    from compressm.reduction.result import GramianSource as GramianSource
    from compressm.reduction.selection import ModalTruncation as ModalTruncation
    from compressm.settings import Balancing as Balancing
    from compressm.settings import CompressionSettings as CompressionSettings
    from compressm.settings import Unstable as Unstable
    from compressm.surgery.policy import StatePolicy as StatePolicy
    from compressm.training.compressor import InTrainingCompressor as InTrainingCompressor
    from compressm.training.guard import Guard as Guard
    from compressm.training.schedule import At as At
    from compressm.training.schedule import Every as Every
    from compressm.training.schedule import WarmupThenEvery as WarmupThenEvery
    from compressm.training.schedule import Window as Window

__version__ = "0.1.0"

_EXPORTS = {
    "compressm.adapters.base": ("Form", "StateSpaceAdapter"),
    "compressm.adapters.calibration": ("Calibration",),
    "compressm.adapters.registry": ("find_layers", "register_adapter"),
    "compressm.adapters.update": ("LayerUpdate", "Pullback", "Reset", "Select"),
    "compressm.checkpoint": ("load_checkpoint", "save_checkpoint"),
    "compressm.compress": ("analyze", "compress_"),
    "compressm.errors": ("CompressmError",),
    "compressm.linalg.forms": ("Frame",),
    "compressm.linalg.hankel": ("hankel_singular_values",),
    "compressm.linalg.statespace": ("StateSpace",),
    "compressm.reduction.criteria": ("ErrorBound", "FixedFraction", "FixedOrder", "HankelEnergy", "Reference"),
    "compressm.reduction.keeping": ("BalancedSelection",),
    "compressm.reduction.reducers": ("BalancedTruncation", "SingularPerturbation"),
    "compressm.reduction.report": ("CompressionReport", "ReductionPlan"),
    "compressm.reduction.result": ("GramianSource",),
    "compressm.reduction.selection": ("ModalTruncation",),
    "compressm.settings": ("Balancing", "CompressionSettings", "Unstable"),
    "compressm.surgery.policy": ("StatePolicy",),
    "compressm.training.compressor": ("InTrainingCompressor",),
    "compressm.training.guard": ("Guard",),
    "compressm.training.schedule": ("At", "Every", "WarmupThenEvery", "Window"),
}
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = tuple(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """The exported name, or the module of the package, which is imported now."""
    if name in _HOMES:
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
