"""What the weights of chosen states multiply: real functions of the states, by groups."""

from __future__ import annotations

import torch
from torch import Tensor

from compressm.linalg.statespace import StateSpace
from compressm.reduction.selection import SelectionRules


def regressors(system: StateSpace, rules: SelectionRules) -> Tensor:
    """The real functions of the states that a group's output weights multiply, `(*h, G, q, k)` in the real frame.

    Without a direction Re x and Im x of each of its states; with one the sum of Re(direction_i x_i) over the group.
    """
    return _functions(system, rules.output_direction, rules.group)


def co_regressors(system: StateSpace, rules: SelectionRules) -> Tensor:
    """As `regressors` for input weights: the b_i = direction_i beta of a group act on Re x_i and Im x_i together."""
    direction = rules.input_direction
    return _functions(system, None if direction is None else direction.conj(), rules.group)


def _functions(system: StateSpace, direction: Tensor | None, group: int) -> Tensor:
    n, pairs = system.order, system.is_complex
    eye = torch.eye(2 * n if pairs else n, dtype=torch.float64)
    if direction is None:
        rows = eye.reshape(2 if pairs else 1, n // group, group, -1).transpose(0, 1)
        return rows.reshape(n // group, -1, eye.shape[-1])
    parts = eye[:n] * direction.real.unsqueeze(-1)
    if pairs and direction.is_complex():
        parts = parts - eye[n:] * direction.imag.unsqueeze(-1)
    return parts.unflatten(-2, (n // group, group)).sum(-2, keepdim=True)
