"""Second moments over the captures of all processes, and the inputs of all that a cut is fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple

import torch
from torch import Tensor, nn

from compressm.adapters.calibration import Calibration, Capture, Pooled
from compressm.adapters.fitting import most_positions
from compressm.adapters.moments import Extent, MomentSum
from compressm.adapters.registry import Adapters, find_layers
from compressm.adapters.sequences import Pass, dealt, gathered, taken
from compressm.analysis import LayerAnalysis
from compressm.errors import CompressmError
from compressm.settings import CompressionSettings
from compressm.training.distributed.channel import Channel

_Sums = dict[str, tuple[MomentSum | None, MomentSum | None]]


def pool_captures(
    channel: Channel,
    model: nn.Module,
    settings: CompressionSettings,
    calibration: Calibration,
    adapters: Adapters | None,
) -> None:
    """Make `calibration` give, on every process, the moments over what all of them captured, and inputs to fit to.

    With S_r the sum of outer products and n_r the number of samples of process r, that is sum(S_r) / sum(n_r). The loss
    is the mean of the processes' losses, so that gradients with respect to it are 1 / size of those captured. Where a
    process cannot analyse a layer, nothing is pooled: rank 0's own analysis then says why.
    """
    layers = find_layers(model, adapters)
    captures = {ref.name: calibration.capture(ref.name) or Capture() for ref in layers}
    own = {name: [astuple(Extent.of(seen)) for seen in (c.inputs, c.gradients)] for name, c in captures.items()}
    everywhere = channel.gather(own)
    sums: _Sums = {}
    fits: dict[str, int] = {}
    failed = False
    for ref in layers:
        inputs, gradients = (Extent.joined(Extent(*each[ref.name][k]) for each in everywhere) for k in range(2))
        try:
            analysis = LayerAnalysis(ref, settings, captures[ref.name], None)
            sums[ref.name] = analysis.gramians.moment_sums((inputs, gradients))
            if analysis.may_be_fitted:
                fits[ref.name] = most_positions(analysis.system)
        except (CompressmError, torch.linalg.LinAlgError):
            failed = True
            break
    if any(channel.gather(failed)):
        return
    totals = _totals(channel, sums)
    inputs_of = {name: _newest(channel, captures[name], positions) for name, positions in fits.items()}
    for ref in layers:
        p, q = (totals.get(f"{ref.name}/{side}") for side in range(2))
        calibration.pool(ref.name, Pooled(p, None if q is None else q / channel.size**2, inputs_of.get(ref.name)))


def _newest(channel: Channel, capture: Capture, positions: int) -> list[Pass]:
    """The newest inputs of all processes, newest first, as one process with all of them would have captured them.

    No more than so many positions are sent in all: those that a fit may look at.
    """
    own = capture.newest()
    shapes: list[list[list[int]]] = channel.gather([[len(u), u.shape[1] if len(u) else 0] for u, _ in own])
    passes = max(map(len, shapes))
    joint = [[each[k] if k < len(each) else [0, 0] for each in shapes] for k in range(passes)]
    counts, length = taken([(sum(n for n, _ in each), max(long for _, long in each)) for each in joint], positions)
    sent: list[list[Tensor | None]] = []
    for (u, mask), each, count in zip(own, joint, counts, strict=False):
        mine = dealt([n for n, _ in each], count)[channel.rank]
        sent.append([u[:mine, :length].cpu(), None if mask is None else mask[:mine, :length].cpu()])
    found = channel.gather(sent)
    together = ([part[k] for part in found if k < len(part)] for k in range(passes))
    return [gathered([(u, mask) for u, mask in parts]) for parts in together]


def _totals(channel: Channel, sums: Mapping[str, tuple[MomentSum | None, MomentSum | None]]) -> dict[str, Tensor]:
    """The mean over all processes of each layer's and side's samples, where any process has some."""
    own = {f"{name}/{side}": s for name, pair in sums.items() for side, s in enumerate(pair) if s is not None}
    forms = channel.gather({key: [list(s.total.shape), s.total.is_complex()] for key, s in own.items()})
    shapes: dict[str, tuple[torch.Size, bool]] = {}
    for each in forms:
        for key, (shape, is_complex) in each.items():
            shapes.setdefault(key, (torch.Size(shape), is_complex))
    found: dict[str, Tensor] = {}
    for key, (shape, is_complex) in sorted(shapes.items()):
        total = torch.zeros(shape, dtype=torch.complex128 if is_complex else torch.float64)
        count = torch.zeros(1, dtype=torch.float64)
        if key in own:
            total, count = own[key].total, torch.tensor([own[key].count], dtype=torch.float64)
        numbers = torch.view_as_real(total) if is_complex else total
        summed = channel.sum(torch.cat([count, numbers.reshape(-1)]))
        mean = (summed[1:] / summed[0]).reshape(numbers.shape)
        found[key] = torch.view_as_complex(mean) if is_complex else mean
    return found
