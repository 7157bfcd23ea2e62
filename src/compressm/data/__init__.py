"""Data sets behind one interface: `load_dataset`, `Dataset`, and batches that depend on (seed, step) alone."""

from compressm.data.batching import Batch as Batch
from compressm.data.batching import Batcher as Batcher
from compressm.data.batching import batch_indices as batch_indices
from compressm.data.batching import steps_per_epoch as steps_per_epoch
from compressm.data.dataset import Dataset as Dataset
from compressm.data.dataset import Sequences as Sequences
from compressm.data.dataset import Split as Split
from compressm.data.dataset import Task as Task
from compressm.data.digits import load_digits as load_digits
from compressm.data.mnist import load_smnist as load_smnist
from compressm.data.normalisation import Normalisation as Normalisation
from compressm.data.normalisation import Scaling as Scaling
from compressm.data.npz import load_npz as load_npz
from compressm.data.registry import DATASETS as DATASETS
from compressm.data.registry import load_dataset as load_dataset
