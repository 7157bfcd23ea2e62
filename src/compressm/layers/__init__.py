"""State space layers and a sequence model built of them; ignorant of compression."""

from compressm.layers.base import SequenceLayer as SequenceLayer
from compressm.layers.bidirectional import Bidirectional as Bidirectional
from compressm.layers.block import Block as Block
from compressm.layers.config import ModelConfig as ModelConfig
from compressm.layers.config import Task as Task
from compressm.layers.dense import DenseSSM as DenseSSM
from compressm.layers.dss import DSS as DSS
from compressm.layers.dss import DSSKernel as DSSKernel
from compressm.layers.families import FAMILIES as FAMILIES
from compressm.layers.families import Family as Family
from compressm.layers.families import LayerKind as LayerKind
from compressm.layers.hippo import DiagonalInit as DiagonalInit
from compressm.layers.lru import LRU as LRU
from compressm.layers.lssl import LSSL as LSSL
from compressm.layers.model import SequenceModel as SequenceModel
from compressm.layers.model import StreamState as StreamState
from compressm.layers.norm import MaskedBatchNorm as MaskedBatchNorm
from compressm.layers.norm import MaskedLayerNorm as MaskedLayerNorm
from compressm.layers.norm import NormKind as NormKind
from compressm.layers.s4 import S4 as S4
from compressm.layers.s4d import S4D as S4D
from compressm.layers.s5 import S5 as S5
from compressm.layers.streaming import Streamer as Streamer
from compressm.layers.systems import DenseSystem as DenseSystem
from compressm.layers.systems import DiagonalSystem as DiagonalSystem
from compressm.layers.systems import LinearSystem as LinearSystem
