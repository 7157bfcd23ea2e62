"""What the processes of the tests of shards do; `JOB` is set by whoever runs this file."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import Shard

from compressm.errors import SurgeryError
from compressm.layers import ModelConfig, SequenceModel
from compressm.training import At, InTrainingCompressor

sys.path.insert(0, str(Path(__file__).parent))

from workers import Training, main


def objects(rank: int, size: int, steps: int, **options: Any) -> dict[str, Any]:
    """Which objects a run with cuts leaves the same, and how large what this rank keeps is."""
    training = Training(rank, size, **options)
    layer, seen = training.model.blocks[0], []
    layer.register_forward_hook(lambda *_: seen.append("after"))  # comes after that of FSDP, which frees parameters
    parameters, kinds = list(training.model.parameters()), [type(m) for m in training.model.modules()]
    hooks = list(layer._forward_hooks)
    training.train(steps)
    ssm = layer.ssm
    held = [p for group in training.optimizer.param_groups for p in group["params"]]
    return {
        "parameters": all(a is b for a, b in zip(parameters, training.model.parameters(), strict=True)),
        "optimizer": {id(p) for p in held} == {id(p) for p in parameters} == {id(p) for p in training.optimizer.state},
        "kinds": kinds == [type(m) for m in training.model.modules()],
        "hooks": hooks == list(layer._forward_hooks),
        "whole": list(ssm.B_re.shape),
        "local": list(ssm.B_re.to_local().shape),
        "state": list(training.optimizer.state[ssm.B_re]["exp_avg"].to_local().shape),
        "seen": len(seen),
        "empty": sum(shard.whole.numel() for shard in training.compressor.processes._sharding._shards),
    }


def refused(rank: int, size: int) -> dict[str, Any]:
    """What is said of models that are sharded in ways that are refused."""
    return {how: _refused(how) for how in ("inside", "group", "placement", "offload", "state", "weak")}


def _refused(how: str) -> list[Any]:
    model = SequenceModel(ModelConfig(inputs=2, outputs=3, width=4, order=8, blocks=2))
    if how == "inside":
        fully_shard(model.blocks[0])
    elif how == "group":
        fully_shard([model.blocks[0], model.blocks[1]])
    elif how == "placement":
        fully_shard(model, shard_placement_fn=lambda p: Shard(1) if p.shape == (8, 4) else None)
    elif how == "offload":
        fully_shard(model, offload_policy=CPUOffloadPolicy(pin_memory=False))
    if how not in ("placement", "offload", "inside"):
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    kept = weakref.ref(next(model.parameters())) if how == "weak" else None
    if how == "state":
        model(torch.randn(2, 5, 2)).sum().backward()
        optimizer.step()
        optimizer.state[next(model.parameters())]["row"] = torch.zeros(3)
    kinds = [type(m) for m in model.modules()]
    try:
        InTrainingCompressor(model, optimizer, schedule=At((2,)))
        text = "nothing"
    except SurgeryError as error:
        text = str(error)
    del kept
    return [text, kinds == [type(m) for m in model.modules()]]


if "JOB" in globals():
    main(globals()["JOB"], globals())
