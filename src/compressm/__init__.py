"""State space models that shrink while they train.

Two lines in a training loop::

    compressor = InTrainingCompressor(model, optimizer, total_steps=10_000)
    ...
    compressor.step()  # after optimizer.step()
"""

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
