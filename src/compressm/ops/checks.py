"""Whether tensors fit together as a recurrence."""

from __future__ import annotations

from torch import Tensor

from compressm.checks import require_integer
from compressm.errors import InvalidSystemError


def require_tensors(*, complex_too: bool = False, **named: Tensor | None) -> None:
    """Raise InvalidSystemError unless all are floating-point tensors on one device; a feedthrough may be None.

    Complex ones only with `complex_too`.
    """
    first: Tensor | None = None
    for name, tensor in named.items():
        if tensor is None and name == "feedthrough":
            continue
        if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or (complex_too and tensor.is_complex())):
            found = f"of dtype {tensor.dtype}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            wanted = "real or complex" if complex_too else "real"
            raise InvalidSystemError(f"{name} is {found}; wanted a tensor of {wanted} floating-point numbers.")
        first = tensor if first is None else first
        if tensor.device != first.device:
            raise InvalidSystemError(f"{name} is on {tensor.device}, others on {first.device}; move all to one device.")


def check_diagonal(
    nu: Tensor,
    theta: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    c_re: Tensor,
    c_im: Tensor,
    u: Tensor,
    feedthrough: Tensor | None = None,
) -> None:
    """Raise InvalidSystemError unless these are a diagonal system and its input, see `diagonal_lti`."""
    require_tensors(nu=nu, theta=theta, b_re=b_re, b_im=b_im, c_re=c_re, c_im=c_im, u=u, feedthrough=feedthrough)
    order = nu.shape[0] if nu.ndim == 1 else -1
    fits = (
        theta.shape == nu.shape
        and b_re.ndim == c_re.ndim == 2
        and u.ndim == 3
        and b_re.shape == b_im.shape == (order, u.shape[2])
        and c_re.shape == c_im.shape == (c_re.shape[0], order)
    )
    if not fits:
        named = {"nu": nu, "theta": theta, "b_re": b_re, "b_im": b_im, "c_re": c_re, "c_im": c_im, "u": u}
        raise InvalidSystemError(
            f"Wanted nu, theta (N,), b_re, b_im (N, H_in), c_re, c_im (H_out, N) and u (batch, L, H_in); found "
            f"{_shapes(named)}."
        )
    if feedthrough is not None and not feedthrough.shape == u.shape[2:] == c_re.shape[:1]:
        raise InvalidSystemError(
            f"Wanted feedthrough (H,) beside H inputs and outputs; found {tuple(feedthrough.shape)} beside "
            f"{u.shape[2]} inputs and {c_re.shape[0]} outputs."
        )


def check_dense(a: Tensor, b: Tensor, c: Tensor, u: Tensor, feedthrough: Tensor | None = None) -> None:
    """Raise InvalidSystemError unless these are a dense system and its input, see `dense_lti`."""
    require_tensors(a=a, b=b, c=c, u=u, feedthrough=feedthrough)
    order = a.shape[0] if a.ndim == 2 else -1
    fits = tuple(a.shape) == (order, order) and b.ndim == c.ndim == 2 and u.ndim == 3
    if not fits or b.shape != (order, u.shape[2]) or c.shape[1] != order:
        raise InvalidSystemError(
            f"Wanted a (N, N), b (N, H_in), c (H_out, N) and u (batch, L, H_in); found "
            f"{_shapes({'a': a, 'b': b, 'c': c, 'u': u})}."
        )
    if feedthrough is not None and feedthrough.shape != (c.shape[0], u.shape[2]):
        raise InvalidSystemError(
            f"Wanted feedthrough (H_out, H_in); found {tuple(feedthrough.shape)} beside {u.shape[2]} inputs and "
            f"{c.shape[0]} outputs."
        )


def check_dense_bank(a: Tensor, b: Tensor, c: Tensor, length: int) -> None:
    """Raise InvalidSystemError unless these are the systems of `dense_bank_response`; ConfigError for the length."""
    require_tensors(complex_too=True, a=a, b=b, c=c)
    require_integer("length", length, 0)
    if b.ndim != 2 or c.shape != b.shape or tuple(a.shape) != (*b.shape, b.shape[1]):
        raise InvalidSystemError(f"Wanted a (H, N, N) and b, c (H, N); found {_shapes({'a': a, 'b': b, 'c': c})}.")


def check_low_rank_bank(nu: Tensor, theta: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, length: int) -> None:
    """Raise InvalidSystemError unless these are the systems of `low_rank_response`; ConfigError for the length."""
    named = {"nu": nu, "theta": theta, "p": p, "q": q, "b": b, "c": c}
    require_tensors(nu=nu, theta=theta)
    require_tensors(complex_too=True, **named)
    require_integer("length", length, 0)
    if nu.ndim != 2 or any(t.shape != nu.shape for t in named.values()):
        raise InvalidSystemError(f"Wanted nu, theta, p, q, b, c (H, N); found {_shapes(named)}.")


def check_state(state: Tensor, u: Tensor, *shape: int) -> None:
    """Raise InvalidSystemError unless `u` is (batch, H) and `state` is (batch, *shape) beside it."""
    require_tensors(state=state, u=u)
    if u.ndim != 2 or tuple(state.shape) != (u.shape[0], *shape):
        wanted = ", ".join(map(str, ("batch", *shape)))
        raise InvalidSystemError(
            f"Wanted u (batch, H) and state ({wanted}); found {_shapes({'u': u, 'state': state})}."
        )


def _shapes(named: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named.items())
