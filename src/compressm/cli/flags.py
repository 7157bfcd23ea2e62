"""Flags of `compressm train` and the settings they stand for."""

from __future__ import annotations

from collections.abc import Mapping

from compressm.cli.parsing import Tree, nest

SETTINGS = {
    "data": "data.path",
    "layer": "model.layer",
    "init": "model.init",
    "discretization": "model.discretization",
    "order": "model.order",
    "width": "model.width",
    "blocks": "model.blocks",
    "dropout": "model.dropout",
    "bidirectional": "model.bidirectional",
    "steps": "training.steps",
    "batch_size": "training.batch_size",
    "lr": "training.lr",
    "schedule": "training.schedule",
    "warmup": "training.warmup",
    "weight_decay": "training.weight_decay",
    "ssm_lr_factor": "training.ssm_lr_factor",
    "seed": "training.seed",
    "threads": "training.threads",
    "eval_every": "training.eval_every",
    "compress": "compression.enabled",
    "preset": "compression.preset",
    "discard": "compression.discard",
    "cuts": "compression.cuts",
    "window": "compression.window",
    "at": "compression.at",
    "every": "compression.every",
    "orders": "compression.orders",
    "drop": "compression.drop",
    "refit": "compression.refit",
    "guard": "compression.guard",
    "guard_probe": "compression.guard_probe",
    "checkpoint_every": "output.checkpoint_every",
}
"""Each flag's name and the setting it gives; every other setting is reached by `--set`."""


def settings_from(flags: Mapping[str, object]) -> Tree:
    """The settings that the given flags (those that are not None) stand for, nested."""
    return nest({SETTINGS[name]: value for name, value in flags.items() if name in SETTINGS and value is not None})
