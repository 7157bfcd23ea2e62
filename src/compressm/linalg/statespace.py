"""A linear time-invariant system in state space form, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from compressm.checks import brief, require_kind
from compressm.errors import InvalidSystemError, UnstableSystemError
from compressm.linalg.elementary import all_finite, complex_expm1, product
from compressm.linalg.parallel import eigenvalues
from compressm.linalg.recurrence import scan_

Output = Literal["real", "complex"]

_BLOCK = 2**22  # numbers in the states that a simulation holds at once


@dataclass(frozen=True, eq=False)
class StateSpace:
    """A batch of systems with one order, in the library's single convention.

    Discrete time (`sampling_time > 0`): x_k = A x_{k-1} + B u_k and y_k = C x_k + D u_k, so the impulse
    response (the Markov parameters) is h_0 = C B + D and h_l = C A^l B for l > 0.
    Continuous time (`sampling_time == 0`): x' = A x + B u, y = C x + D u.
    With `output="real"` the output is the real part, y_k = Re(C x_k) + D u_k, and a complex system of order
    n stands for a real one of order 2n (see `compressm.linalg.forms.realify`).

    With batch dimensions `*h` it is a bank: systems side by side, each with its own inputs and outputs and all of one
    order. As a layer, a bank takes `(batch, L, H m)` and gives `(batch, L, H p)` for H systems: system h reads
    features h m .. h m + m - 1 and writes h p .. h p + p - 1, so with m = p = 1 feature h drives system h.

    Shapes, with `*h` any batch and n states, m inputs, p outputs:

    * `a`: `(*h, n)` for a diagonal state matrix or `(*h, n, n)` for a dense one;
    * `b`: `(*h, n, m)`; `c`: `(*h, p, n)`; `d`: `(*h, p, m)` or None for zero;
    * `log_a`: `(*h, n)` complex, optional and only for diagonal discrete systems: log(a), as a layer that stores
      the logarithm of its poles knows it. From it 1 - |a|^2 is exact where |a| rounds to 1.

    Raises InvalidSystemError where shapes do not fit together or a value is not finite.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor | None = None
    sampling_time: float = 1.0
    output: Output = "real"
    log_a: Tensor | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def is_diagonal(self) -> bool:
        """Whether `a` holds the diagonal only."""
        return self.a.ndim == self.b.ndim - 1

    @property
    def is_discrete(self) -> bool:
        """Whether the system is in discrete time."""
        return self.sampling_time > 0

    @property
    def is_complex(self) -> bool:
        """Whether any of the state, input and output matrices is complex."""
        return any(t.is_complex() for t in (self.a, self.b, self.c))

    @property
    def order(self) -> int:
        """The number n of (stored) states."""
        return self.b.shape[-2]

    @property
    def inputs(self) -> int:
        """The number m of inputs."""
        return self.b.shape[-1]

    @property
    def outputs(self) -> int:
        """The number p of outputs."""
        return self.c.shape[-2]

    @property
    def input_features(self) -> int:
        """The number H m of inputs of all systems of the bank, as a layer counts them; m for a single system."""
        return self.batch_shape.numel() * self.inputs

    @property
    def output_features(self) -> int:
        """The number H p of outputs of all systems of the bank, as a layer counts them; p for a single system."""
        return self.batch_shape.numel() * self.outputs

    @property
    def batch_shape(self) -> torch.Size:
        """The batch dimensions `*h`."""
        return self.b.shape[:-2]

    def __getitem__(self, index: Tensor) -> StateSpace:
        """Some systems of a bank, as indices or a mask say."""

        def part(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[index]

        a, b, c, d, log_a = self.a[index], self.b[index], self.c[index], part(self.d), part(self.log_a)
        return replace(self, a=a, b=b, c=c, d=d, log_a=log_a)

    def with_batch(self, *shape: int) -> StateSpace:
        """The same systems with the batch dimensions `shape`."""
        h = len(self.batch_shape)

        def shaped(t: Tensor) -> Tensor:
            return t.reshape(*shape, *t.shape[h:])

        d, log_a = (None if t is None else shaped(t) for t in (self.d, self.log_a))
        return replace(self, a=shaped(self.a), b=shaped(self.b), c=shaped(self.c), d=d, log_a=log_a)

    def to_double(self) -> StateSpace:
        """The same system on the CPU in double precision, where all analysis happens."""

        def double(t: Tensor) -> Tensor:
            t = t.detach().cpu()
            return t.to(torch.complex128 if t.is_complex() else torch.float64)

        return replace(
            self,
            a=double(self.a),
            b=double(self.b),
            c=double(self.c),
            d=None if self.d is None else double(self.d),
            log_a=None if self.log_a is None else double(self.log_a),
        )

    def spectral_radius(self) -> Tensor:
        """The largest |pole| of each system `(*h,)`; in continuous time exp(largest real part)."""
        if self.order == 0:
            return torch.zeros(self.batch_shape, dtype=torch.float64)
        poles = self.a if self.is_diagonal else eigenvalues(self.a)
        return (poles.abs() if self.is_discrete else poles.real.exp()).amax(-1)

    def is_stable(self) -> bool:
        """Whether every pole lies strictly inside the stability region."""
        if self.log_a is not None:
            return bool((self.log_a.real < 0).all())
        return bool((self.spectral_radius() < 1).all())

    def require_stable(self, name: str = "system") -> None:
        """Raise UnstableSystemError, naming the system, unless it is strictly stable."""
        if not self.is_stable():
            raise UnstableSystemError(
                f"{name}: infinite-horizon Gramians need every pole strictly inside the stability region, but the "
                f"spectral radius is {float(self.spectral_radius().max()):.9g}. Lower the learning rate of the state "
                f"matrix, use a stable parametrization, or pass a finite horizon."
            )

    def markov_parameters(self, length: int) -> Tensor:
        """The impulse response h_0 .. h_{length-1} of a discrete system, `(*h, length, p, m)`."""
        if not self.is_discrete:
            raise InvalidSystemError("Markov parameters are of a discrete system; discretize it first.")
        if length < 1:
            raise InvalidSystemError(f"length is {length}; wanted 1 or more Markov parameters.")
        x, dtype = self.b, self._dtype() if self.output == "complex" else self._dtype().to_real()
        h = x.new_empty(*self.batch_shape, length, self.outputs, self.inputs, dtype=dtype)
        for k in range(length):
            h[..., k, :, :] = self._readout(x)
            x = self._advance(x)
        if self.d is not None:
            h[..., 0, :, :] += self.d.to(dtype)
        return h

    def frequency_response(self, omega: Tensor) -> Tensor:
        """G on the stability boundary, `(*h, F, p, m)` for angular frequencies `omega` `(F,)`.

        Discrete: G(e^{iw}) = C (I - e^{-iw} A)^{-1} B + D with w in radians a sample. Continuous:
        G(iw) = C (iw I - A)^{-1} B + D. For a real output of a complex system, the real system's response.
        """
        response = self._transfer(omega)
        if self.output == "real" and self.is_complex:
            response = (response + self._transfer(-omega).conj()) / 2
        return response if self.d is None else response + self.d.to(response.dtype).unsqueeze(-3)

    def simulate(self, u: Tensor) -> Tensor:
        """The output `(batch, L, H p)` of a discrete system or bank for the input `u` `(batch, L, H m)`, from x = 0."""
        batch, length, _ = u.shape
        h, dims = self.batch_shape, len(self.batch_shape)
        dtype = self._dtype()
        u = u.reshape(batch, length, *h, self.inputs).movedim((0, 1), (dims, dims + 1))  # (*h, batch, L, m)
        u = u.to(torch.promote_types(u.dtype, dtype.to_real()))
        a = (self.a.unsqueeze(-2) if self.is_diagonal else self.a.mT).to(dtype)
        b, c = self.b.to(dtype).mT, self.c.to(dtype).mT
        x = torch.zeros(*h, batch, self.order, dtype=dtype, device=u.device)
        pieces: list[Tensor] = []
        for part in u.split(max(1, _BLOCK // max(1, x.numel())), dim=-2) if length else ():
            steps = part.transpose(-3, -2)
            drive = product(steps.flatten(-3, -2), b).unflatten(-2, steps.shape[-3:-1]).to(dtype)
            if self.is_diagonal:
                scan_(drive, a, x)
            else:
                for before, come in zip((x, *drive.unbind(-3)), drive.unbind(-3), strict=False):
                    come += before @ a
            x = drive.select(-3, -1)
            pieces.append(self._outputs(drive.flatten(-3, -2), c).unflatten(-2, (drive.shape[-3], batch)))
        y = torch.cat(pieces, -3) if pieces else self._outputs(x.new_zeros(*h, 0, batch, self.order), c)
        y = y.transpose(-3, -2)
        if self.d is not None:
            y = y + (u.flatten(-3, -2).to(y.dtype) @ self.d.to(y.dtype).mT).unflatten(-2, (batch, length))
        return y.movedim((dims, dims + 1), (0, 1)).reshape(batch, length, self.output_features)

    def _outputs(self, states: Tensor, c: Tensor) -> Tensor:
        """States times C^T, as rows; the real part alone where the output is real."""
        if self.output == "complex" or not states.is_complex():
            return states @ c
        return torch.view_as_real(states).flatten(-2) @ torch.stack([c.real, -c.imag], -2).flatten(-3, -2)

    def _dtype(self) -> torch.dtype:
        """The type that holds the products of the state, input and output matrices."""
        return torch.promote_types(torch.promote_types(self.a.dtype, self.b.dtype), self.c.dtype)

    def _advance(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(self.a.dtype, x.dtype)
        return self.a.unsqueeze(-1) * x if self.is_diagonal else self.a.to(dtype) @ x.to(dtype)

    def _readout(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(self.c.dtype, x.dtype)
        y = self.c.to(dtype) @ x.to(dtype)
        return y.real if self.output == "real" and y.is_complex() else y

    def _transfer(self, omega: Tensor) -> Tensor:
        dtype = torch.promote_types(self._dtype(), torch.complex64)
        omega = omega.to(torch.float64)
        point = torch.exp(-1j * omega) if self.is_discrete else 1j * omega
        point = point.to(dtype)
        a, b, c = self.a.to(dtype), self.b.to(dtype).unsqueeze(-3), self.c.to(dtype).unsqueeze(-3)
        if self.is_diagonal:
            z = point[:, None]  # (F, 1) against (*h, 1, n)
            pole = a.unsqueeze(-2)
            if self.is_discrete and self.log_a is not None and bool(torch.isfinite(self.log_a).all()):
                resolvent = -1 / complex_expm1(self.log_a.unsqueeze(-2) - 1j * omega[:, None]).to(dtype)
            else:
                resolvent = 1 / (1 - z * pole) if self.is_discrete else 1 / (z - pole)
            return (c * resolvent.unsqueeze(-2)) @ b
        z = point[:, None, None]
        eye = torch.eye(self.order, dtype=dtype, device=a.device)
        pole = a.unsqueeze(-3)
        matrix = eye - z * pole if self.is_discrete else z * eye - pole
        return c @ torch.linalg.solve(matrix, b.expand(*matrix.shape[:-2], *b.shape[-2:]))


def _check(system: StateSpace) -> None:
    a, b, c, d = system.a, system.b, system.c, system.d
    _check_kinds(system)
    found = f"a {tuple(a.shape)}, b {tuple(b.shape)}, c {tuple(c.shape)}" + (
        f", d {tuple(d.shape)}" if d is not None else ""
    )
    if b.ndim < 2 or c.ndim != b.ndim or a.ndim not in (b.ndim - 1, b.ndim):
        raise InvalidSystemError(f"Wanted a (*h, n) or (*h, n, n), b (*h, n, m) and c (*h, p, n); found {found}.")
    n, h = b.shape[-2], b.shape[:-2]
    a_shape = (*h, n) if a.ndim == b.ndim - 1 else (*h, n, n)
    if tuple(a.shape) != a_shape or c.shape[:-2] != h or c.shape[-1] != n:
        raise InvalidSystemError(f"The order or batch of a, b and c differ; found {found}.")
    if d is not None and tuple(d.shape) != (*h, c.shape[-2], b.shape[-1]):
        hint = " A factor for each channel is torch.diag(d)." if d.shape == (*h, b.shape[-1]) else ""
        raise InvalidSystemError(f"Wanted d (*h, p, m) = {(*h, c.shape[-2], b.shape[-1])}; found {found}.{hint}")
    if system.log_a is not None and (tuple(system.log_a.shape) != (*h, n) or a.ndim != b.ndim - 1):
        raise InvalidSystemError(f"log_a {tuple(system.log_a.shape)} belongs to a diagonal a; found {found}.")
    if d is not None and d.is_complex() and system.output == "real":
        raise InvalidSystemError("d is complex, but the output is real; wanted a real d or output='complex'.")
    if system.log_a is not None and bool(torch.isnan(system.log_a).any()):
        raise InvalidSystemError(f"log_a has {int(torch.isnan(system.log_a).sum())} values that are NaN.")
    for name, tensor in (("a", a), ("b", b), ("c", c), ("d", d)):
        if tensor is not None and not all_finite(tensor):
            raise InvalidSystemError(
                f"{name} has {int((~torch.isfinite(tensor)).sum())} values that are NaN or infinite. Train with a "
                f"lower learning rate or clip the gradient, and start again from a sound checkpoint."
            )


def _check_kinds(system: StateSpace) -> None:
    tensors = {"a": system.a, "b": system.b, "c": system.c, "d": system.d, "log_a": system.log_a}
    for name, tensor in tensors.items():
        if tensor is None and name in ("d", "log_a"):
            continue
        require_kind(name, tensor, Tensor, wanted="a tensor", error=InvalidSystemError)
        if tensor is not None and not (tensor.is_floating_point() or tensor.is_complex()):
            raise InvalidSystemError(f"{name} is of dtype {tensor.dtype}; wanted floating-point numbers.")
        if tensor is not None and (tensor.device != system.a.device or tensor.is_meta):
            raise InvalidSystemError(f"{name} is on {tensor.device}; wanted all on one device, with values.")
    step = system.sampling_time
    if isinstance(step, bool) or not isinstance(step, int | float) or not 0 <= step < float("inf"):
        raise InvalidSystemError(f"sampling_time is {brief(step)}; wanted 0 (continuous) or a positive step.")
    if system.output not in ("real", "complex"):
        raise InvalidSystemError(f"output is {brief(system.output)}; wanted 'real' or 'complex'.")
