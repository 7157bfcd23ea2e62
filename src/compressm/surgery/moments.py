"""What the tensors in an optimizer's state are, and how they follow a parameter through a cut.

Gradients are covectors, so an average m of gradients follows a cut as a gradient does. An average v of squared
gradients has no exact map but for a choice of states. Where m is known, v = (v - m^2 / rho^2) + m^2 / rho^2 with rho
the largest |m| / sqrt(v): the first part follows as the map says (StateMap.variances), the second as m does. So
no step |m'| / sqrt(v') is larger than rho.

PyTorch's optimizers take a complex parameter for its real and imaginary parts: the second moment of the real part is
the real part of theirs. A map sees the covectors of a complex parameter as complex numbers and its second moments as a
real view `(*, 2)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from compressm.adapters.update import StateMap
from compressm.errors import SurgeryError

Entry = Mapping[str, object]
Group = Mapping[str, object]


class Moment(Enum):
    """The kinds of optimizer state that a cut can carry."""

    COVECTOR = "covector"  # an average of gradients
    VARIANCE = "variance"  # an average, sum or maximum of squared gradients
    MAGNITUDE = "magnitude"  # the square root of such
    NORMALISED = "normalised"  # an average of gradients divided by their root mean square


_KINDS = {
    "exp_avg": Moment.COVECTOR,
    "grad_avg": Moment.COVECTOR,
    "momentum_buffer": Moment.COVECTOR,
    "exp_avg_sq": Moment.VARIANCE,
    "max_exp_avg_sq": Moment.VARIANCE,
    "square_avg": Moment.VARIANCE,
    "sum": Moment.VARIANCE,
    "variance": Moment.VARIANCE,
    "exp_inf": Moment.MAGNITUDE,
}
_ORDER = tuple(Moment)
_FRESH_SCALARS = {"step": 0, "mu_product": 1}


def moment_kind(key: str, entry: Entry) -> Moment | None:
    """The kind of the state tensor `entry[key]`, None where the key is not known."""
    if key == "momentum_buffer" and "square_avg" in entry:
        return Moment.NORMALISED  # RMSprop divides before it averages
    return _KINDS.get(key)


def moments(entry: Entry) -> dict[str, Moment]:
    """The known moments that one parameter's state holds, covectors first."""
    kinds = {
        key: kind for key, value in entry.items() if isinstance(value, Tensor) and (kind := moment_kind(key, entry))
    }
    return dict(sorted(kinds.items(), key=lambda item: _ORDER.index(item[1])))


def foreign_keys(entry: Entry) -> list[str]:
    """The keys of state that is neither a known moment nor a scalar: factored, quantised, nested or unknown."""
    known = moments(entry)
    return [key for key, value in entry.items() if key not in known and not _is_scalar(value)]


def fresh(entry: Entry, group: Group, shape: torch.Size) -> dict[str, object]:
    """The state as the optimizer begins with: zero moments of the new shape and step 0; other scalars stay."""
    known, new = moments(entry), dict(entry)
    for key, value in entry.items():
        if key in known and isinstance(value, Tensor):
            start = group.get("initial_accumulator_value", 0.0) if key == "sum" else 0.0
            number = float(start) if isinstance(start, int | float) else 0.0
            new[key] = value.new_full(shape, complex(number, number) if value.is_complex() else number)
        elif key in _FRESH_SCALARS:
            number = _FRESH_SCALARS[key]
            new[key] = torch.full_like(value, number) if isinstance(value, Tensor) else type(value)(number)  # pyright: ignore[reportCallIssue]
    return new


def leading(entry: Entry, shape: torch.Size) -> dict[str, object] | None:
    """The state cut to its leading entries along every dimension; None where a tensor does not contain `shape`."""
    new = dict(entry)
    for key, value in entry.items():
        if _is_scalar(value):
            continue
        known = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
        if not isinstance(value, Tensor) or not known or value.ndim != len(shape):
            return None
        if any(have < want for have, want in zip(value.shape, shape, strict=True)):
            return None
        new[key] = value[tuple(slice(n) for n in shape)].clone(memory_format=torch.contiguous_format)
    return new


