"""Which captured sequences are looked at where not all can be, and those of several processes as one list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

Pass = tuple[Tensor, Tensor | None]
"""Values `(batch, L, *)` with a mask `(batch, L)` that is False at padding, or None."""


def taken(shapes: Iterable[tuple[int, int]], positions: int) -> tuple[list[int], int]:
    """How many sequences of each pass `(batch, L)` are looked at, and the length to which all are cut or padded.

    Passes are taken as they come until the next sequence would exceed `positions`; at least two sequences, cut where
    they are too long, if there are two. For fewer positions it is the beginning of what it is for more.
    """
    counts, total, length, full = list[int](), 0, 0, positions < 2
    for number, long in shapes:
        use = 0
        if not full and number and long:
            longer = min(max(length, long), positions // 2)
            use = max(0, min(number, positions // longer - total))
            full = use < number
            total, length = total + use, longer if use else length
        counts.append(use)
    return counts, length


def dealt(numbers: Sequence[int], first: int) -> list[int]:
    """How many of the `first` sequences belong to each process, where they are dealt out in turn: `numbers` to each."""
    turns = sorted((turn, rank) for rank, number in enumerate(numbers) for turn in range(number))
    ranks = [rank for _, rank in turns[:first]]
    return [ranks.count(rank) for rank in range(len(numbers))]


def padded(passes: Sequence[Pass], length: int) -> tuple[Tensor, Tensor]:
    """The passes as one, every sequence cut or padded with zeros to this length; the mask says where values are."""
    values, masks = list[Tensor](), list[Tensor]()
    for u, mask in passes:
        u = u[:, :length]
        data = torch.ones(u.shape[:2], dtype=torch.bool) if mask is None else mask[:, :length].cpu().bool()
        missing = length - u.shape[1]
        values.append(pad(u.masked_fill(~data.unsqueeze(-1), 0), (0, 0, 0, missing)))
        masks.append(pad(data, (0, missing)))
    return torch.cat(values), torch.cat(masks)


def gathered(parts: Sequence[Pass]) -> tuple[Tensor, Tensor]:
    """One pass from those of several processes, in the order in which the sequences were dealt out (see `dealt`)."""
    turns = sorted((turn, rank) for rank, (u, _) in enumerate(parts) for turn in range(len(u)))
    starts = torch.tensor([0, *(len(u) for u, _ in parts)]).cumsum(0).tolist()
    order = torch.tensor([starts[rank] + turn for turn, rank in turns], dtype=torch.int64)
    u, data = padded(parts, max(u.shape[1] for u, _ in parts))
    return u[order], data[order]
