"""Layers as a few operations on vectors in fixed memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from compressm.layers.base import SequenceLayer
from compressm.layers.streaming.script import Script
from compressm.layers.streaming.vectors import Vectors
from compressm.layers.systems import DenseBank, DenseSystem, DiagonalBank, DiagonalSystem, LinearSystem
from compressm.ops.precision import precise


@dataclass(frozen=True)
class Around:
    """What surrounds a system f: gain * f(scale * u + shift), with scale and shift (H,) or ()."""

    scale: Tensor
    shift: Tensor
    gain: float


def write_system(system: LinearSystem, around: Around, source: Vectors, target: Tensor, script: Script) -> Tensor:
    """From source (batch, H) to target (batch, H), with what surrounds the system folded into its matrices.

    Returns the memory of the state, in the shape that the layer gives it.
    """
    match system:
        case DiagonalSystem():
            return _diagonal(system, around, source, target, script)
        case DenseSystem():
            return _dense(system, around, source, target, script)
        case DiagonalBank():
            return _diagonal_bank(system, around, source, target, script)
        case DenseBank():
            return _dense_bank(system, around, source, target, script)


def write_step(layer: SequenceLayer, gain: float, source: Vectors, target: Tensor, script: Script) -> Tensor:
    """`gain` times what the layer's own `step` gives; returns the state's memory."""
    state = layer.initial_state(target.shape[0])

    def call() -> None:
        y, after = layer.step(source.values, state)
        state.copy_(after)
        torch.mul(y, gain, out=target)

    script.call(call)
    return state


def _diagonal(system: DiagonalSystem, around: Around, source: Vectors, target: Tensor, script: Script) -> Tensor:
    batch, order = target.shape[0], system.nu.shape[0]
    states = Vectors(batch, 2 * order, target)
    drive = target.new_zeros(batch, 2 * order)
    pole = torch.polar(torch.exp(-precise(system.nu)), precise(system.theta)).to(target.dtype.to_complex())
    b = torch.stack([precise(system.b_re), precise(system.b_im)], 1).flatten(0, 1)  # (2 N, H): the order of the states
    c = torch.stack([precise(system.c_re), -precise(system.c_im)], 2).flatten(1, 2)
    scale, shift, d = precise(around.scale), precise(around.shift), precise(system.d)
    script.product(b * scale, b @ shift.expand(b.shape[1]), source, drive)
    script.advance(pole, drive, states.values)
    script.product(around.gain * c, around.gain * d * shift, states, target)
    script.add_product((around.gain * d * scale).to(target), source.values, target)
    return states.values.unflatten(1, (order, 2))


def _dense(system: DenseSystem, around: Around, source: Vectors, target: Tensor, script: Script) -> Tensor:
    batch, order, width = target.shape[0], system.a.shape[0], target.shape[1]
    inputs = Vectors(batch, order + width, target)  # the state, then the input
    state, u = inputs.values.split([order, width], 1)
    after = target.new_zeros(batch, order)
    scale, shift = precise(around.scale), precise(around.shift).expand(width)
    a, b, c, d = (precise(matrix) for matrix in (system.a, system.b, system.c, system.d))
    script.copy(source.values, u)
    script.product(torch.cat([a, b * scale], 1), b @ shift, inputs, after)
    script.copy(after, state)
    script.product(around.gain * torch.cat([c, d * scale], 1), around.gain * (d @ shift), inputs, target)
    return state


def _diagonal_bank(system: DiagonalBank, around: Around, source: Vectors, target: Tensor, script: Script) -> Tensor:
    (batch, width), order = target.shape, system.nu.shape[1]
    memory = target.new_zeros(batch, width, order + 1, 2)  # each channel's states, then its input
    state, u = memory[:, :, :order], memory[:, :, order, 0]
    moving, driving = torch.view_as_complex(memory).split([order, 1], 2)
    scale, shift = around.scale.to(target), around.shift.to(target)
    pole = torch.polar(torch.exp(-precise(system.nu)), precise(system.theta)).to(moving.dtype)
    read = torch.stack([precise(system.w_re), -precise(system.w_im)], 2)
    through = torch.stack([precise(system.d), torch.zeros_like(precise(system.d))], 1)
    weights = (around.gain * torch.cat([read, through[:, None]], 1)).to(target)
    products = torch.empty_like(memory)
    script.call(partial(torch.addcmul, shift, scale, source.values, out=u))
    script.call(partial(torch.addcmul, driving, pole, moving, out=moving))
    script.call(partial(torch.mul, memory, weights, out=products))
    script.call(partial(torch.sum, products.flatten(2), -1, out=target))
    return state


def _dense_bank(system: DenseBank, around: Around, source: Vectors, target: Tensor, script: Script) -> Tensor:
    (batch, width), order = target.shape, system.a.shape[1]
    dtype = target.dtype.to_complex() if system.a.is_complex() else target.dtype
    memory = target.new_zeros(width, order + 1, batch, dtype=dtype)  # each channel's states, then its input
    parts = torch.view_as_real(memory) if memory.is_complex() else memory.unsqueeze(-1)
    state, u = memory[:, :order], parts[:, order, :, 0].mT
    after = torch.empty_like(state)
    moved = script.tables.hold(torch.cat([system.a, system.b.unsqueeze(-1)], 2).to(dtype))
    read = torch.stack([system.c.real, -system.c.imag], 2) if memory.is_complex() else system.c.unsqueeze(-1)
    through = torch.zeros_like(read[:, :1])
    through[:, 0, 0] = system.d
    weights = (around.gain * torch.cat([read, through], 1)).to(target).unsqueeze(2)
    products = torch.empty_like(parts)
    scale, shift = around.scale.to(target), around.shift.to(target)
    script.call(partial(torch.addcmul, shift, scale, source.values, out=u))
    script.call(partial(torch.bmm, moved, memory, out=after))
    script.call(partial(state.copy_, after))
    script.call(partial(torch.mul, parts, weights, out=products))
    script.call(partial(torch.sum, products, (1, 3), out=target.mT))
    states = state.permute(2, 0, 1)
    return torch.view_as_real(states) if states.is_complex() else states
