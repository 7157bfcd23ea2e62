"""Compression while a model trains: schedules, the guard, presets, and the compressor that joins them."""

from compressm.training.batches import SeededBatches as SeededBatches
from compressm.training.compressor import InTrainingCompressor as InTrainingCompressor
from compressm.training.compressor import OnError as OnError
from compressm.training.growing import GrowingBatch as GrowingBatch
from compressm.training.growing import RateRule as RateRule
from compressm.training.guard import Guard as Guard
from compressm.training.history import Cut as Cut
from compressm.training.history import Event as Event
from compressm.training.history import History as History
from compressm.training.history import RolledBack as RolledBack
from compressm.training.history import Skipped as Skipped
from compressm.training.plan import CutPlan as CutPlan
from compressm.training.presets import PRESETS as PRESETS
from compressm.training.presets import Preset as Preset
from compressm.training.schedule import At as At
from compressm.training.schedule import Every as Every
from compressm.training.schedule import Never as Never
from compressm.training.schedule import Schedule as Schedule
from compressm.training.schedule import WarmupThenEvery as WarmupThenEvery
from compressm.training.schedule import Window as Window
from compressm.training.schedule import schedule_from_dict as schedule_from_dict
from compressm.training.summary import SizeTime as SizeTime
from compressm.training.summary import TrainingSummary as TrainingSummary
