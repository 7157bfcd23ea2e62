"""Which captured sequences are looked at, and how those of several processes become one list."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from compressm.adapters.sequences import dealt, gathered, padded, taken

SHAPES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), max_size=6)


@given(SHAPES, st.integers(4, 500))
def test_no_more_than_so_many_positions_but_two_sequences_where_there_are(
    shapes: list[tuple[int, int]], positions: int
) -> None:
    counts, length = taken(shapes, positions)
    assert sum(counts) * length <= positions
    assert all(0 <= count <= number for count, (number, _) in zip(counts, shapes, strict=True))
    assert length == min(
        max((long for n, (_, long) in zip(counts, shapes, strict=True) if n), default=0), positions // 2
    )
    filled = sum(number for number, long in shapes if long)
    assert sum(counts) >= min(2, filled)


@given(SHAPES, st.integers(40, 500), st.integers(40, 500))
def test_fewer_positions_take_the_beginning(shapes: list[tuple[int, int]], a: int, b: int) -> None:
    (fewer, short), (more, long) = taken(shapes, min(a, b)), taken(shapes, max(a, b))
    assert short <= long
    assert all(x <= y for x, y in zip(fewer, more, strict=True))
    cut = [(count, min(size, long)) for count, (_, size) in zip(more, shapes, strict=True)]
    assert taken(cut, min(a, b)) == (fewer, short)  # what several processes send is enough, and is taken alike


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 25))
def test_sequences_come_in_the_order_in_which_they_were_dealt_out(numbers: list[int], first: int) -> None:
    rows = sum(numbers)
    dealt_out: list[list[float]] = [[] for _ in numbers]
    turn, value = 0, 0.0
    while value < rows:
        for rank, number in enumerate(numbers):
            if turn < number:
                dealt_out[rank].append(value)
                value += 1
        turn += 1
    parts = [(torch.tensor(values).reshape(-1, 1, 1).expand(-1, 3 + k, 2), None) for k, values in enumerate(dealt_out)]
    u, data = gathered(parts)
    assert u[:, 0, 0].tolist() == list(range(rows)) and u.shape == (rows, 2 + len(numbers), 2)
    shares = dealt(numbers, first)
    assert sum(shares) == min(first, rows)
    assert sorted(v for values, n in zip(dealt_out, shares, strict=True) for v in values[:n]) == list(
        range(min(first, rows))
    )
    longs = [3 + k for k, values in enumerate(dealt_out) for _ in values]
    assert sorted(data.sum(1).tolist()) == longs


def test_padding_is_zero_and_masked() -> None:
    u, mask = torch.ones(2, 5, 1), torch.arange(5) < torch.tensor([[3], [5]])
    values, data = padded([(u, mask), (2 * u[:1, :2], None)], 4)
    assert data.tolist() == [[True, True, True, False], [True] * 4, [True, True, False, False]]
    assert values[..., 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [2, 2, 0, 0]]
