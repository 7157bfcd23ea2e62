"""Layers of forced harmonic oscillators: LinOSS and D-LinOSS."""

from __future__ import annotations

import math
from abc import abstractmethod
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compressm.layers.base import check_size, member
from compressm.layers.diagonal import DiagonalLayer
from compressm.layers.lru import check_ring
from compressm.layers.systems import DiagonalSystem
from compressm.ops.precision import precise

SMALLEST_ANGLE = 1e-2
"""Poles of an oscillator stay this far (in radians) from the real axis, where two of them would meet."""


class Rule(Enum):
    """How LinOSS is sampled."""

    IM = "im"  # implicit: damps
    IMEX = "imex"  # implicit-explicit: keeps the energy, every pole lies on the unit circle


class Oscillation(NamedTuple):
    """What a sampled oscillator does: poles exp(-nu +- i theta), and the gain dt^2 S from its force to its position."""

    nu: Tensor
    theta: Tensor
    gain: Tensor


class OscillatorLayer(DiagonalLayer):
    """Base of layers of P oscillators y'' = -A y - G y' + B u with the output C y + D u, sampled with steps dt.

    The state of an oscillator is its velocity z and position y. However it is sampled, its position follows
    y_n = 2 r cos(theta) y_{n-1} - r^2 y_{n-2} + dt^2 S B u_n with poles r e^{+- i theta}, r = e^{-nu}, so that its
    impulse response is dt^2 S r^l sin((l + 1) theta) / sin(theta) B: the real part of one complex state with that pole
    and the output weight dt^2 S (1 - i cot(theta)) C. As such it runs. theta is kept between `SMALLEST_ANGLE` and
    pi - `SMALLEST_ANGLE` (by clamping, so that a parameter beyond has no gradient), which keeps the poles a pair.

    Parameters B (P, H), C (H, P), D (H,) and those of the oscillators. At the start B is uniform on +- 1 / sqrt(H), C
    on +- 1 / sqrt(P), D is N(0, 1). `order` is P, the number of oscillators.
    """

    B: nn.Parameter
    C: nn.Parameter

    @property
    def order(self) -> int:
        """The number P of oscillators, each of which is one complex state."""
        return self.B.shape[0]

    @abstractmethod
    def oscillation(self) -> Oscillation:
        """How the oscillators move, each `(P,)`."""

    def system(self) -> DiagonalSystem:
        """The layer as it acts, with one complex state an oscillator."""
        nu, theta, gain = self.oscillation()
        im = -(gain / torch.tan(theta)).to(self.C.dtype)
        return DiagonalSystem(
            nu, theta, self.B, torch.zeros_like(self.B), gain.to(self.C.dtype) * self.C, im * self.C, self.D
        )


