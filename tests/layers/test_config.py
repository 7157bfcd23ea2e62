from __future__ import annotations

import json

import pytest

from compressm.errors import ConfigError
from compressm.layers import LayerKind, ModelConfig, NormKind, Task


def test_plain_values_and_back() -> None:
    config = ModelConfig(layer=LayerKind.DENSE, vocabulary=7, norm=NormKind.LAYER, task=Task.SEQUENCE, dropout=0)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ModelConfig.from_dict({"layer": "dense"}).layer is LayerKind.DENSE


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widht": 8}, r"Unknown model settings \['widht'\]; wanted some of \['layer', 'inputs'"),
        ({"layer": "s9"}, r"layer is 's9'; wanted one of \['lru', 'dense'"),
        ({"task": 3}, "task is 3; wanted one of"),
        ({"norm": ["batch"]}, "norm is"),
        ({"width": 0}, "width is 0; wanted an integer of 1 or more"),
        ({"width": 8.0}, "width is 8.0; wanted an integer"),
        ({"order": -1}, "order is -1"),
        ({"blocks": True}, "blocks is True"),
        ({"outputs": "10"}, "outputs is '10'"),
        ({"vocabulary": 0}, "vocabulary is 0"),
        ({"dropout": 1.0}, "dropout is 1.0; wanted 0 <= dropout < 1"),
        ({"dropout": "0.1"}, "dropout is '0.1'; wanted a number"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"bidirectional": 1}, "bidirectional is 1; wanted true or false"),
        ({"r_min": 0.99, "r_max": 0.9}, "r_min is 0.99 and r_max 0.9"),
        ({"max_phase": 0.0}, "max_phase is 0.0"),
        ({"dt_min": "small"}, "dt_min is 'small'; wanted a number"),
        ({"init": "legs"}, "init is 'legs', but a layer of the kind 'lru' has no such setting; it has r_min, r_max"),
    ],
)
def test_wrong_settings_are_named(values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(values)
