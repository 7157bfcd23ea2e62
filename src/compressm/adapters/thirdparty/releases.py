"""Under which names the releases of the S4 repository keep what a kernel holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from torch import nn

from compressm.adapters.signature import Signature
from compressm.adapters.thirdparty.stored_poles import RealPoles, SplitPoles, StoredPoles, ViewedPoles
from compressm.adapters.thirdparty.surroundings import Alone, Convolution, Surroundings
from compressm.adapters.weights import ComplexWeights, ExpandedWeights, PermutedWeights, RealWeights, ViewedWeights
from compressm.errors import AdapterError


@dataclass(frozen=True)
class LowRank:
    """A part - P Q^T over all conjugate pairs: the names of P and Q `(R, S, n, 2)` and of the length C is kept for.

    Without Q it is the conjugate of P.
    """

    left: str
    right: str | None
    length: str

    @property
    def names(self) -> tuple[str, ...]:
        """P and Q."""
        return (self.left,) if self.right is None else (self.left, self.right)


@dataclass(frozen=True)
class Release:
    """How one release keeps a kernel with H channels, p outputs of each, S state matrices and n stored states.

    `path` is where the kernel is in the layer, with its dot. Of the tensors there C is (p, H, n, 2), B (1, S, n, 2), or
    (S, n, 2) without `wide_inputs`, and `step` (H, 1) or (H, n), or (H) without `wide_steps`; if `is_real`, B and C are
    real and have no last dimension. `sizes` are the attributes that count states, and how many they count for each that
    is stored.
    """

    path: str
    around: Surroundings
    poles: StoredPoles
    step: str
    sizes: tuple[tuple[str, int], ...]
    wide_inputs: bool = True
    wide_steps: bool = False
    low_rank: LowRank | None = None
    is_real: bool = False

    def shapes(self, rows: str) -> dict[str, str]:
        """The signature, with `rows` "h" for a state matrix for each channel and "s" for any number."""
        last = "" if self.is_real else " 2"
        inside = {
            "C": f"p h n{last}",
            "B": f"{'1 ' if self.wide_inputs else ''}{rows} n{last}",
            self.step: "h d" if self.wide_steps else "h",
            **self.poles.shapes(rows),
            **dict.fromkeys(self.low_rank.names if self.low_rank else (), f"r {rows} n 2"),
        }
        return {**{self.path + name: shape for name, shape in inside.items()}, **self.around.shapes()}

    @property
    def inputs(self) -> ComplexWeights:
        """B as (S, n, 1)."""
        stored = self._weights("B")
        return PermutedWeights(stored, (1, 2, 0)) if self.wide_inputs else ExpandedWeights(stored, 2)

    @property
    def input_dim(self) -> int:
        """The dimension of the states in the stored B."""
        return 2 if self.wide_inputs else 1

    @property
    def outputs(self) -> ComplexWeights:
        """C as (H, p, n)."""
        return PermutedWeights(self._weights("C"), (1, 0, 2))

    def _weights(self, name: str) -> ComplexWeights:
        return RealWeights(self.path + name) if self.is_real else ViewedWeights(self.path + name)

    def kernel(self, layer: nn.Module) -> nn.Module:
        """The kernel of a layer."""
        return layer.get_submodule(self.path.rstrip("."))

    def prepared(self, layer: nn.Module, order: int) -> dict[str, object]:
        """The attributes that count states, where the layer has them, for `order` stored ones."""
        found: dict[str, object] = {}
        for name, times in self.sizes:
            path, _, leaf = name.rpartition(".")
            if leaf in vars(layer.get_submodule(path)):
                found[name] = times * order
        return found


def _alone(release: Release) -> Release:
    """A release's kernel as a layer of its own."""
    return replace(release, path="", around=Alone(), sizes=(("N", 1),))


_NESTED, _NESTED_SIZES = "kernel.kernel.", (("kernel.kernel.N", 1), ("kernel.N", 2), ("N", 2), ("n", 2))

V4 = Release(
    "kernel.",
    Convolution("drop"),
    SplitPoles("A_real", "A_imag", -1.0, "real_transform"),
    "inv_dt",
    (("kernel.N", 1),),
    wide_steps=True,
)
"""Since 2023 (models/s4/s4.py): `FFTConv` around `SSMKernelDiag`."""

V4_LOW_RANK = replace(V4, low_rank=LowRank("P", None, "l_kernel"))
"""`FFTConv` around `SSMKernelDPLR`."""

V4_REAL = replace(V4, poles=RealPoles("A_real", "real_transform"), is_real=True)
"""`FFTConv` around `SSMKernelDiag(is_real=True)`."""

V4_ALONE = _alone(V4)
"""`SSMKernelDiag` where another layer calls it."""

V4_LOW_RANK_ALONE = _alone(V4_LOW_RANK)
"""`SSMKernelDPLR` where another layer calls it."""

V3 = Release(
    _NESTED,
    Convolution("activation", f"{_NESTED}C", takes_lengths=True),
    SplitPoles("inv_A_real", "A_imag", 1.0, "real_type"),
    "log_dt",
    _NESTED_SIZES,
    wide_inputs=False,
)
"""The releases of 2022: `S4` around `SSKernel` around `SSKernelDiag`."""

V3_LOW_RANK = replace(
    V3,
    poles=SplitPoles("inv_w_real", "w_imag", 1.0, "real_type", least=0.0),
    wide_inputs=True,
    low_rank=LowRank("P", None, "L"),
)
"""`S4` around `SSKernel` around `SSKernelNPLR`."""

V3_ALONE = _alone(V3)
"""`SSKernelDiag` where another layer calls it, as that of H3 does."""

V3_LOW_RANK_ALONE = _alone(V3_LOW_RANK)
"""`SSKernelNPLR` where another layer calls it."""

V2_HURWITZ = replace(
    V3_LOW_RANK,
    around=Convolution("activation", f"{_NESTED}C"),
    poles=SplitPoles("log_w_real", "w_imag", 1.0, "real_type"),
)
"""The first of 2022: `S4` around `HippoSSKernel` around `SSKernelNPLR(hurwitz=True)`."""

V2 = replace(V2_HURWITZ, poles=ViewedPoles("w"), low_rank=LowRank("P", "Q", "L"))
"""The same with `hurwitz=False`, its default: poles free, P and Q apart."""

RELEASES = (
    V4_LOW_RANK,
    V4,
    V4_REAL,
    V3_LOW_RANK,
    V2_HURWITZ,
    V2,
    V3,
    V4_LOW_RANK_ALONE,
    V4_ALONE,
    V3_LOW_RANK_ALONE,
    V3_ALONE,
)
"""Those that a layer may be of, the ones that hold more first."""


def release_of(layer: nn.Module) -> Release:
    """The release that a layer is of. Raises AdapterError where it is of none."""
    found = next((release for release in RELEASES if _signature(release).matches(layer)), None)
    if found is None:
        raise AdapterError(
            f"{type(layer).__name__} does not hold what a kernel of the S4 repository does; register an adapter of its "
            f"own."
        )
    return found


@cache
def _signature(release: Release) -> Signature:
    return Signature.of(release.shapes("s"))