class LinOSS(OscillatorLayer):
    """Oscillators without a damping of their own (Rusch and Rus 2025, arXiv 2410.03943, eqs. 1 and 3 to 6).

    `discretization` IM: z_n = z_{n-1} + dt (-A y_n + B u_n), y_n = y_{n-1} + dt z_n, so that S = 1 / (1 + dt^2 A) and
    |pole|^2 = S: it damps, the more the faster an oscillator is. IMEX: the same with -A y_{n-1}, S = 1 and |pole| = 1
    exactly: nothing is ever forgotten, and Gramians exist over a finite horizon only.

    Parameters: A and step_size (P,), dt = sigmoid(step_size), both uniform on [0, 1] at the start; B, C, D of
    `OscillatorLayer`. An A too small (or, for IMEX, too large) for a pair of poles acts like the nearest that has one.
    B and C are real as in the equations; the published code takes complex ones, which are twice the oscillators in the
    same poles.

    Raises ConfigError for a width below 1 or a negative order.
    """

    def __init__(
        self,
        width: int,
        order: int,
        *,
        discretization: Rule | str = Rule.IM,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_size("LinOSS", width, order, generator)
        self.discretization = member(Rule, discretization, "LinOSS: discretization")
        self.A = nn.Parameter(torch.rand(order, generator=generator))
        self.step_size = nn.Parameter(torch.rand(order, generator=generator))
        self.B, self.C, self.D = _weights(width, order, generator)

    def oscillation(self) -> Oscillation:
        """Poles sqrt(S) e^{+- i theta} with tan(theta) = dt sqrt(A) for IM and cos(theta) = 1 - dt^2 A / 2 for IMEX."""
        dt = torch.sigmoid(precise(self.step_size))
        stiffness = dt.square() * precise(self.A)
        if self.discretization is Rule.IM:
            stiffness = stiffness.clamp(min=math.tan(SMALLEST_ANGLE) ** 2)
            nu = 0.5 * torch.log1p(stiffness)
            return Oscillation(nu, torch.atan(stiffness.sqrt()), dt.square() / (1 + stiffness))
        return Oscillation(torch.zeros_like(dt), _angle(1 - stiffness / 2), dt.square())


class DampedLinOSS(OscillatorLayer):
    """Oscillators with a damping of their own: D-LinOSS (Boyer, Rusch and Rus 2025, arXiv 2505.12171, eqs. 1 and 3).

    z_n = z_{n-1} + dt (-A y_{n-1} - G z_n + B u_n), y_n = y_{n-1} + dt z_n, so that S = 1 / (1 + dt G) = |pole|^2 and
    2 sqrt(S) cos(theta) = 1 + S - dt^2 S A. Poles are pairs where A lies between (2 + dt G -+ 2 sqrt(1 + dt G)) / dt^2
    (section 3.2); beyond, theta is clamped.

    Parameters: A, G (P,), of which relu(G) acts; step_size (P,) with dt = sigmoid(step_size); B, C, D of
    `OscillatorLayer`. At the start |pole|^2 is uniform on [r_min^2, r_max^2], theta on (0, min(max_phase, pi)) and
    step_size N(0, 1); A and G follow (section 3.3).

    Raises ConfigError for a width below 1, a negative order, or a ring that is not 0 <= r_min < r_max < 1.
    """

    def __init__(
        self,
        width: int,
        order: int,
        *,
        r_min: float = 0.9,
        r_max: float = 0.999,
        max_phase: float = 2 * math.pi,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_size("DampedLinOSS", width, order, generator)
        check_ring("DampedLinOSS", r_min, r_max, max_phase)
        squared = r_min**2 + (r_max**2 - r_min**2) * torch.rand(order, generator=generator, dtype=torch.float64)
        theta = min(max_phase, math.pi) * torch.rand(order, generator=generator, dtype=torch.float64)
        step_size = torch.randn(order, generator=generator, dtype=torch.float64)
        squared, dt = squared.clamp(min=1e-6), torch.sigmoid(step_size)
        self.G = nn.Parameter(((1 / squared - 1) / dt).float())
        self.A = nn.Parameter(((1 + squared - 2 * squared.sqrt() * torch.cos(theta)) / (squared * dt.square())).float())
        self.step_size = nn.Parameter(step_size.float())
        self.B, self.C, self.D = _weights(width, order, generator)

    def oscillation(self) -> Oscillation:
        """Poles sqrt(S) e^{+- i theta}."""
        dt = torch.sigmoid(precise(self.step_size))
        damping = dt * precise(self.G).clamp(min=0.0)
        shrink = 1 / (1 + damping)
        cosine = (1 + shrink - dt.square() * shrink * precise(self.A)) / (2 * shrink.sqrt())
        return Oscillation(0.5 * torch.log1p(damping), _angle(cosine), dt.square() * shrink)


def _angle(cosine: Tensor) -> Tensor:
    """The angle, kept away from the real axis."""
    limit = math.cos(SMALLEST_ANGLE)
    return torch.acos(cosine.clamp(-limit, limit))


def _weights(
    width: int, order: int, generator: torch.Generator | None
) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """B, C and D as they are at the start."""

    def uniform(fan: int, *shape: int) -> nn.Parameter:
        return nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(max(fan, 1)))

    b, c = uniform(width, order, width), uniform(order, width, order)
    return b, c, nn.Parameter(torch.randn(width, generator=generator))
