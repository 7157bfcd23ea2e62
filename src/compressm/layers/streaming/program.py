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
from compressm.layers.streaming.recurrences import Around, Recurrence, step_recurrence, system_recurrence
from compressm.layers.streaming.vectors import Call, Tables, Vectors, product


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
    x, total = Vectors(batch, width, like), like.new_zeros(batch, width)
    stored = sum(p.numel() * p.element_size() for p in model.parameters())
    tables = Tables(stored + stored // 16)
    inputs, calls = _encoder(model.encoder, x, tables)
    states: list[Tensor] = []
    for block in model.blocks:
        if isinstance(block, Block):
            recurrence = _block(block, x, tables)
            calls += recurrence.calls
            states.append(recurrence.state)
    features = x
    if model.config.task is Task.CLASSIFY:
        calls.append(partial(total.add_, x.values))
        features = Vectors(batch, width, like)
    scores = like.new_zeros(batch, model.head.out_features)
    head = product(model.head.weight, model.head.bias, features, scores, tables)
    return Program(inputs, tuple(calls), tuple(head), scores, features.values, total, tuple(states))


def _encoder(encoder: nn.Module, x: Vectors, tables: Tables) -> tuple[Tensor, list[Call]]:
    """Where an input is put, and the operations that encode it into x."""
    batch, like = x.values.shape[0], x.values
    if isinstance(encoder, nn.Embedding):
        tokens = torch.zeros(batch, dtype=torch.int64, device=like.device)
        embeddings = tables.hold(encoder.weight.detach())
        return tokens, [partial(torch.index_select, embeddings, 0, tokens, out=x.values)]
    if not isinstance(encoder, nn.Linear):
        raise ConfigError(f"The model's encoder is a {type(encoder).__name__}; a Streamer wants Linear or Embedding.")
    inputs = Vectors(batch, encoder.in_features, like)
    return inputs.values, product(encoder.weight, encoder.bias, inputs, x.values, tables)


def _block(block: Block, x: Vectors, tables: Tables) -> Recurrence:
    """x += GLU(GELU(ssm(norm(x)))).

    GELU(y) = (t + t erf(t)) / sqrt(2) with t = y / sqrt(2), whose factors belong to the matrices before and after it.
    """
    batch, width = x.values.shape
    t, e = Vectors(batch, width, x.values), x.values.new_zeros(batch, width)
    both = x.values.new_zeros(batch, 2 * width)
    value, gate = both.chunk(2, 1)
    recurrence = _normalised(block, x, t.values, tables)
    calls: list[Call] = [
        *recurrence.calls,
        partial(torch.erf, t.values, out=e),
        partial(t.values.addcmul_, t.values, e),
        *product(block.gate.weight * math.sqrt(0.5), block.gate.bias, t, both, tables),
        gate.sigmoid_,
        partial(x.values.addcmul_, value, gate),
    ]
    return Recurrence(calls, recurrence.state)


def _normalised(block: Block, x: Vectors, target: Tensor, tables: Tables) -> Recurrence:
    """target = ssm(norm(x)) / sqrt(2), with the normalisation folded into the layer where both are linear."""
    layer, gain = block.causal(), math.sqrt(0.5)
    system, fixed = layer.system(), block.norm.fixed()
    if system is not None and fixed is not None:
        scale, shift = (t.to(target.device) for t in fixed)
        return system_recurrence(system, Around(scale, shift, gain), x, target, tables)
    source = Vectors(target.shape[0], target.shape[1], target)
    if system is None:
        recurrence = step_recurrence(layer, gain, source, target)
    else:
        one, zero = x.values.new_ones(()), x.values.new_zeros(())
        recurrence = system_recurrence(system, Around(one, zero, gain), source, target, tables)

    def normalise() -> None:
        source.values.copy_(block.norm.step(x.values))

    return Recurrence([normalise, *recurrence.calls], recurrence.state)
