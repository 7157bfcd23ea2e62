"""A whole model as a list of operations on vectors in fixed memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from compressm.errors import ConfigError
from compressm.layers.block import Block
from compressm.layers.config import Task
from compressm.layers.model import SequenceModel
from compressm.layers.streaming.recurrences import Around, write_step, write_system
from compressm.layers.streaming.script import PlainScript, Script
from compressm.layers.streaming.vectors import Call, Tables, Vectors
from compressm.ops.kernels import usable


@dataclass(frozen=True)
class Program:
    """One step: an input is put into `inputs`, then come `calls`; a classifier then puts the mean into `features`.

    Last comes `head`, which leaves the scores in `scores`.
    """

    inputs: Tensor
    calls: tuple[Call, ...]
    head: tuple[Call, ...]
    scores: Tensor
    features: Tensor
    total: Tensor
    states: tuple[Tensor, ...]


@torch.inference_mode()
def prepare(model: SequenceModel, batch: int) -> Program:
    """The model as it is now, in evaluation, for `batch` sequences side by side."""
    like, width = model.head.weight.detach(), model.config.width
    script = _script(model, batch)
    x, total = Vectors(batch, width, like), like.new_zeros(batch, width)
    inputs = _encoder(model.encoder, x, script)
    states = tuple(_block(block, x, script) for block in model.blocks if isinstance(block, Block))
    features = x
    if model.config.task is Task.CLASSIFY:
        script.call(partial(total.add_, x.values))
        features = Vectors(batch, width, like)
    calls = script.take()
    scores = like.new_zeros(batch, model.head.out_features)
    script.product(model.head.weight, model.head.bias, features, scores)
    return Program(inputs, calls, script.take(), scores, features.values, total, states)


def _script(model: SequenceModel, batch: int) -> Script:
    stored = sum(p.numel() * p.element_size() for p in model.parameters())
    tables, like = Tables(stored + stored // 16), model.head.weight
    if batch > 1 or not usable(like.device, like.dtype):
        return PlainScript(tables)
    from compressm.layers.streaming.compiled import CompiledScript

    return CompiledScript(tables)


def _encoder(encoder: nn.Module, x: Vectors, script: Script) -> Tensor:
    """Where an input is put to be encoded into x."""
    batch, like = x.values.shape[0], x.values
    if isinstance(encoder, nn.Embedding):
        tokens = torch.zeros(batch, dtype=torch.int64, device=like.device)
        embeddings = script.tables.hold(encoder.weight.detach())
        script.call(partial(torch.index_select, embeddings, 0, tokens, out=x.values))
        return tokens
    if not isinstance(encoder, nn.Linear):
        raise ConfigError(f"The model's encoder is a {type(encoder).__name__}; a Streamer wants Linear or Embedding.")
    inputs = Vectors(batch, encoder.in_features, like)
    script.product(encoder.weight, encoder.bias, inputs, x.values)
    return inputs.values


def _block(block: Block, x: Vectors, script: Script) -> Tensor:
    """x += GLU(GELU(ssm(norm(x)))); returns the memory of the state, in the shape that the layer gives it.

    GELU(y) = (t + t erf(t)) / sqrt(2) with t = y / sqrt(2), whose factors belong to the matrices before and after it.
    """
    batch, width = x.values.shape
    t, both = Vectors(batch, width, x.values), x.values.new_zeros(batch, 2 * width)
    state = _normalised(block, x, t.values, script)
    script.gelu(t.values)
    script.product(block.gate.weight * math.sqrt(0.5), block.gate.bias, t, both)
    script.gate(both, x.values)
    return state


def _normalised(block: Block, x: Vectors, target: Tensor, script: Script) -> Tensor:
    """target = ssm(norm(x)) / sqrt(2), with the normalisation folded into the layer where both are linear."""
    layer, gain = block.causal(), math.sqrt(0.5)
    system, fixed = layer.system(), block.norm.fixed()
    if system is not None and fixed is not None:
        scale, shift = (t.to(target.device) for t in fixed)
        return write_system(system, Around(scale, shift, gain), x, target, script)
    source = Vectors(target.shape[0], target.shape[1], target)

    def normalise() -> None:
        source.values.copy_(block.norm.step(x.values))

    script.call(normalise)
    if system is None:
        return write_step(layer, gain, source, target, script)
    one, zero = x.values.new_ones(()), x.values.new_zeros(())
    return write_system(system, Around(one, zero, gain), source, target, script)
