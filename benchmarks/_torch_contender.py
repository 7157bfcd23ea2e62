"""What is timed in torch: the library, in one of its forms or its own choice, the plain scan, and matrix products."""

from __future__ import annotations

import torch
from _associative_scan import ScanLRU
from _contender import Arrays, Contender, weights
from _shape import Shape
from torch import Tensor
from torch.nn import functional

from compressm.layers import LRU, ModelConfig, SequenceModel
from compressm.layers.layout import channel_first
from compressm.ops import Form, diagonal_lti, keep_freed_memory

SGEMM = 2048  # rows and columns of the matrix product that stands for the machine's peak


def build(kind: str, task: str, shape: Shape, arrays: Arrays) -> Contender:
    """The contender `kind` ("library", "library:FORM", "torch scan" or "sgemm") at the task "step" or "layer"."""
    keep_freed_memory()
    if kind == "sgemm":
        return Sgemm()
    return (TrainingStep if task == "step" else Layer)(kind, shape, arrays)


class Sgemm(Contender):
    """One product of two square matrices in float32."""

    def __init__(self) -> None:
        self._a, self._b = torch.randn(SGEMM, SGEMM), torch.randn(SGEMM, SGEMM)
        self._product = torch.empty(SGEMM, SGEMM)

    def run(self, count: int) -> None:
        for _ in range(count):
            torch.mm(self._a, self._b, out=self._product)


class TrainingStep(Contender):
    """zero_grad, forward, cross entropy, backward and a step of Adam."""

    def __init__(self, kind: str, shape: Shape, arrays: Arrays) -> None:
        self._kind, self._shape, self._arrays = kind, shape, arrays
        self._model = self._build(ModelConfig.dropout)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=4e-4, foreach=True)
        self._x, self._labels = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["labels"])

    def run(self, count: int) -> None:
        for _ in range(count):
            self._optimizer.zero_grad()
            functional.cross_entropy(self._model(self._x), self._labels).backward()
            self._optimizer.step()

    def results(self) -> Arrays:
        """Scores and gradients in training mode without dropout, at the weights as given."""
        model = self._build(0.0)
        scores = model(self._x)
        names, values = zip(*model.named_parameters(), strict=True)
        grads = torch.autograd.grad(functional.cross_entropy(scores, self._labels), values)
        return {"scores": scores.detach().numpy(), **{k: g.numpy() for k, g in zip(names, grads, strict=True)}}

    def _build(self, dropout: float) -> SequenceModel:
        shape = self._shape
        config = ModelConfig(width=shape.width, order=shape.order, blocks=shape.blocks, dropout=dropout)
        model = SequenceModel(config)
        if self._kind != "library":
            for block in model.blocks:
                block.ssm = _recurrent_layer(self._kind, shape)
        model.load_state_dict(_parameters(self._arrays))
        return model


class Layer(Contender):
    """One layer's output and its gradients, for a given gradient of the output."""

    def __init__(self, kind: str, shape: Shape, arrays: Arrays) -> None:
        self._layer = _recurrent_layer(kind, shape)
        prefix = "blocks.0.ssm."
        own = {k.removeprefix(prefix): v for k, v in _parameters(arrays).items() if k.startswith(prefix)}
        self._layer.load_state_dict(own)
        u, grad = torch.from_numpy(arrays["u"]), torch.from_numpy(arrays["grad"])
        if self._layer.wants_channel_first(shape.batch, shape.length):
            u, grad = channel_first(u), channel_first(grad)
        self._u, self._grad = u.requires_grad_(), grad

    def run(self, count: int) -> None:
        for _ in range(count):
            self._both()

    def results(self) -> Arrays:
        """The output and all gradients."""
        y, grads = self._both()
        names = ["u", *dict(self._layer.named_parameters())]
        return {"y": y.detach().numpy(), **{k: g.numpy() for k, g in zip(names, grads, strict=True)}}

    def _both(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = self._layer(self._u)
        return y, torch.autograd.grad(y, [self._u, *self._layer.parameters()], self._grad)


class FormLRU(LRU):
    """The LRU with its form laid down."""

    form = Form.REFERENCE

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """As LRU.forward, for unpadded input."""
        if mask is not None:
            raise ValueError("The benchmark takes no mask.")
        gamma = self.gamma_log.exp()[:, None]
        nu, theta = self.nu_log.double().exp(), self.theta_log.double().exp()
        b_re, b_im = gamma * self.B_re, gamma * self.B_im
        return diagonal_lti(nu, theta, b_re, b_im, self.C_re, self.C_im, u, self.form, feedthrough=self.D)

    def wants_channel_first(self, batch: int, length: int) -> bool:
        """As the form does, whatever the cost model would choose."""
        return self.form is Form.CONVOLUTION


def _recurrent_layer(kind: str, shape: Shape) -> LRU:
    match kind.split(":"):
        case ["library"]:
            return LRU(shape.width, shape.order)
        case ["library", form]:
            layer = FormLRU(shape.width, shape.order)
            layer.form = Form(form)
            return layer
        case ["torch scan"]:
            return ScanLRU(shape.width, shape.order)
        case _:
            raise ValueError(f"There is no contender {kind!r} in torch.")


def _parameters(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in weights(arrays).items()}
