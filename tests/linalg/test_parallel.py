"""Work in pieces: the same results with any number of threads, errors that arrive, threads as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from compressm.errors import InvalidSystemError
from compressm.linalg.forms import Frame
from compressm.linalg.gramians import GramianFactors, gramian_factors
from compressm.linalg.hankel import hankel_spectrum
from compressm.linalg.modal import modal_basis
from compressm.linalg.parallel import in_pieces, side_by_side
from compressm.linalg.statespace import StateSpace


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bank(systems: int, order: int) -> StateSpace:
    generator = torch.Generator().manual_seed(0)
    nu = torch.rand(systems, order, generator=generator, dtype=torch.float64) * 0.2 + 1e-4
    theta = torch.rand(systems, order, generator=generator, dtype=torch.float64) * 3
    b, c = torch.randn(2, systems, order, generator=generator, dtype=torch.complex128)
    log_a = torch.complex(-nu, theta)
    return StateSpace(log_a.exp(), b.unsqueeze(-1), c.unsqueeze(-2), log_a=log_a)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    found: list[tuple[Tensor, ...]] = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        factors = gramian_factors(bank(40, 20))
        spectrum = hankel_spectrum(factors)
        basis = modal_basis(factors.controllability @ factors.observability.mT / 50, merge_pairs=True)
        found.append((factors.controllability, factors.observability, spectrum.values, spectrum.left, basis.poles))
        assert torch.get_num_threads() == threads
    for other in found[1:]:
        assert all(torch.equal(first, second) for first, second in zip(found[0][:-1], other[:-1], strict=True))
        assert torch.allclose(found[0][-1], other[-1], rtol=1e-9)  # of a product that torch's own threads made


def test_an_error_in_a_piece_reaches_the_caller_and_leaves_the_threads() -> None:
    torch.set_num_threads(2)
    factors = torch.eye(64, dtype=torch.float64).repeat(40, 1, 1)
    broken = factors.clone()
    broken[33, 1, 2] = torch.nan
    with pytest.raises(InvalidSystemError, match="NaN"):
        hankel_spectrum(GramianFactors(broken, factors, Frame.REAL))
    assert torch.get_num_threads() == 2


def test_pieces_are_put_together_in_order() -> None:
    torch.set_num_threads(2)
    x = torch.arange(6 * 11 * 4096, dtype=torch.float64).reshape(6, 11, 4096)
    (total,) = in_pieces(lambda part: (part.sum(-1),), 4096, x.shape[:2], x)
    assert torch.equal(total, x.sum(-1))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_tasks_side_by_side_keep_their_order_and_the_callers_modes(threads: int) -> None:
    torch.set_num_threads(threads)
    x = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        assert [t.requires_grad for t in side_by_side([lambda: x * 2, lambda: x + 1])] == [False, False]
    with torch.inference_mode():
        assert all(t.is_inference() for t in side_by_side([lambda: x * 2, lambda: x + 1]))
    assert all(t.requires_grad for t in side_by_side([lambda: x * 2, lambda: x + 1]))
    assert side_by_side([lambda i=i: i for i in range(20)]) == list(range(20))
    assert side_by_side([]) == []
    assert torch.get_num_threads() == threads


def test_the_first_task_that_fails_is_told_of_when_all_have_ended() -> None:
    torch.set_num_threads(2)
    ended: list[int] = []

    def task(i: int) -> None:
        if i in (3, 5):
            raise ValueError(f"task {i}")
        ended.append(i)

    with pytest.raises(ValueError, match="task 3"):
        side_by_side([lambda i=i: task(i) for i in range(4)])
    assert sorted(ended) == [0, 1, 2]
    assert torch.get_num_threads() == 2
