"""Checkpoints that carry structure beside weights: safetensors and JSON, nothing is pickled or unpickled.

A checkpoint is a folder with `model.safetensors` (parameters and buffers), `training.safetensors` (tensors of
optimizers, schedulers, the compressor and random number generators) and `structure.json` (format and library versions,
layers' orders, every tensor's shape and dtype, all settings, checksums). It appears whole or not at all.
"""

from compressm.checkpoint.document import CheckpointStructure as CheckpointStructure
from compressm.checkpoint.document import TensorInfo as TensorInfo
from compressm.checkpoint.loading import load_checkpoint as load_checkpoint
from compressm.checkpoint.loading import read_structure as read_structure
from compressm.checkpoint.saving import save_checkpoint as save_checkpoint
