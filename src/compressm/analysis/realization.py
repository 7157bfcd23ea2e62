"""A layer's system, checked against the layer's own forward pass."""

from __future__ import annotations

import torch

from compressm.adapters.holding import in_double, reference_tensor
from compressm.adapters.registry import LayerRef
from compressm.errors import AdapterError, CompressmError, InvalidSystemError
from compressm.linalg.statespace import StateSpace


def read_system(ref: LayerRef) -> StateSpace:
    """The layer's system in double precision, verified against the layer's own forward pass.

    Raises AdapterError where the adapter misreads the layer, InvalidSystemError, naming the layer, for bad values.
    """
    try:
        system = ref.adapter.read(ref.module).to_double()
    except InvalidSystemError as error:
        raise InvalidSystemError(f"{ref.label}: {error}") from error
    except AttributeError as error:
        raise AdapterError(
            f"{ref.label}: {type(ref.adapter).__name__} cannot read {type(ref.module).__name__}: {error}."
        ) from error
    verify_realization(ref, system)
    return system


def verify_realization(ref: LayerRef, system: StateSpace, length: int = 8) -> None:
    """Raise AdapterError unless the layer's forward pass is the system that was read, on a short random input."""
    like = reference_tensor(ref.module)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2, length, system.input_features, generator=generator, dtype=torch.float64)
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        try:
            found = in_double(ref.adapter.response(ref.module, u.to(like.device, like.dtype)))
        except CompressmError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            raise AdapterError(
                f"{ref.label}: the forward pass failed on an input of shape {tuple(u.shape)}: {error}"
            ) from error
    wanted = system.simulate(u.to(like.dtype).double())
    tolerance = min(100 * torch.finfo(like.dtype).eps ** 0.75, 0.1)  # a wrong factor or sign changes more than this
    size = float(wanted.abs().max())
    error = float((found - wanted).abs().max()) if found.shape == wanted.shape else float("inf")
    if not error <= tolerance * max(size, 1e-30):
        raise AdapterError(
            f"{ref.label}: {type(ref.adapter).__name__} read a system whose output differs from that of "
            f"{type(ref.module).__name__}'s own forward pass by {error:.1e} (the output's size is {size:.1e}). The "
            f"layer has an option that the adapter does not know, or only shares its name. Nothing was cut. Register "
            f"an adapter for {type(ref.module).__module__}.{type(ref.module).__qualname__}, or leave it alone with "
            f"adapters={{{type(ref.module).__name__}: None}}."
        )
