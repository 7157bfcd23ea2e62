"""The recurrence in place against the plain loop."""

from __future__ import annotations

import pytest
import torch

from compressm.linalg.recurrence import scan_


@pytest.mark.parametrize("steps", [0, 1, 63, 64, 100, 1000])
@pytest.mark.parametrize(("h", "batch", "n"), [((), 2, 5), ((3,), 1, 4), ((2, 2), 3, 1), ((), 30, 80), ((), 2, 0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_states_are_those_of_the_loop(steps: int, h: tuple[int, ...], batch: int, n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(steps)
    drive = torch.randn(*h, steps, batch, n, generator=generator, dtype=dtype)
    start = torch.randn(*h, batch, n, generator=generator, dtype=dtype)
    power = torch.randn(*h, 1, n, generator=generator, dtype=dtype)
    power = power / power.abs() * (1 - 10 ** -(4 * torch.rand(*h, 1, n, generator=generator, dtype=torch.float64)))
    x, wanted = start, torch.empty_like(drive)
    for k in range(steps):
        x = power * x + drive[..., k, :, :]
        wanted[..., k, :, :] = x
    before = start.clone()
    found = scan_(drive, power, start)
    assert found.data_ptr() == drive.data_ptr() and torch.equal(start, before)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-11)


def test_a_long_memory_in_single_precision() -> None:
    """Blocks lose no more digits than steps do."""
    generator = torch.Generator().manual_seed(0)
    angle = 3 * torch.rand(1, 40, generator=generator, dtype=torch.float64)
    power = torch.polar(torch.full_like(angle, 0.9999), angle).to(torch.complex64)
    drive = torch.randn(20_000, 1, 40, generator=generator, dtype=torch.complex64)
    start = torch.zeros(1, 40, dtype=torch.complex64)
    exact = scan_(drive.to(torch.complex128), power.to(torch.complex128), start.to(torch.complex128))
    x, steps = start, []
    for part in drive.unbind(0):
        x = torch.addcmul(part, x, power)
        steps.append(x)
    size = exact.abs().max()
    by_steps, by_blocks = ((t - exact).abs().max() / size for t in (torch.stack(steps), scan_(drive, power, start)))
    assert by_blocks < max(2 * float(by_steps), 1e-5)
