"""Analyse a model, or cut it in place: the two verbs of the library."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

from compressm.adapters.calibration import Calibration
from compressm.adapters.holding import identity_of
from compressm.adapters.mirroring import mirrored_layer, mirrored_update
from compressm.adapters.registry import Adapters, LayerRef, find_layers
from compressm.adapters.uncompiled import uncompiled
from compressm.adapters.update import LayerUpdate
from compressm.analysis.accounts import plan_of, report_of
from compressm.analysis.decision import Decision
from compressm.analysis.layer import LayerAnalysis
from compressm.checks import require_each, require_kind
from compressm.errors import TiedParametersError
from compressm.linalg.parallel import side_by_side
from compressm.reduction.criteria import Budget
from compressm.reduction.report import CompressionReport, LayerPlan, ReductionPlan
from compressm.settings import CompressionSettings
from compressm.surgery.operation import operate
from compressm.surgery.optimizer import as_sequence
from compressm.surgery.wrappers import require_plain

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Layer:
    """The layer that is analysed, and those of its kind that hold the very same parameters: one system."""

    ref: LayerRef
    tied: list[LayerRef] = field(default_factory=list)

    def members(self) -> tuple[LayerRef, ...]:
        """All of them."""
        return self.ref, *self.tied


@dataclass(frozen=True, eq=False)
class _Cut:
    layer: _Layer
    analysis: LayerAnalysis
    decision: Decision
    update: LayerUpdate | None
    seconds: float


@contextmanager
def _full_precision() -> Iterator[None]:
    """Without a graph and without autocast, inside which single precision products would be rounded to half."""
    with ExitStack() as contexts:
        contexts.enter_context(torch.no_grad())
        accelerators = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}
        for device in ("cpu", *(name for name, backend in accelerators.items() if backend.is_available())):
            contexts.enter_context(torch.autocast(device, enabled=False))
        yield


@_full_precision()
def analyze(
    model: nn.Module,
    settings: CompressionSettings | None = None,
    *,
    calibration: Calibration | None = None,
    adapters: Adapters | None = None,
    budgets: Mapping[str, Budget] | None = None,
) -> ReductionPlan:
    """The Hankel singular values of every state space layer and the orders the settings' criterion wants.

    Nothing is changed. With a `calibration` that has seen passes, the Gramians are those of the layers' own inputs and
    of the loss (see `CompressionSettings`); without one they are the classical ones. `budgets` are what the
    layers may discard over a run, by name, for a criterion that refers to the uncompressed layers.

    Raises AdapterError where an adapter misreads its layer, InvalidSystemError for NaN or infinite weights and
    UnstableSystemError for an unstable layer, naming the layer.
    """
    settings = _checked(settings, calibration, budgets)
    model = uncompiled(model)
    layers = _layers(model, adapters)

    def planned(analysis: LayerAnalysis) -> LayerPlan:
        return plan_of(analysis, analysis.decide(reduce=False))

    # Layers are run, to verify what was read, one after the other: they may share submodules.
    analyses = [_analysis(layer.ref, settings, calibration, budgets) for layer in layers]
    plans = side_by_side([partial(planned, analysis) for analysis in analyses])
    return ReductionPlan(tuple(plans), _unsupported(model, layers))


@_full_precision()
def compress_(
    model: nn.Module,
    settings: CompressionSettings | None = None,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    calibration: Calibration | None = None,
    adapters: Adapters | None = None,
    budgets: Mapping[str, Budget] | None = None,
    mirrors: Sequence[nn.Module] = (),
) -> CompressionReport:
    """Cut every state space layer of a model in place to the order the settings' criterion wants.

    Each layer is balanced under its Gramians, truncated, brought into the layer's own form and written into the same
    parameters (Chahine et al. 2026, section 3); the state of the optimizers that hold them is carried over. All
    layers' updates are computed before the first is applied, and the stored layers are checked: a cut happens whole
    or not at all. Call it after `optimizer.step()` and before the next forward pass. `mirrors` are copies of the model,
    such as its `torch.optim.swa_utils.AveragedModel`, that go through the very same cut (see `adapters.mirroring`).

    Raises what `analyze` raises; SurgeryError where the model is wrapped (DDP, FSDP) or a tensor cannot be replaced,
    TiedParametersError where a parameter that changes is shared with another module (layers that share
    all their parameters are cut as one), UnstableSystemError where rounding to the layer's dtype makes it unstable.
    Model and optimizers are as before then.
    """
    started = time.perf_counter()
    settings = _checked(settings, calibration, budgets)
    model = uncompiled(model)
    require_plain(model)
    require_each("mirrors", mirrors, nn.Module, wanted="a sequence of copies of the model")
    for item in () if optimizer is None else as_sequence(optimizer):
        require_kind("optimizer", item, Optimizer, wanted="a torch.optim.Optimizer, or a sequence of them")
    layers = _layers(model, adapters)

    def prepared(layer: _Layer, analysis: LayerAnalysis) -> _Cut:
        begun = time.perf_counter()
        decision = analysis.decide(reduce=True)
        reduction = decision.reduction
        update = None if reduction is None else layer.ref.adapter.write(layer.ref.module, reduction)
        return _Cut(layer, analysis, decision, update, time.perf_counter() - begun)

    analyses = [_analysis(layer.ref, settings, calibration, budgets) for layer in layers]
    cuts = side_by_side([partial(prepared, *each) for each in zip(layers, analyses, strict=True)])
    _refuse_other_owners(model, cuts)
    items = [(r.label, r.module, c.update) for c in cuts if c.update is not None for r in c.layer.members()]
    followers = [
        (f"{ref.label} of {type(mirror).__name__}", copy.module, mirrored_update(copy, c.analysis.system, reduction))
        for c in cuts
        if (reduction := c.decision.reduction) is not None
        for ref in c.layer.members()
        for mirror in mirrors
        if (copy := mirrored_layer(mirror, ref))
    ]
    operation = operate(items, optimizer, settings.optimizer_policy, followers)
    try:
        reports = side_by_side([partial(report_of, c.analysis, c.decision, c.update, c.seconds) for c in cuts])
    except BaseException:
        operation.undo.undo()
        raise
    found = () if layers else (f"{type(model).__name__} has no layer that an adapter knows; nothing was cut.",)
    warnings = (*found, *dict.fromkeys(operation.warnings))
    for warning in warnings:
        _logger.warning("%s", warning)
    return CompressionReport(tuple(reports), time.perf_counter() - started, _unsupported(model, layers), warnings)


def _checked(
    settings: CompressionSettings | None, calibration: Calibration | None, budgets: Mapping[str, Budget] | None
) -> CompressionSettings:
    """The settings, or the defaults; raises ConfigError where an argument is of another kind."""
    require_kind("settings", settings, CompressionSettings, type(None))
    require_kind("calibration", calibration, Calibration, type(None))
    require_kind("budgets", budgets, Mapping, type(None), wanted="a mapping from layers' names to budgets")
    for name, budget in (budgets or {}).items():
        require_kind(f"budgets[{name!r}]", budget, Budget)
    return settings or CompressionSettings()


def _layers(model: nn.Module, adapters: Adapters | None) -> list[_Layer]:
    """The layers to consider, those of one kind that share all their parameters as one."""
    found: dict[tuple[type[nn.Module], frozenset[int]], _Layer] = {}
    for ref in find_layers(model, adapters):
        key = type(ref.module), identity_of(ref.module)
        if key in found:
            found[key].tied.append(ref)
        else:
            found[key] = _Layer(ref)
    return list(found.values())


def _refuse_other_owners(model: nn.Module, cuts: Sequence[_Cut]) -> None:
    """Raise TiedParametersError where a parameter that an update replaces belongs to another module as well."""
    for cut in cuts:
        if cut.update is None:
            continue
        layer = cut.layer.ref
        inside = {id(m) for ref in cut.layer.members() for m in ref.module.modules()}
        own = dict(layer.module.named_parameters(remove_duplicate=False))
        changed = {id(own[name]): name for name in cut.update.tensors if name in own}
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(module) not in inside and id(parameter) in changed:
                    raise TiedParametersError(
                        f"'{changed[id(parameter)]}' of the layer '{layer.label}' is the same tensor as '{name}' of "
                        f"'{path}' ({type(module).__name__}), which a cut would change too. Tie all parameters of two "
                        f"layers or none, and none to another kind of module."
                    )


def _analysis(
    ref: LayerRef,
    settings: CompressionSettings,
    calibration: Calibration | None,
    budgets: Mapping[str, Budget] | None,
) -> LayerAnalysis:
    capture = None if calibration is None else calibration.capture(ref.name)
    budget = None if budgets is None else budgets.get(ref.name)
    return LayerAnalysis(ref, settings, capture, budget)


def _unsupported(model: nn.Module, layers: Sequence[_Layer]) -> tuple[str, ...]:
    """Leaf modules whose name says state space but which have no adapter."""
    known = {id(m) for layer in layers for ref in layer.members() for m in ref.module.modules()}
    words = ("ssm", "s4", "s5", "lru", "mamba", "linoss", "statespace", "dss")
    return tuple(
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if id(module) not in known
        and list(module.parameters(recurse=False))
        and any(word in type(module).__name__.lower() for word in words)
    )
