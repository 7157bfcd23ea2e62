"""Which form of a diagonal recurrence is cheapest: a pure function of shapes."""

from __future__ import annotations

import math
from enum import Enum


class Form(Enum):
    """How a linear recurrence is computed. All forms give the same output up to rounding."""

    REFERENCE = "reference"  # one step after another in plain torch: the oracle
    CONVOLUTION = "convolution"  # FFT convolution with the impulse response
    CHUNKED = "chunked"  # blocks of time: matrix products and one elementwise recurrence, state carried between blocks


# How many operations of a dense matrix product take as long as one operation of each other kind. Fitted to the ratios
# that benchmarks/scan_forms.py measures on two CPU cores; they predict its ratios to within a factor of two.
_FFT = 2.0
_MIXING = 5.0
_RECURRENCE = 24.0
_STEP = 5e4  # one time step's share of the calls


def convolution_cost(batch: int, length: int, width_in: int, width_out: int, order: int) -> float:
    """Operations of the convolution: kernel (grows with width_in * width_out * order), transforms, and mixing.

    The kernel does not depend on the batch, the transforms do not depend on the order: narrow layers, long
    sequences and large batches gain.
    """
    size = 2 * max(length, 1)
    kernel = 4.0 * length * width_in * width_out * order
    transforms = 2.5 * size * math.log2(size) * (batch * (width_in + width_out) + width_in * width_out)
    mixing = 4.0 * size * batch * width_in * width_out
    return kernel + _FFT * transforms + _MIXING * mixing


def chunked_cost(batch: int, length: int, width_in: int, width_out: int, order: int) -> float:
    """Operations of the chunked form: drive and readout per step, the recurrence, and one call per step."""
    products = 4.0 * batch * length * order * (width_in + width_out)
    recurrence = 8.0 * batch * length * order
    return products + _RECURRENCE * recurrence + _STEP * length


def choose_form(batch: int, length: int, width_in: int, width_out: int, order: int, training: bool) -> Form:
    """The cheaper form for these shapes.

    The choice depends on nothing but its arguments, so that resumed runs and all ranks agree. Training triples the
    cost of either form; the chunked form computes its states anew in the backward pass where they outnumber the
    inputs, which adds a fifth.
    """
    chunked = chunked_cost(batch, length, width_in, width_out, order) * (1.2 if training and order > width_in else 1.0)
    convolution = convolution_cost(batch, length, width_in, width_out, order)
    return Form.CONVOLUTION if convolution <= chunked else Form.CHUNKED
