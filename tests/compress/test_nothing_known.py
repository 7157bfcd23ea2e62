"""A model without any layer that an adapter knows."""

from __future__ import annotations

from torch import nn

from compressm.compress import compress_


def test_a_model_without_a_known_layer_is_left_alone_with_a_warning() -> None:
    report = compress_(nn.Sequential(nn.Linear(2, 2)))
    assert report.layers == ()
    assert not report.changed
    assert report.warnings == ("Sequential has no layer that an adapter knows; nothing was cut.",)
