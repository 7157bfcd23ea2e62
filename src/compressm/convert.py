"""Layers that store no general system, made into layers that do: the same input-output map, other parameters."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from compressm.adapters.base import StateSpaceAdapter
from compressm.adapters.holding import double, reference_tensor
from compressm.adapters.registry import LayerRef, find_layers
from compressm.adapters.s4d import S4DAdapter
from compressm.adapters.s5 import S5Adapter
from compressm.analysis import read_system
from compressm.checks import require_kind
from compressm.errors import AdapterError
from compressm.layers.base import SequenceLayer
from compressm.layers.config import ModelConfig
from compressm.layers.families import kind_of
from compressm.layers.lru import LRU
from compressm.layers.model import SequenceModel
from compressm.layers.s4d import S4D
from compressm.layers.s5 import S5
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import ConjugateLinear, GramianSource, Reduction
from compressm.surgery.parameters import apply_update
from compressm.surgery.wrappers import require_plain

_GENERAL = (LRU, S4D, S5)
_LENGTH = 256  # steps of the impulse response over which old and new layer are compared
_STEP = 0.01  # of a new layer whose states have no step size of their own yet

_logger = logging.getLogger(__name__)


def convert_(model: nn.Module, names: Iterable[str] | None = None) -> list[str]:
    """Replace layers of the library by general diagonal ones with the same input-output map; returns their names.

    A bank of systems becomes an `S4D`, a system with several inputs and outputs an `S5`. These can be balanced in full,
    which layers that store only a choice of their states (DSS, oscillators) cannot. Their parameters are new ones:
    convert before the optimizer is made. Hooks on the old layer are not carried over. The `config` of a `SequenceModel`
    follows: a model built from it takes the checkpoints of the converted one. Into other models a checkpoint is loaded
    after they have been converted too. A layer that stores n real states, or n complex ones, becomes one with n complex
    states; of the two of a conjugate pair one is then superfluous, and the first cut removes it at no error.

    `names` are those of `find_layers`; None stands for all layers of the library that are not general yet. Nothing is
    replaced where one of them cannot be.

    Raises AdapterError for a name that is no such layer, where the model itself is the layer, for poles on or outside
    the unit circle (LinOSS-IMEX), for a D that is no diagonal, where a state matrix cannot be diagonalized to working
    precision, and for a part of the layers of a `SequenceModel`, whose `config` names one kind for all; SurgeryError
    for a wrapped model; ConfigError where `names` holds anything but names.
    """
    require_plain(model)
    chosen = None if names is None else _list(names)
    found = {ref.name: ref for ref in find_layers(model)}
    if chosen is None:
        chosen = [n for n, ref in found.items() if isinstance(ref.module, SequenceLayer) and not _is_general(ref)]
    if missing := [name for name in chosen if name not in found]:
        raise AdapterError(f"The model has no layers {missing}; it has {list(found)}.")
    replaced = {id(found[name].module): _converted(found[name]) for name in chosen}
    places = [(path, id(m)) for path, m in model.named_modules(remove_duplicate=False) if id(m) in replaced]
    if any(not path for path, _ in places):
        raise AdapterError("The model itself is the layer, which has no place to be replaced in; wrap it in a module.")
    configs = _configs(model, replaced)
    for path, key in places:
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, replaced[key])
        _logger.info("%s: converted to %s", path, type(replaced[key]).__name__)
    for part, config in configs:
        part.config = config
    return chosen


def _configs(model: nn.Module, replaced: Mapping[int, SequenceLayer]) -> list[tuple[SequenceModel, ModelConfig]]:
    """The models inside whose layers are replaced, with what will describe them."""
    found: list[tuple[SequenceModel, ModelConfig]] = []
    for path, part in model.named_modules():
        if not isinstance(part, SequenceModel):
            continue
        layers = [m for m in part.modules() if isinstance(m, SequenceLayer)]
        if not any(id(layer) in replaced for layer in layers):
            continue
        kinds = {kind_of(replaced.get(id(layer), layer)) for layer in layers}
        kind = kinds.pop()
        if kind is None or kinds:
            raise AdapterError(
                f"{path or type(part).__name__}: after converting only some of its layers they would be of several "
                f"kinds, and its config names one for all, so that no checkpoint of it could be loaded. Convert all."
            )
        found.append((part, part.config.with_layer(kind)))
    return found


def _list(names: Iterable[str]) -> list[str]:
    require_kind("names", names, list, tuple, set, frozenset, wanted="the names of layers, in a list")
    for name in names:
        require_kind("A layer's name", name, str)
    return list(names)


def _is_general(ref: LayerRef) -> bool:
    return isinstance(ref.module, _GENERAL)


def _converted(ref: LayerRef) -> SequenceLayer:
    """A new general layer that acts as this one."""
    layer = ref.module
    if not isinstance(layer, SequenceLayer) or _is_general(ref):
        raise AdapterError(
            f"{ref.name}: {type(layer).__name__} is not converted: "
            + ("it is a general diagonal layer already." if _is_general(ref) else "it is no layer of the library.")
        )
    system = read_system(ref)
    if not system.is_stable():
        raise AdapterError(
            f"{ref.name}: its spectral radius is {float(system.spectral_radius().max()):.9g}, and a general diagonal "
            f"layer stores poles inside the unit circle only; nothing was converted. Cut it as it is."
        )
    diagonal = _diagonal(system)
    new, adapter = _empty(layer, diagonal)
    n = diagonal.order
    eye = ConjugateLinear(torch.eye(n, dtype=torch.complex128).expand(*diagonal.batch_shape, n, n))
    white = GramianSource.WHITE
    with torch.no_grad():
        new.D.copy_(_feedthrough(ref.name, system))
    apply_update(new, adapter.write(new, Reduction(diagonal, 2 * n, eye, eye, None, 1.0, white, white)))
    like = reference_tensor(layer)
    new.to(like.device, like.dtype).train(layer.training)
    _require_same(ref.name, system, adapter.read(new), torch.finfo(like.dtype).eps)
    return new


def _diagonal(system: StateSpace) -> StateSpace:
    """The system with a diagonal complex state matrix."""
    if system.is_diagonal:
        return system
    poles, vectors = torch.linalg.eig(system.a)
    b = torch.linalg.solve(vectors, system.b.to(vectors.dtype))
    return StateSpace(poles, b, system.c.to(vectors.dtype) @ vectors, system.d)


def _empty(layer: SequenceLayer, system: StateSpace) -> tuple[S4D | S5, StateSpaceAdapter]:
    """A layer of the right kind, width and order whose step sizes are set, with its adapter."""
    if not system.batch_shape:
        return S5(layer.width, system.order, dt_min=_STEP, dt_max=_STEP), S5Adapter()
    bank = S4D(layer.width, system.order, dt_min=_STEP, dt_max=_STEP)
    if "log_dt" in dict(layer.named_parameters()):
        with torch.no_grad():
            bank.log_dt.copy_(double(layer, "log_dt"))
    return bank, S4DAdapter()


def _feedthrough(name: str, system: StateSpace) -> Tensor:
    """The diagonal of D (H,)."""
    if system.d is None:
        return torch.zeros(system.input_features, dtype=torch.float64)
    if system.batch_shape:
        return system.d[:, 0, 0]
    d = system.d.diagonal()
    if system.inputs != system.outputs or not torch.equal(torch.diag(d), system.d):
        raise AdapterError(
            f"{name}: its D is a full matrix, which a diagonal layer cannot store; nothing was converted."
        )
    return d


def _require_same(name: str, old: StateSpace, new: StateSpace, eps: float) -> None:
    wanted, found = (s.markov_parameters(_LENGTH) for s in (old, new))
    wanted = wanted.real if wanted.is_complex() else wanted
    size, error = float(wanted.abs().max()), float((found - wanted).abs().max())
    if not error <= 100 * eps**0.75 * size:
        raise AdapterError(
            f"{name}: in diagonal form its impulse response would differ by {error:.1e} (its size is {size:.1e}), "
            f"because its poles can hardly be told apart; nothing was converted. Cut it as it is."
        )
