"""Second moments of a state and the inputs that follow it, and those of the states to come."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressm.linalg.forms import Frame
from compressm.linalg.statespace import StateSpace


@dataclass(frozen=True, eq=False)
class JointMoments:
    """Sums over samples of products of a state x and the inputs u = (u_1 .. u_q) after it, in double precision.

    plain: x x* `(*h, n, n)`; mirrored: x x^T, where the real frame of a complex system needs it; cross: x u*
    `(*h, n, q m)`; inputs: u u* `(*h, q m, q m)`. In the real frame the inputs are real.
    """

    plain: Tensor
    mirrored: Tensor | None
    cross: Tensor
    inputs: Tensor

    @classmethod
    def of(cls, outer: Tensor, system: StateSpace, frame: Frame) -> JointMoments:
        """From the sum of z z* with z = (x, u), where in `Frame.REAL` x is [Re x; Im x] for a complex system."""
        n = system.order
        if frame is Frame.REAL and system.is_complex:
            plain, mirrored = from_real_frame(outer[..., : 2 * n, : 2 * n])
            cross = torch.complex(outer[..., :n, 2 * n :], outer[..., n : 2 * n, 2 * n :])
            return cls(plain, mirrored, cross, outer[..., 2 * n :, 2 * n :])
        return cls(outer[..., :n, :n], None, outer[..., :n, n:], outer[..., n:, n:])

    def of_states_to_come(self, system: StateSpace, steps: int) -> Tensor:
        """The sum of x_0 x_0* + .. + x_q x_q* with x_0 = x and q `steps` x_k = A x_{k-1} + B u_k, in the frame of `of`.

        E[x_k x_k*] = A E[x_{k-1} x_{k-1}*] A* + L B* + B L*, L = A E[x_{k-1} u_k*] + B E[u_k u_k*] / 2, and
        E[x_k u*] = A E[x_{k-1} u*] + B E[u_k u*] for the inputs to come. With real inputs and transposes in place of
        adjoints the same holds for x x^T. No state is formed, and each term is a sum of squares up to rounding.
        """
        a, b, m = system.a, system.b, system.inputs
        real = b.mT.to(self.cross.dtype)

        def act(x: Tensor) -> Tensor:
            return a.unsqueeze(-1) * x if system.is_diagonal else a @ x

        def advance(moments: Tensor, drive: Tensor, conjugate: bool) -> Tensor:
            rank = drive @ (real.conj() if conjugate else real)
            moved = act(act(moments).mT).mT if not conjugate else act(act(moments).mH).mH
            return moved + rank + (rank.mH if conjugate else rank.mT)

        plain, mirrored, cross, inputs = self.plain, self.mirrored, self.cross, self.inputs
        total, total_mirrored = plain, mirrored
        for _ in range(steps):
            among = inputs[..., :m, :].to(cross.dtype)
            drive = act(cross[..., :m]) + b.to(cross.dtype) @ among[..., :m] / 2
            plain = advance(plain, drive, conjugate=True)
            total = total + plain
            if mirrored is not None and total_mirrored is not None:
                mirrored = advance(mirrored, drive, conjugate=False)
                total_mirrored = total_mirrored + mirrored
            cross = act(cross[..., m:]) + b.to(cross.dtype) @ among[..., m:]
            inputs = inputs[..., m:, m:]
        return total if total_mirrored is None else in_real_frame(total, total_mirrored)


def from_real_frame(moments: Tensor) -> tuple[Tensor, Tensor]:
    """x x* and x x^T from xi xi^T with xi = [Re x; Im x]."""
    n = moments.shape[-1] // 2
    rr, ri, ir, ii = (moments[..., i, j] for i in (slice(n), slice(n, None)) for j in (slice(n), slice(n, None)))
    return torch.complex(rr + ii, ir - ri), torch.complex(rr - ii, ir + ri)


def in_real_frame(plain: Tensor, mirrored: Tensor) -> Tensor:
    """xi xi^T with xi = [Re x; Im x] from x x* and x x^T."""
    both, apart = (plain + mirrored) / 2, (mirrored - plain) / 2
    return torch.cat([torch.cat([both.real, apart.imag], -1), torch.cat([both.imag, -apart.real], -1)], -2)