def transport(
    state_map: StateMap, entries: Mapping[str, Entry], groups: Mapping[str, Group], shapes: Mapping[str, torch.Size]
) -> dict[str, dict[str, object]] | None:
    """The state of jointly mapped parameters after the cut, by parameter; None where `state_map` has no map.

    All parameters must hold the same moments. Maps see copies in double precision on the CPU.
    Raises SurgeryError where a map returns other shapes than `shapes`, or a negative second moment.
    """
    state_map = _Checked(state_map, shapes, frozenset(name for name, entry in entries.items() if _is_complex(entry)))
    new: dict[str, dict[str, object]] = {name: dict(entry) for name, entry in entries.items()}
    carried: dict[str, dict[str, Tensor]] = {}
    for key, kind in moments(next(iter(entries.values()))).items():
        whole = kind in (Moment.COVECTOR, Moment.NORMALISED)
        old = {name: _double(entry[key]) if whole else _parts(_double(entry[key])) for name, entry in entries.items()}
        if kind is Moment.COVECTOR:
            result = state_map.covectors(old)
        elif kind is Moment.MAGNITUDE:
            squared = _with_mean(state_map, {name: value.square() for name, value in old.items()}, entries, carried)
            result = None if squared is None else {name: value.sqrt() for name, value in squared.items()}
        elif kind is Moment.VARIANCE:
            result = _second_moment(state_map, key, old, entries, carried)
        else:
            result = _renormalised(state_map, old, entries, groups, carried)
        if result is None:
            return None
        carried[key] = result
        for name, entry in entries.items():
            new[name][key] = _like(result[name], entry[key])
    return new


