"""Take a model apart that `fully_shard` sharded: whole parameters for a while, then shards of what they became."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import getweakrefs

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from compressm.errors import SurgeryError
from compressm.surgery.parameters import hold


class Sharding:
    """The shards of a model under `torch.distributed.fsdp.fully_shard`, and the whole parameters that they make up.

    PyTorch has no way to resize a sharded parameter or to undo `fully_shard`. What is done instead: each of its
    `FSDPParam` objects (one a parameter) runs its own constructor again, with its own arguments and the new whole
    parameter. These names are private to PyTorch; the constructor here checks all that it needs.
    """

    def __init__(self, model: nn.Module) -> None:
        """Find the shards of `model`.

        Raises SurgeryError, with the remedy, where it is sharded in a way that cannot be made again.
        """
        self._modules = [m for m in model.modules() if isinstance(m, FSDPModule)]
        if not isinstance(model, FSDPModule):
            raise _refused("the model itself is not sharded, only modules inside", "call fully_shard(model) too")
        try:
            self._groups = [group for module in self._modules for group in _groups(module)]
            self._shards = [_Shard.of(param, group.mp_policy) for group in self._groups for param in group.fsdp_params]
            self._handles = [handle for module in self._modules for handle in _handles(module)]
            self._handles += [shard.param._post_load_hook_handle for shard in self._shards]
        except AttributeError as error:
            raise _refused(
                f"this PyTorch ({torch.__version__}) keeps shards in another way ({error})",
                "use DistributedDataParallel, or cut the plain model first and shard it then",
            ) from error
        self._depth = 0
        self.ranks: list[int] = self._shards[0].mesh.mesh.flatten().tolist() if self._shards else []
        for shard in self._shards:
            shard.require_known(self._shards[0])

    @contextmanager
    def whole(self, optimizers: Sequence[Optimizer]) -> Iterator[None]:
        """Inside, the model is as it was before `fully_shard`, and so is the state of these optimizers.

        Entered and left by all processes at once, after `optimizer.step()` and before the next forward pass. Each
        process then holds all parameters and optimizer state, which may be resized; at the end it keeps its own part
        of them. So all processes must have made the same changes. The sharded parameters stay the same objects, and
        so do the whole ones from one time to the next. Inside another such block nothing happens.

        Raises SurgeryError, with nothing changed, for optimizer state that has another shape than its parameter, and
        where a compiled program refers to a parameter or somebody has replaced one.
        """
        if self._depth == 0:
            self._require_movable(optimizers)
        with ExitStack() as steps:
            if self._depth == 0:
                self._gather(optimizers, steps)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def _require_movable(self, optimizers: Sequence[Optimizer]) -> None:
        for shard in self._shards:
            if shard.param.sharded_param is not shard.sharded:
                raise _refused(f"'{shard.name}' was replaced since", "load with load_state_dict(..., assign=False)")
            if getweakrefs(shard.sharded):
                raise _refused(
                    f"something refers to '{shard.name}' weakly, as compiled programs do", "do not compile it"
                )
        sharded = {shard.sharded for shard in self._shards}
        for optimizer in optimizers:
            for parameter in sharded & optimizer.state.keys():
                for key, value in optimizer.state[parameter].items():
                    if not _follows(value, parameter):
                        raise _refused(
                            f"{type(optimizer).__name__} keeps {key!r}, which does not have its parameter's shape",
                            "use an optimizer whose state has, such as AdamW",
                        )

    def _gather(self, optimizers: Sequence[Optimizer], steps: ExitStack) -> None:
        for module in self._modules:
            module.reshard()
        gathered = [shard.gathered() for shard in self._shards]  # all that can fail, before anything changes
        states = [_gathered_states(optimizer, self._shards) for optimizer in optimizers]
        for module in self._modules:
            steps.callback(setattr, module, "__class__", type(module))
            module.__class__ = _original(module)  # pyright: ignore[reportAttributeAccessIssue]
        for handle in self._handles:
            _lift(handle, steps)
        for shard, (value, gradient) in zip(self._shards, gathered, strict=True):
            shard.place(value, gradient)
            steps.callback(shard.scatter)
        for optimizer, entries in zip(optimizers, states, strict=True):
            _rename(optimizer, {shard.sharded: shard.whole for shard in self._shards})
            optimizer.state.update(entries)
            steps.callback(self._scatter_states, optimizer)  # before the shards, which empty the whole parameters

    def _scatter_states(self, optimizer: Optimizer) -> None:
        for shard in self._shards:
            if shard.whole in optimizer.state:
                optimizer.state[shard.whole] = shard.parts(optimizer.state[shard.whole])
        _rename(optimizer, {shard.whole: shard.sharded for shard in self._shards})


@dataclass(eq=False)
class _Shard:
    """One parameter: what FSDP keeps of it, the sharded parameter, and the whole one, empty outside `whole`."""

    param: Any  # FSDPParam
    sharded: DTensor
    whole: nn.Parameter
    mp_policy: Any

    @classmethod
    def of(cls, param: Any, mp_policy: Any) -> _Shard:
        sharded = param.sharded_param
        empty = torch.empty(0, dtype=sharded.dtype, device=sharded.device)
        return cls(param, sharded, nn.Parameter(empty, requires_grad=sharded.requires_grad), mp_policy)

    @property
    def name(self) -> str:
        info = self.param._module_info
        return f"{type(info.module).__name__}.{info.param_name}"

    @property
    def mesh(self) -> Any:
        return self.sharded.device_mesh

    def require_known(self, first: _Shard) -> None:
        """Raise SurgeryError unless `scatter` can shard this parameter again."""
        *others, last = self.sharded.placements
        if type(last) is not Shard or last.dim != 0 or any(type(p) is not Replicate for p in others):
            raise _refused(f"'{self.name}' has the placements {self.sharded.placements}", "shard the first dimension")
        if self.mesh != first.mesh:
            raise _refused(f"'{self.name}' is sharded over another mesh than '{first.name}'", "use one mesh")
        if self.param.is_dtensor:
            raise _refused(f"'{self.name}' was a DTensor before", "leave out tensor parallelism")
        if self.param.offload_to_cpu:
            raise _refused(f"'{self.name}' is offloaded", "leave out offload_policy")

    def gathered(self) -> tuple[Tensor, Tensor | None]:
        """The whole value and gradient."""
        return _full(self.sharded), None if self.sharded.grad is None else _full(self.sharded.grad)

    def place(self, value: Tensor, gradient: Tensor | None) -> None:
        """Put the whole parameter in place."""
        hold(self.whole, value)
        self.whole.requires_grad_(self.sharded.requires_grad)
        self.whole.grad = gradient
        self.param._setattr_on_modules(self.whole)

    def scatter(self) -> None:
        """Put the sharded parameter back, with this process's part of what the whole one has become."""
        value, gradient = self.whole.detach(), self.whole.grad
        self.whole.grad = None
        if value.shape == self.sharded.shape:
            with torch.no_grad():
                self.sharded.to_local().copy_(self._chunk(value))
        else:
            self._make_again(nn.Parameter(value.contiguous(), requires_grad=self.whole.requires_grad))
        self.sharded.requires_grad_(self.whole.requires_grad)
        self.sharded.grad = None if gradient is None else self.part(gradient)
        self.param._setattr_on_modules(self.sharded)
        hold(self.whole, value.new_empty(0))

    def parts(self, state: dict[str, Any]) -> dict[str, Any]:
        """Optimizer state with this process's part of each tensor of the parameter's shape."""
        return {
            key: self.part(value) if isinstance(value, Tensor) and value.ndim > 0 else value
            for key, value in state.items()
        }

    def part(self, whole: Tensor) -> DTensor:
        """The part of this process of a tensor that has the parameter's shape."""
        mesh, placements = self.mesh, self.sharded.placements
        shape, stride = whole.shape, torch.empty(whole.shape, device="meta").stride()
        return DTensor.from_local(
            self._chunk(whole).clone(), mesh, placements, run_check=False, shape=shape, stride=stride
        )

    def _chunk(self, whole: Tensor) -> Tensor:
        dimension = self.mesh.ndim - 1
        rank, size = self.mesh.get_local_rank(dimension), self.mesh.size(dimension)
        chunks = torch.chunk(whole, size, dim=0)
        return chunks[rank] if rank < len(chunks) else whole[:0]

    def _make_again(self, value: nn.Parameter) -> None:
        """Run the constructor of FSDPParam again on itself, with the arguments it was made with."""
        param = self.param
        sharded, name, placement = self.sharded, param._param_fqn, param.fsdp_placement
        arguments = (param._module_info, param.mesh_info, param.post_forward_mesh_info, param.device)
        handle = param._post_load_hook_handle
        vars(param).clear()
        param.__init__(value, *arguments, lambda _: placement, self.mp_policy, None)
        param._post_load_hook_handle.remove()
        param._post_load_hook_handle, param._param_fqn = handle, name
        param.init_dtype_attrs(self.mp_policy)
        new = param.sharded_param
        new.__dict__.update(vars(sharded))
        torch.utils.swap_tensors(sharded, new)
        param.sharded_param = sharded


