"""What the difference of two impulse responses looks like: the usual mistakes have a shape of their own."""

from __future__ import annotations

import torch
from torch import Tensor

_CLOSE = 1e-2  # of the response's size: what is left over once a mistake is accounted for


def diagnose(found: Tensor, wanted: Tensor) -> str | None:
    """A sentence on how `found` `(L, p, m)` differs from `wanted`, None where it is no mistake of a known shape."""
    size = float(wanted.abs().max())
    if found.shape != wanted.shape or not size > 0:
        return None

    def same(first: Tensor, second: Tensor) -> bool:
        return first.numel() > 0 and bool(((first - second).abs() <= _CLOSE * size).all())

    if same(found[1:], wanted[1:]):
        return "Only step 0 differs: D is missing, doubled or has the wrong sign (h_0 = C B + D)"
    if same(found[1:], wanted[:-1]) or same(found[2:], wanted[1:-1]):
        return "It comes one step later: x_k is updated before the output, y_k = C x_k after x_k = A x_{k-1} + B u_k"
    if same(found[:-1], wanted[1:]) or same(found[1:-1], wanted[2:]):
        return "It comes one step earlier: C A^l B starts at l = 0, y_k = C x_k after x_k = A x_{k-1} + B u_k"
    if wanted.shape[1] == wanted.shape[2] > 1 and same(found, wanted.mT):
        return "Inputs and outputs are exchanged: B is (n, m) and C is (p, n)"
    ratio = float((found[1:] * wanted[1:]).sum() / wanted[1:].square().sum().clamp_min(1e-300))
    if abs(ratio) > _CLOSE and same(found[1:], ratio * wanted[1:]):
        return f"From step 1 on it is {ratio:.4g} times that: a factor is missing (2 for conjugate pairs, a gain)"
    weights = (wanted[1:].abs() > _CLOSE * size).double()
    lag = torch.arange(1, len(wanted), dtype=torch.float64)[:, None, None]
    quotient = (found[1:] / wanted[1:]).abs().clamp(1e-300, 1e300).log() / lag
    rate = float((quotient.nan_to_num() * weights).sum() / weights.sum().clamp_min(1))
    if same(found[1:] * torch.exp(-rate * lag), wanted[1:]):
        return f"It decays by a factor of {float(torch.tensor(rate).exp()):.4g} a step beside that: |pole| is misread"
    return None
