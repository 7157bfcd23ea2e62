"""What is minimised and what is reported, for each task."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressm.data.batching import Batch
from compressm.data.dataset import Dataset, Task


@dataclass(frozen=True)
class Objective:
    """Cross entropy and accuracy for classes; mean squared error of normalised values and RMSE in their own unit.

    The RMSE is over cases and outputs together.
    """

    task: Task
    target_scale: tuple[float, ...] = ()

    @classmethod
    def of(cls, dataset: Dataset) -> Objective:
        """The objective for a data set."""
        normalisation = dataset.target_normalisation
        return cls(dataset.task, () if normalisation is None else normalisation.scale)

    @property
    def metric(self) -> str:
        """The name of the metric."""
        return "accuracy" if self.task is Task.CLASSIFY else "rmse"

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is better."""
        return self.task is Task.CLASSIFY

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of one batch."""
        return self._loss(model(batch.x, batch.lengths), batch.y)

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Metric and loss over all cases of `batches`; run it in evaluation mode and without gradients."""
        cases, loss, total, values = 0, 0.0, 0.0, 0
        for batch in batches:
            scores = model(batch.x, batch.lengths)
            count = len(batch.y)
            cases += count
            loss += self._loss(scores, batch.y).item() * count
            if self.task is Task.CLASSIFY:
                total += int((scores.argmax(dim=-1) == batch.y).sum())
            else:
                error = (scores - batch.y).double() * torch.tensor(self.target_scale, dtype=torch.float64)
                total += float(error.square().sum())
                values += error.numel()
        metric = total / cases if self.task is Task.CLASSIFY else math.sqrt(total / values)
        return {self.metric: metric, "loss": loss / cases}

    def show(self, value: float | None) -> str:
        """The metric for people."""
        if value is None:
            return "-"
        return f"{100 * value:.1f} %" if self.task is Task.CLASSIFY else f"{value:.4g}"

    def _loss(self, scores: Tensor, y: Tensor) -> Tensor:
        if self.task is Task.CLASSIFY:
            return functional.cross_entropy(scores, y)
        return functional.mse_loss(scores, y)