def _full(sharded: Any) -> Tensor:
    """The whole tensor, in memory of its own."""
    with torch.no_grad():
        full: Tensor = sharded.full_tensor()
        return full.detach().clone(memory_format=torch.contiguous_format)


def _gathered_states(optimizer: Optimizer, shards: Sequence[_Shard]) -> dict[Tensor, Any]:
    present = [shard for shard in shards if shard.sharded in optimizer.state]
    return {
        shard.whole: {k: _full(v) if isinstance(v, DTensor) else v for k, v in optimizer.state[shard.sharded].items()}
        for shard in present
    }


def _follows(value: Any, parameter: Tensor) -> bool:
    """Whether optimizer state can be gathered and sharded as its parameter is: its shape, or one number."""
    if isinstance(value, Tensor):
        return value.ndim == 0 or (isinstance(value, DTensor) and value.shape == parameter.shape)
    return not isinstance(value, dict | list | tuple)


def _rename(optimizer: Optimizer, names: Mapping[Any, Tensor]) -> None:
    """Let an optimizer hold other parameter objects, in the same places, with the same state."""
    for group in optimizer.param_groups:
        group["params"][:] = [names.get(p, p) for p in group["params"]]
    for old in names.keys() & optimizer.state.keys():
        optimizer.state[names[old]] = optimizer.state.pop(old)


def _groups(module: Any) -> list[Any]:
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # before several groups of one module
        groups = [group for group in [state._fsdp_param_group] if group is not None]
    return list(groups)


def _handles(module: Any) -> list[RemovableHandle]:
    state = module._get_fsdp_state()
    handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
    if any(type(handle) is not RemovableHandle for handle in handles):
        raise _refused("several modules were sharded as one group", "call fully_shard on each of them")
    return handles


def _lift(handle: RemovableHandle, steps: ExitStack) -> None:
    """Take a hook out, to come back in its place among the others."""
    hooks: Any = handle.hooks_dict_ref()
    if hooks is None or handle.id not in hooks:
        return
    order = list(hooks)
    hook = hooks.pop(handle.id)

    def back() -> None:
        hooks[handle.id] = hook
        for key in [k for k in (*order, *(k for k in hooks if k not in order)) if k in hooks]:
            hooks.move_to_end(key)

    steps.callback(back)


def _original(module: FSDPModule) -> type[nn.Module]:
    """The class that `fully_shard` derived the module's present class from."""
    return type(module).__mro__[2]


def _refused(what: str, remedy: str) -> SurgeryError:
    return SurgeryError(f"This sharded model cannot be cut: {what}. Remedy: {remedy}.")
