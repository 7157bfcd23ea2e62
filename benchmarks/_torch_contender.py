"""What is timed in torch: the library, in one of its forms or as it chooses, the plain scan, and matrix products."""

from __future__ import annotations

import torch
from _associative_scan import ScanLRU
from _contender import Arrays, Contender, weights
from _shape import Shape
from torch import Tensor
from torch.nn import functional

from compressm.layers import LRU, ModelConfig, SequenceModel
from compressm.ops import CostTable, Form, keep_freed_memory, kernels_run, use_cost_table, use_kernels

LIBRARY, WITHOUT_NUMBA, SCAN, SGEMM = "library", "library without numba", "torch scan", "sgemm"
SGEMM_SIZE = 2048  # rows and columns of the matrix product that stands for the machine's peak


def forms() -> list[str]:
    """The library in each of the forms that run here."""
    known = [form for form in Form if form is not Form.REFERENCE and (form is not Form.LANES or kernels_run())]
    return [f"{LIBRARY}:{form.value}" for form in known]


def build(kind: str, task: str, shape: Shape, arrays: Arrays) -> Contender:
    """The contender `kind` at the task "step" or "layer".

    It is "library", as it chooses; "library:FORM"; "library without numba"; "torch scan", in torch alone; or "sgemm".
    """
    keep_freed_memory()
    use_kernels(kind not in (WITHOUT_NUMBA, SCAN))
    if kind == SGEMM:
        return Sgemm()
    if kind not in (LIBRARY, WITHOUT_NUMBA, SCAN):
        _force(Form(kind.removeprefix(f"{LIBRARY}:")))
    return (TrainingStep if task == "step" else Layer)(kind, shape, arrays)


def _force(form: Form) -> None:
    """Let the cost model choose this form, whatever the sizes."""
    use_cost_table(CostTable({other.value: 1e12 for other in Form if other is not form}))


class Sgemm(Contender):
    """One product of two square matrices in float32."""

    def __init__(self) -> None:
        self._a, self._b = torch.randn(SGEMM_SIZE, SGEMM_SIZE), torch.randn(SGEMM_SIZE, SGEMM_SIZE)
        self._product = torch.empty(SGEMM_SIZE, SGEMM_SIZE)

    def run(self, count: int) -> None:
        for _ in range(count):
            torch.mm(self._a, self._b, out=self._product)


class TrainingStep(Contender):
    """zero_grad, forward, cross entropy, backward and a step of Adam."""

    def __init__(self, kind: str, shape: Shape, arrays: Arrays) -> None:
        self._kind, self._shape = kind, shape
        self._model = self._build(arrays, ModelConfig.dropout)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=4e-4, fused=True)
        self._x, self._labels = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["labels"])

    def run(self, count: int) -> None:
        for _ in range(count):
            self._optimizer.zero_grad()
            functional.cross_entropy(self._model(self._x), self._labels).backward()
            self._optimizer.step()

    def results(self, arrays: Arrays) -> Arrays:
        """Scores and gradients in training mode without dropout, at the weights as given."""
        model = self._build(arrays, 0.0)
        scores = model(self._x)
        names, values = zip(*model.named_parameters(), strict=True)
        grads = torch.autograd.grad(functional.cross_entropy(scores, self._labels), values)
        return {"scores": scores.detach().numpy(), **{k: g.numpy() for k, g in zip(names, grads, strict=True)}}

    def _build(self, arrays: Arrays, dropout: float) -> SequenceModel:
        shape = self._shape
        config = ModelConfig(width=shape.width, order=shape.order, blocks=shape.blocks, dropout=dropout)
        model = SequenceModel(config)
        if self._kind == SCAN:
            for block in model.blocks:
                block.ssm = ScanLRU(shape.width, shape.order)
        model.load_state_dict(_parameters(arrays))
        return model


class Layer(Contender):
    """One layer's output and its gradients, for a given gradient of the output."""

    def __init__(self, kind: str, shape: Shape, arrays: Arrays) -> None:
        self._layer = (ScanLRU if kind == SCAN else LRU)(shape.width, shape.order)
        prefix = "blocks.0.ssm."
        own = {k.removeprefix(prefix): v for k, v in _parameters(arrays).items() if k.startswith(prefix)}
        self._layer.load_state_dict(own)
        layout = self._layer.layout(shape.batch, shape.length)
        self._u = layout.arrange(torch.from_numpy(arrays["u"])).requires_grad_()
        self._grad = layout.arrange(torch.from_numpy(arrays["grad"]))

    def run(self, count: int) -> None:
        for _ in range(count):
            self._both()

    def results(self, arrays: Arrays) -> Arrays:
        """The output and all gradients."""
        y, grads = self._both()
        names = ["u", *dict(self._layer.named_parameters())]
        return {"y": y.detach().numpy(), **{k: g.numpy() for k, g in zip(names, grads, strict=True)}}

    def _both(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = self._layer(self._u)
        return y, torch.autograd.grad(y, [self._u, *self._layer.parameters()], self._grad)


def _parameters(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in weights(arrays).items()}
