"""A stack of state space blocks with an encoder and a head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from compressm.checks import require_kind
from compressm.errors import ConfigError
from compressm.layers.base import SequenceLayer
from compressm.layers.bidirectional import Bidirectional
from compressm.layers.block import Block
from compressm.layers.config import ModelConfig, Task
from compressm.layers.families import FAMILIES
from compressm.layers.layout import Layout, SequenceLinear, total_over_time
from compressm.layers.norm import build_norm


class StreamState(NamedTuple):
    """What a model carries from one time step to the next."""

    blocks: tuple[Tensor, ...]
    total: Tensor  # (batch, H): the sum of the features so far, for the mean that a classifier reads
    steps: int


class SequenceModel(nn.Module):
    """Encoder, blocks, and a linear head; for classification on the mean over the valid steps of each sequence."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = (
            SequenceLinear(config.inputs, config.width)
            if config.vocabulary is None
            else nn.Embedding(config.vocabulary, config.width)
        )
        self.blocks = nn.ModuleList(
            Block(build_norm(config.norm, config.width), _build_ssm(config), config.dropout)
            for _ in range(config.blocks)
        )
        self.head = nn.Linear(config.width, config.outputs)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Class scores (batch, outputs), or (batch, L, outputs) for a sequence task.

        x is (batch, L, inputs), or token ids (batch, L) with a vocabulary. `lengths` (batch,) are the numbers of
        valid steps of a padded batch; None means all. What a sequence task gives at padded steps means nothing; a
        sequence of length 0 is classified as if its features were zero.
        """
        self._check_input(x)
        mask = None if lengths is None else lengths_to_mask(lengths, x.shape[0], x.shape[1])
        if mask is not None:  # padding may hold anything: NaN, or no token at all
            x = torch.where(mask if x.ndim == 2 else mask[..., None], x, 0)
        x = self._encode(x)
        for block in self.blocks:
            x = block(x, mask)
        if self.config.task is Task.CLASSIFY:
            x = _mean(x, mask)
        scores: Tensor = self.head(x)
        return scores

    def initial_state(self, batch: int) -> StreamState:
        """The state before the first step."""
        states = tuple(block.initial_state(batch) for block in self._blocks())
        return StreamState(states, self.head.weight.new_zeros(batch, self.config.width), 0)

    def step(self, x: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """One time step: the scores (batch, outputs) and the next state.

        x is (batch, inputs), or token ids (batch,). A classifier gives its scores for the sequence so far. Raises
        ConfigError for a bidirectional model, and in training mode.
        """
        if self.training:
            raise ConfigError("step() runs a trained model one time step at a time; call model.eval() first.")
        x = self.encoder(x)
        states = []
        for block, before in zip(self._blocks(), state.blocks, strict=True):
            x, after = block.step(x, before)
            states.append(after)
        total, steps = state.total + x, state.steps + 1
        features = total / steps if self.config.task is Task.CLASSIFY else x
        return self.head(features), StreamState(tuple(states), total, steps)

    def _encode(self, x: Tensor) -> Tensor:
        """The features (batch, L, H) in the layout in which the first block's recurrence is fastest."""
        blocks = self._blocks()
        layout = blocks[0].ssm.layout(x.shape[0], x.shape[1]) if blocks else Layout.ROWS
        encoder = self.encoder
        return encoder(x, layout) if isinstance(encoder, SequenceLinear) else layout.arrange(encoder(x))

    def _check_input(self, x: Tensor) -> None:
        config = self.config
        ids = config.vocabulary is not None
        fits = isinstance(x, Tensor) and (x.ndim == 2 if ids else x.ndim == 3 and x.shape[2] == config.inputs)
        if not fits or x.is_floating_point() is ids or x.is_complex():
            wanted = "token ids (batch, L)" if ids else f"real numbers (batch, L, {config.inputs})"
            found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ConfigError(f"x is {found}; wanted {wanted}.")

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]


def lengths_to_mask(lengths: Tensor, batch: int, steps: int) -> Tensor:
    """(batch, steps), True at the first `lengths[b]` positions of row b.

    Raises ConfigError for a wrong shape, a length below 0 or above `steps`.
    """
    require_kind("lengths", lengths, Tensor, wanted="a tensor of integers (batch,)")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype is torch.bool:
        raise ConfigError(f"lengths is of dtype {lengths.dtype}; wanted integers.")
    if tuple(lengths.shape) != (batch,):
        raise ConfigError(f"lengths has shape {tuple(lengths.shape)}; wanted one length a sequence, ({batch},).")
    if batch and not bool(((lengths >= 0) & (lengths <= steps)).all()):
        raise ConfigError(
            f"lengths lie between {int(lengths.min())} and {int(lengths.max())}; "
            f"wanted 0 to {steps}, the padded length."
        )
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return total_over_time(x) / max(x.shape[1], 1)
    valid = torch.where(mask[..., None], x, 0.0)
    return total_over_time(valid) / mask.sum(1, keepdim=True).clamp(min=1)


def _build_ssm(config: ModelConfig) -> SequenceLayer | Bidirectional:
    family = FAMILIES[config.layer]

    def one() -> SequenceLayer:
        return family.layer(config.width, config.order, **config.layer_options())

    return Bidirectional(one(), one()) if config.bidirectional else one()
