"""The callback in real Hugging Face trainers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset

from compressm import load_checkpoint, save_checkpoint
from compressm.errors import CheckpointError, ConfigError, SurgeryError
from compressm.reduction.criteria import FixedOrder
from compressm.training import At, Guard

transformers = pytest.importorskip("transformers", reason="needs Transformers: pip install 'compressm[hf]'")
pytest.importorskip("accelerate", reason="needs Accelerate: pip install 'compressm[hf]'")

from compressm.training.integrations.huggingface import CompressionCallback  # noqa: E402
from compressm.training.integrations.pretrained import KEY, shrink_to_config  # noqa: E402
from compressm.training.integrations.text import from_json_values, to_json_values  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Config(transformers.PretrainedConfig):
    model_type = "toy"


@pytest.fixture
def build(kit: Any) -> Any:
    class Pretrained(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.net = kit.model()
            self.post_init()
            shrink_to_config(self, config)

        def _init_weights(self, module: nn.Module) -> None:
            pass

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            scores = self.net(x)
            return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}

    return Pretrained


class Items(Dataset[dict[str, Tensor]]):
    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = self.data[index]
        return {"x": x, "labels": y}


class Kill(transformers.TrainerCallback):
    """Stands for a kill in the step after `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("killed")


def make(folder: Path, model: nn.Module, data: Any, *more: Any, **arguments: Any) -> Any:
    values: dict[str, Any] = {
        "max_steps": 10, "per_device_train_batch_size": 6, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True,
        "save_steps": 1, "logging_steps": 5, "disable_tqdm": True, "seed": 3, "save_total_limit": 2,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(str(folder), **(values | arguments)),
        train_dataset=Items(data),
        eval_dataset=Items(data),
        callbacks=list(more),
    )


def compressed(trainer: Any, **options: Any) -> CompressionCallback:
    callback = CompressionCallback(trainer, **options)
    trainer.add_callback(callback)
    return callback


class Averaging(transformers.TrainerCallback):
    """An average of the weights, in files beside the checkpoints."""

    def __init__(self, model: nn.Module) -> None:
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.average.update_parameters(kwargs["model"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        save_checkpoint(Path(args.output_dir) / f"average-{state.global_step}", self.average)


def state(trainer: Any, callback: CompressionCallback) -> dict[str, Any]:
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "compressor": callback.compressor.state_dict(),
    }


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation and clipping": {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
    "bf16": {"bf16": True, "lr_scheduler_type": "cosine"},
}


@pytest.mark.parametrize(
    ("case", "killed_at"), [("plain", 2), ("plain", 8), ("accumulation and clipping", 5), ("bf16", 5)]
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    kit: Any, build: Any, tmp_path: Path, case: str, killed_at: int
) -> None:
    data = kit.data()
    whole = make(tmp_path / "whole", build(Config()), data, save_steps=100, **CASES[case])
    one = compressed(whole, **kit.cuts)
    whole.train()
    assert kit.orders(whole.model) == [5, 5]
    killed = make(tmp_path / "killed", build(Config()), data, Kill(killed_at), **CASES[case])
    compressed(killed, **kit.cuts)
    with pytest.raises(RuntimeError, match="killed"):
        killed.train()
    again = make(tmp_path / "killed", build(Config()), data, **CASES[case])
    other = compressed(again, **kit.cuts)
    assert kit.orders(again.model) == [12, 12]
    again.train(resume_from_checkpoint=True)
    assert kit.unequal(state(whole, one), state(again, other)) == []
    assert [event.step for event in other.compressor.history] == [3, 7]


def test_everything_together(kit: Any, build: Any, tmp_path: Path) -> None:
    """Parameter groups, a schedule, accumulation, clipping, bf16, an average, frozen parameters."""

    def run(folder: Path, *more: Any, go_on_at: int | None = None) -> tuple[Any, CompressionCallback, Averaging]:
        model = build(Config())
        model.net.encoder.weight.requires_grad_(False)
        trainer = make(
            folder, model, kit.data(), *more, gradient_accumulation_steps=2, max_grad_norm=0.5, bf16=True,
            lr_scheduler_type="cosine",
        )  # fmt: skip
        trainer.optimizer = torch.optim.AdamW(kit.groups(model), lr=1e-2)
        averaging = Averaging(model)
        callback = compressed(trainer, mirrors=[averaging.average], **kit.cuts)
        trainer.add_callback(averaging)
        if go_on_at is not None:
            load_checkpoint(folder / f"average-{go_on_at}", averaging.average)
        return trainer, callback, averaging

    whole = run(tmp_path / "whole")
    whole[0].train()
    killed = run(tmp_path / "killed", Kill(5))
    with pytest.raises(RuntimeError, match="killed"):
        killed[0].train()
    again = run(tmp_path / "killed", go_on_at=5)
    again[0].train(resume_from_checkpoint=True)
    assert kit.orders(whole[0].model) == kit.orders(whole[2].average) == [5, 5]
    assert kit.unequal(state(*whole[:2]), state(*again[:2])) == []
    assert kit.unequal(whole[2].average.state_dict(), again[2].average.state_dict()) == []


def test_tied_layers_that_the_class_declares(kit: Any, build: Any, tmp_path: Path) -> None:
    """Two layers with the same parameters, and a frozen encoder."""
    names = [name for name, _ in kit.model().blocks[0].ssm.named_parameters()]

    class Tied(build):
        _tied_weights_keys = {f"net.blocks.1.ssm.{name}": f"net.blocks.0.ssm.{name}" for name in names}  # noqa: RUF012

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.net = kit.awkward()
            shrink_to_config(self, config)

    def run(folder: Path, *more: Any) -> tuple[Any, CompressionCallback]:
        trainer = make(folder, Tied(Config()), kit.data(), *more)
        return trainer, compressed(trainer, **kit.cuts)

    whole = run(tmp_path / "whole")
    whole[0].train()
    killed = run(tmp_path / "killed", Kill(5))
    with pytest.raises(RuntimeError, match="killed"):
        killed[0].train()
    again = run(tmp_path / "killed")
    again[0].train(resume_from_checkpoint=True)
    blocks = again[0].model.net.blocks
    assert kit.orders(again[0].model) == kit.orders(whole[0].model) != [12, 12]
    assert all(getattr(blocks[0].ssm, name) is getattr(blocks[1].ssm, name) for name in names)
    assert kit.unequal(state(*whole), state(*again)) == []


@pytest.mark.slow
def test_a_compiled_model_is_cut_and_trained_on(kit: Any, build: Any, tmp_path: Path) -> None:
    """Against the same run uncompiled; dropout would draw other numbers."""
    runs = []
    for compiled in (False, True):
        model = build(Config())
        for block in model.net.blocks:
            block.dropout = 0.0
        options = {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
        trainer = make(tmp_path / str(compiled), model, kit.data(), **options)
        callback = compressed(trainer, **kit.cuts)
        trainer.train()
        assert callback.compressor is not None
        x = torch.randn(4, 16, 2, generator=torch.Generator().manual_seed(0))
        scores = model.eval().net(x).detach()  # not weights: phases of states are free
        runs.append((kit.orders(model), [event.step for event in callback.compressor.history], scores))
    assert runs[0][:2] == runs[1][:2] == ([5, 5], [3, 7])
    assert torch.allclose(runs[0][2], runs[1][2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("steps", "said"), [(3, True), (10, False)])
def test_a_run_too_short_for_cuts_is_not_cut(
    kit: Any, build: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: int, said: bool
) -> None:
    trainer = make(tmp_path, build(Config()), kit.data(), max_steps=steps, save_strategy="no")
    callback = compressed(trainer, settings="white")
    trainer.train()
    assert callback.compressor is not None
    assert len(callback.compressor.history) == (0 if said else 4)
    assert ("too short for the cuts of the preset 'white'" in caplog.text) is said


def test_a_run_that_goes_on_for_longer_keeps_its_schedule(kit: Any, build: Any, tmp_path: Path) -> None:
    def go_on(steps: int, resume: bool = True, **options: Any) -> list[int]:
        trainer = make(tmp_path, build(Config()), kit.data(), max_steps=steps, save_steps=steps)
        callback = compressed(trainer, settings="white", **options)
        trainer.train(resume_from_checkpoint=resume)
        assert callback.compressor is not None
        return [event.step for event in callback.compressor.history]

    assert go_on(10, resume=False) == [1, 2, 3, 4]
    assert go_on(12) == [1, 2, 3, 4]
    assert go_on(20, total_steps=40) == [1, 2, 3, 4, 16]  # 4, 8, 12, 16


def test_a_pending_probe_of_the_guard_survives(kit: Any, build: Any, tmp_path: Path) -> None:
    def options() -> dict[str, Any]:
        guard = Guard(lambda: next(values), allowed=0.1, higher_is_better=True, probe_after=4)
        return {"schedule": At((3,)), "criteria": [FixedOrder(5)], "guard": guard}

    values = iter([1.0])
    killed = make(tmp_path, build(Config()), kit.data(), Kill(5))
    compressed(killed, **options())
    with pytest.raises(RuntimeError, match="killed"):
        killed.train()
    values = iter([0.0])
    again = make(tmp_path, build(Config()), kit.data())
    callback = compressed(again, **options())
    again.train(resume_from_checkpoint=True)
    assert kit.orders(again.model) == [12, 12]
    assert callback.compressor is not None
    assert callback.compressor.history[0].kind == "rolled_back"


def test_sizes_in_the_config_let_from_pretrained_build_the_cut_model(kit: Any, build: Any, tmp_path: Path) -> None:
    trainer = make(tmp_path, build(Config()), kit.data())
    compressed(trainer, schedule=At((3,)), criteria=[FixedOrder(5)], settings="white")
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    again = build.from_pretrained(tmp_path / "saved")
    assert kit.orders(again) == [5, 5]
    assert kit.unequal(again.state_dict(), trainer.model.state_dict()) == []
    x, y = kit.data()[:]
    trainer.model.eval()
    assert torch.equal(again(x, y)["logits"], trainer.model(x, y)["logits"])
    wrong = Config(**{KEY: {"net.blocks.9.ssm": {}}})
    with pytest.raises(CheckpointError, match=r"net\.blocks\.9\.ssm"):
        build(wrong)
    shapes = {"net.blocks.0.ssm": {"order": 20, "shapes": {"nu_log": [20]}}}
    with pytest.raises(CheckpointError, match=r"\(20,\) for 'nu_log'"):
        build(Config(**{KEY: shapes}))


def test_the_best_model_is_loaded_whatever_its_size(kit: Any, build: Any, tmp_path: Path) -> None:
    worse = iter([0.5, 1.0, 2.0, 3.0, 4.0])
    trainer = make(
        tmp_path, build(Config()), kit.data(), load_best_model_at_end=True, eval_strategy="steps", eval_steps=2,
        save_steps=2, metric_for_best_model="score", greater_is_better=False, save_total_limit=3,
    )  # fmt: skip
    trainer.compute_metrics = lambda _: {"score": next(worse)}
    compressed(trainer, **kit.cuts)
    trainer.train()
    assert kit.orders(trainer.model) == [12, 12]
    assert getattr(trainer.model.config, KEY)["net.blocks.0.ssm"]["order"] == 12


def test_numbers_and_pictures_go_to_the_trainers_loggers(
    kit: Any, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = make(tmp_path, build(Config()), kit.data(), report_to="tensorboard")
    compressed(trainer, **kit.cuts)
    trainer.train()
    name = "compressm/order/net.blocks.0.ssm"
    assert [(e["step"], e[name]) for e in trainer.state.log_history if name in e] == [(0, 12), (3, 8), (7, 5)]
    assert any("compressm/total_cut_seconds" in e for e in trainer.state.log_history)
    events = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    assert [(e.step, e.value) for e in events.Scalars(f"train/{name}")] == [(0, 12), (3, 8), (7, 5)]
    assert [e.step for e in events.Images("compressm/hankel_singular_values")] == [3, 7]


def test_another_run_of_the_same_trainer_starts_anew(kit: Any, build: Any, tmp_path: Path) -> None:
    trainer = make(tmp_path, build(Config()), kit.data(), save_strategy="no")
    callback = compressed(trainer, settings="white")
    trainer.train()
    first = callback.compressor
    assert first is not None
    assert [event.step for event in first.history] == [1, 2, 3, 4]  # of 10 steps
    trainer.train()
    assert callback.compressor is not first
    assert callback.compressor is not None
    assert callback.compressor.steps == 10


@pytest.mark.parametrize("end", ["close", "train"])
def test_a_run_that_raised_leaves_nothing_once_it_is_ended(kit: Any, build: Any, tmp_path: Path, end: str) -> None:
    killer = Kill(2)  # inside of what is captured for the cut at 3
    trainer = make(tmp_path, build(Config()), kit.data(), killer, save_strategy="no")
    callback = compressed(trainer, **kit.cuts)
    ssm = trainer.model.net.blocks[0].ssm
    with pytest.raises(RuntimeError, match="killed"):
        trainer.train()
    assert len(ssm._forward_hooks) == 1
    first = callback.compressor
    assert first is not None
    if end == "close":
        callback.close()
        callback.close()
    else:
        killer.step = -1
        trainer.train()
        assert callback.compressor is not first
    assert len(ssm._forward_hooks) == 0
    with pytest.raises(SurgeryError, match="closed"):
        first.step()


def test_a_checkpoint_saved_without_compression(
    kit: Any, build: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, build(Config()), kit.data(), max_steps=4).train()
    again = make(tmp_path, build(Config()), kit.data())
    callback = compressed(again, **kit.cuts)
    with caplog.at_level(logging.WARNING, "compressm"):
        again.train(resume_from_checkpoint=True)
    assert "saved without compression" in caplog.text
    assert callback.compressor is not None
    assert callback.compressor.steps == 6
    assert [event.step for event in callback.compressor.history] == [3]  # counted from the checkpoint
    assert max(kit.orders(again.model)) <= 8


def test_callbacks_made_anew_are_refused(kit: Any, build: Any, tmp_path: Path) -> None:
    trainer = make(tmp_path, build(Config()), kit.data(), restore_callback_states_from_checkpoint=True)
    with pytest.raises(ConfigError, match="restore_callback_states_from_checkpoint"):
        CompressionCallback(trainer)


@pytest.mark.parametrize("damage", [{"data": "!"}, {"tensors": {"a": 3}}, {"tree": [1]}, {"data": ""}])
def test_a_damaged_state_is_refused(damage: dict[str, Any]) -> None:
    values = to_json_values({"a": torch.arange(3), "b": [1, float("nan"), None]})
    again = from_json_values(json.loads(json.dumps(values, allow_nan=False)), "here")
    assert torch.equal(again["a"], torch.arange(3))
    with pytest.raises(CheckpointError, match="here"):
        from_json_values(values | damage, "here")