@dataclass(frozen=True)
class _Checked(StateMap):
    """A map whose results are checked against the new shapes."""

    inner: StateMap
    shapes: Mapping[str, torch.Size]
    in_parts: frozenset[str]  # complex parameters

    def covectors(self, old: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return self._checked(self.inner.covectors(old), self.shapes)

    def variances(self, old: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        shapes = {n: torch.Size((*s, 2)) if n in self.in_parts else s for n, s in self.shapes.items()}
        new = self._checked(self.inner.variances(old), shapes)
        if new is not None and (negative := [name for name, value in new.items() if bool((value < 0).any())]):
            raise SurgeryError(f"The map of {negative} returns a negative second moment; the adapter must square it.")
        return new

    def _checked(self, new: dict[str, Tensor] | None, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor] | None:
        if new is None:
            return None
        for name, shape in shapes.items():
            if name not in new or new[name].shape != shape:
                found = tuple(new[name].shape) if name in new else "nothing"
                raise SurgeryError(
                    f"The map of optimizer state beside '{name}' returns {found}; wanted shape {tuple(shape)}, that of "
                    f"its new value. The adapter's map does not fit."
                )
        return {name: new[name] for name in shapes}


def _second_moment(
    state_map: StateMap,
    key: str,
    old: Mapping[str, Tensor],
    entries: Mapping[str, Entry],
    carried: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Tensor] | None:
    if key != "square_avg" or "grad_avg" not in carried:
        return _with_mean(state_map, old, entries, carried)
    # Centred RMSprop takes the root of square_avg - grad_avg^2: carry that difference, or it may turn negative.
    means = {name: _squared(entries[name]["grad_avg"]) for name in old}
    spread = state_map.variances({name: (value - means[name]).clamp_min(0) for name, value in old.items()})
    if spread is None:
        return None
    return {name: _not_below(value, carried["grad_avg"][name], entries[name][key]) for name, value in spread.items()}


def _with_mean(
    state_map: StateMap,
    old: Mapping[str, Tensor],
    entries: Mapping[str, Entry],
    carried: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Tensor] | None:
    if "exp_avg" not in carried:
        return state_map.variances(old)
    means = {name: _squared(entries[name]["exp_avg"]) for name in old}
    largest = max(_largest_ratio(means[name], value) for name, value in old.items())
    share = 1 / largest if largest > 0 else 0.0  # 1 / rho^2, 0 where a mean stands without a second moment
    spread = state_map.variances({name: _difference(value, share * means[name]) for name, value in old.items()})
    if spread is None:
        return None
    new = carried["exp_avg"]
    return {name: value + share * _squared(new[name]) for name, value in spread.items()}


def _difference(square: Tensor, part: Tensor) -> Tensor:
    """square - part >= 0, where what is only round-off counts as 0: a map may tell zero from positive."""
    rest = square - part
    return torch.where(rest > 64 * torch.finfo(rest.dtype).eps * square, rest, torch.zeros_like(rest))


def _largest_ratio(mean: Tensor, square: Tensor) -> float:
    ratio = torch.where(mean > 0, mean / square, torch.zeros_like(mean))
    return float(ratio.max()) if ratio.numel() > 0 else 0.0


def _not_below(spread: Tensor, mean: Tensor, like: object) -> Tensor:
    """spread + mean^2, rounded in the dtype of `like` but never below the square of the rounded mean."""
    floor = _squared(_like(mean, like))
    total = _parts(_like(spread + _squared(mean), like))
    raised = torch.nextafter(total, torch.full_like(total, torch.inf))
    return torch.where(total.double().cpu() < floor, raised.double().cpu(), total.double().cpu())


def _renormalised(
    state_map: StateMap,
    old: Mapping[str, Tensor],
    entries: Mapping[str, Entry],
    groups: Mapping[str, Group],
    carried: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Tensor] | None:
    def scale(name: str, square: Tensor, mean: Tensor | None) -> Tensor:
        spread = square if mean is None else (square - _squared(mean)).clamp_min(0)
        eps = groups[name].get("eps", 0.0)
        return spread.sqrt() + (eps if isinstance(eps, float) else 0.0)

    before = {
        name: scale(
            name, _parts(_double(entry["square_avg"])), _double(entry["grad_avg"]) if "grad_avg" in entry else None
        )
        for name, entry in entries.items()
    }
    raw = state_map.covectors({name: _whole(_parts(value) * before[name], value) for name, value in old.items()})
    if raw is None:
        return None
    after = {name: scale(name, carried["square_avg"][name], carried.get("grad_avg", {}).get(name)) for name in raw}
    return {
        name: _whole(torch.where(after[name] > 0, _parts(value) / after[name], 0.0), value)
        for name, value in raw.items()
    }


def _double(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise SurgeryError(f"Optimizer state holds a {type(value).__name__} where a tensor is wanted.")
    value = value.detach().cpu()
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def _parts(value: Tensor) -> Tensor:
    """The real view `(*, 2)` of a complex tensor, a real one as it is."""
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def _whole(parts: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_parts`: complex where `like` is."""
    return torch.view_as_complex(parts.contiguous()) if like.is_complex() and not parts.is_complex() else parts


def _squared(value: object) -> Tensor:
    """The squares of real and imaginary parts, in the form of `_parts`."""
    return _parts(_double(value)).square()


def _is_complex(entry: Entry) -> bool:
    return any(isinstance(value, Tensor) and value.is_complex() for value in (entry[key] for key in moments(entry)))


def _like(value: Tensor, like: object) -> Tensor:
    if not isinstance(like, Tensor):
        raise SurgeryError(f"Optimizer state holds a {type(like).__name__} where a tensor is wanted.")
    value = _whole(value, like)
    return value.detach().to(like.dtype).to(like.device, copy=True).contiguous()


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, Tensor) and value.ndim == 0)
