"""Wrapped models are refused with the remedy."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from compressm.adapters.uncompiled import uncompiled
from compressm.errors import SurgeryError
from compressm.surgery.wrappers import require_plain


def test_a_plain_model_passes(toy):
    require_plain(nn.Sequential(toy, nn.Linear(2, 2)))


def test_compiled_models_are_views_of_plain_ones(toy):
    compiled = torch.compile(toy, backend="eager")
    require_plain(compiled)
    require_plain(nn.Sequential(compiled))
    assert uncompiled(compiled) is toy
    assert uncompiled(toy) is toy


def test_data_parallel(toy):
    with pytest.raises(SurgeryError, match=r"DataParallel.*model.module"):
        require_plain(nn.DataParallel(toy))


def test_scripted_models():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(SurgeryError, match="ScriptModule"):
        require_plain(scripted)


@pytest.mark.parametrize("name", ["DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"])
def test_wrappers_are_known_by_name(toy, name):
    wrapper = type(name, (nn.Module,), {})()
    wrapper.module = toy
    with pytest.raises(SurgeryError, match=name):
        require_plain(wrapper)
