"""What is minimised and what is reported, for each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressm.data.batching import Batch
from compressm.data.dataset import Dataset, Task


@dataclass(frozen=True)
class Objective:
    """Cross entropy and accuracy for classes; mean squared error of normalised values and RMSE in their own unit.

    The RMSE is over cases and outputs together. For sequences of values it is the error of a simulation: the model sees
    inputs only, from a zero state, and the first `washout` steps of each sequence do not count. Their metric is
    NRMSE = sqrt(mean((y - y^)^2)) / std(y) over all counted steps, the mean of it over the outputs, where std is the
    deviation from the mean of the same steps; FIT = 100 (1 - NRMSE) in percent (Ljung 1999, System Identification).
    """

    task: Task
    target_scale: tuple[float, ...] = ()
    washout: int = 0

    @classmethod
    def of(cls, dataset: Dataset) -> Objective:
        """The objective for a data set."""
        normalisation = dataset.target_normalisation
        return cls(dataset.task, () if normalisation is None else normalisation.scale, dataset.washout)

    @property
    def metric(self) -> str:
        """The name of the metric."""
        return {Task.CLASSIFY: "accuracy", Task.REGRESS: "rmse", Task.SEQUENCE: "nrmse"}[self.task]

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is better."""
        return self.task is Task.CLASSIFY

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of one batch."""
        return self._loss(model(batch.x, batch.lengths), batch.y)

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], total_of: Callable[[list[float]], list[float]] = list
    ) -> dict[str, float]:
        """Metric and loss over all cases of `batches`; run it in evaluation mode and without gradients.

        For sequences of values also "rmse", in their own unit, and "fit", in percent. `total_of` sums numbers over the
        processes that have batches of their own (not for sequences of values).
        """
        if self.task is Task.SEQUENCE:
            return self._simulate(model, batches)
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
        cases, loss, total, values = total_of([cases, loss, total, values])
        metric = total / cases if self.task is Task.CLASSIFY else math.sqrt(total / values)
        return {self.metric: metric, "loss": loss / cases}

    def show(self, value: float | None) -> str:
        """The metric for people."""
        if value is None:
            return "-"
        return f"{100 * value:.1f} %" if self.task is Task.CLASSIFY else f"{value:.4g}"

    def _simulate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        steps, scale = 0, torch.tensor(self.target_scale, dtype=torch.float64)
        squared, total, energy = (torch.zeros(len(self.target_scale), dtype=torch.float64) for _ in range(3))
        origin: Tensor | None = None
        for batch in batches:
            y = batch.y[:, self.washout :].double().flatten(0, 1)
            error = y - model(batch.x, batch.lengths)[:, self.washout :].double().flatten(0, 1)
            origin = y[0] if origin is None else origin
            moved = y - origin  # without cancellation where an output is far from 0 beside its deviation
            steps += len(y)
            squared, total, energy = (
                squared + error.square().sum(0),
                total + moved.sum(0),
                energy + moved.square().sum(0),
            )
        deviation = energy / steps - (total / steps).square()  # a data set has no constant output
        nrmse = float((squared / steps / deviation).sqrt().mean())
        rmse = float((squared / steps * scale.square()).mean().sqrt())
        return {"nrmse": nrmse, "loss": float((squared / steps).mean()), "rmse": rmse, "fit": 100 * (1 - nrmse)}

    def _loss(self, scores: Tensor, y: Tensor) -> Tensor:
        if self.task is Task.CLASSIFY:
            return functional.cross_entropy(scores, y)
        if self.task is Task.SEQUENCE:
            scores, y = scores[:, self.washout :], y[:, self.washout :]
        return functional.mse_loss(scores, y)
