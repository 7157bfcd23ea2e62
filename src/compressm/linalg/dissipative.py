"""States in which a stable continuous system is a skew matrix less a positive diagonal one."""

from __future__ import annotations

import torch
from torch import Tensor

from compressm.errors import UnstableSystemError
from compressm.linalg.lyapunov import cayley, stein_factor

_FLOOR = 1e-8  # of the input's weight, given to every state alike: it decides the states that no input reaches
_HALVINGS = 40


def dissipative_states(a: Tensor, b: Tensor) -> Tensor:
    """T (n, n) with which T^{-1} A T has a negative diagonal and is skew beside it; a (n, n) stable, b (n, m), float64.

    With half of the slowest decay as alpha, T T^T is the controllability Gramian of the shifted system
    (A + alpha I, B), in directions that make the symmetric part of T^{-1} A T diagonal. In these states
    A + A^T = -2 alpha I - B B^T: white noise through the shifted system makes all of them of one size. HiPPO-LegS has
    this form in its own states, with alpha = 1/2. Every stable system has it in some states, by Lyapunov's theorem.

    Raises UnstableSystemError where a pole has no negative real part.
    """
    if len(a) == 0:
        return a
    eye = torch.eye(len(a), dtype=a.dtype)
    weight = float(b.square().sum()) / len(a)
    driven = torch.cat([b, (_FLOOR * weight if weight > 0 else 1.0) ** 0.5 * eye], -1)
    shift = -0.5 * float(torch.linalg.eigvals(a).real.amax())
    for _ in range(_HALVINGS):  # a pole of high multiplicity may be found too far to the left
        if not shift > 0:
            break
        try:
            factor = stein_factor(*cayley(a + shift * eye, driven))
        except UnstableSystemError:
            shift /= 2
            continue
        moved = torch.linalg.solve(factor, a @ factor)
        values, vectors = torch.linalg.eigh((moved + moved.mT) / 2)
        if bool((values < 0).all()):
            return factor @ vectors
        shift /= 2
    raise UnstableSystemError("A pole of the continuous system has no negative real part; no states make it dissipate.")
