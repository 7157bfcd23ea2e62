"""Impulse responses of the layers before and after a cut, kept for the picture."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressm.adapters.registry import find_layers
from compressm.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class ResponsePair:
    """One layer's response from its strongest input `source` to output `target`, in the full and in the cut layer.

    The strongest pair of channels is the one with the largest sum of squares before the cut; the curves are
    h_0, h_1, ... without the feedthrough.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    source: int
    target: int


def impulse_responses(model: nn.Module, length: int) -> dict[str, NDArray[np.float64]]:
    """Each layer's impulse response `(length, outputs, inputs)` without its feedthrough, by the layer's name."""
    responses: dict[str, NDArray[np.float64]] = {}
    with torch.no_grad():
        for layer in find_layers(model):
            system = layer.adapter.read(layer.module)
            h = system.markov_parameters(length)
            h = (h.real if h.is_complex() else h).double().cpu()
            if system.d is not None:
                h[..., 0, :, :] -= (system.d.real if system.d.is_complex() else system.d).double().cpu()
            responses[layer.name] = h.reshape(-1, *h.shape[-2:])[:length].numpy()
    return responses


def pair_up(
    before: Mapping[str, NDArray[np.float64]], after: Mapping[str, NDArray[np.float64]]
) -> dict[str, ResponsePair]:
    """The strongest channel pair of every layer, before and after."""
    pairs: dict[str, ResponsePair] = {}
    for name, h in before.items():
        energy = np.square(h).sum(axis=0)
        target, source = np.unravel_index(int(energy.argmax()), energy.shape)
        pairs[name] = ResponsePair(h[:, target, source], after[name][:, target, source], int(source), int(target))
    return pairs


def save_pairs(path: Path, pairs: Mapping[str, ResponsePair]) -> None:
    """Write the curves to a `.npz` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, pair in pairs.items():
        arrays |= {f"{name}/before": pair.before, f"{name}/after": pair.after}
        arrays[f"{name}/channels"] = np.array([pair.source, pair.target])
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_pairs(path: Path) -> dict[str, ResponsePair]:
    """Read what `save_pairs` wrote.

    Raises:
        CheckpointError: the file is damaged.
    """
    pairs: dict[str, ResponsePair] = {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            for key in archive.files:
                name, _, part = key.rpartition("/")
                if part == "channels":
                    source, target = (int(channel) for channel in archive[key])
                    pairs[name] = ResponsePair(archive[f"{name}/before"], archive[f"{name}/after"], source, target)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Restore it, or delete it: the report then leaves this picture out."
        ) from error
    return pairs
