"""The Lightning callback in real trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from compressm.errors import ConfigError
from compressm.layers import LRU
from compressm.reduction.criteria import FixedOrder
from compressm.training import At, Cut, Guard

pl = pytest.importorskip("lightning.pytorch", reason="needs Lightning: pip install 'compressm[lightning]'")

from compressm.training.integrations.lightning import CompressionCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Module(pl.LightningModule):
    """The small model under AdamW with a schedule; `fail_at` stands for a kill."""

    def __init__(self, model: nn.Module, fail_at: int | None = None) -> None:
        super().__init__()
        self.net, self.fail_at, self.groups = model, fail_at, None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.global_step == self.fail_at:
            raise RuntimeError("killed")
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    validation_step = test_step = predict_step = lambda self, batch, batch_idx: self.net(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class TwoOptimizers(Module):
    """Manual optimization: every batch steps both optimizers."""

    def __init__(self, model: nn.Module, fail_at: int | None = None) -> None:
        super().__init__(model, fail_at)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        ssm = [p for m in self.modules() if isinstance(m, LRU) for p in m.parameters()]
        rest = [p for p in self.parameters() if all(p is not q for q in ssm)]
        return torch.optim.Adam(ssm, lr=1e-2), torch.optim.SGD(rest, lr=1e-2, momentum=0.9)


class Everything(Module):
    """Two parameter groups; the model is `Kit.awkward`."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.groups(self), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


def averaging() -> Any:
    return pl.callbacks.EMAWeightAveraging(decay=0.8)


def trainer(folder: Path, callback: Any, *more: Any, **arguments: Any) -> Any:
    if arguments.pop("averaging", False):
        more = (*more, averaging())
    values = {"max_epochs": 3, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saver = pl.callbacks.ModelCheckpoint(folder, save_last=True)
    return pl.Trainer(accelerator="cpu", callbacks=[callback, *more, saver], **(values | arguments))


def fit(trainer: Any, module: Any, data: Any, checkpoint: Path | None = None) -> None:
    trainer.fit(
        module, DataLoader(data, batch_size=6, shuffle=True), DataLoader(data, batch_size=12), ckpt_path=checkpoint
    )


def state(trainer: Any, module: Any) -> dict[str, Any]:
    averages = [c._average_model.state_dict() for c in trainer.callbacks if isinstance(c, pl.callbacks.WeightAveraging)]
    return {
        "averages": averages,
        "model": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "compressor": next(c for c in trainer.callbacks if isinstance(c, CompressionCallback)).compressor.state_dict(),
    }


class Counting(Module):
    """The length of the run is asked for where the optimizer is made, which opens the data."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


CASES: dict[str, tuple[type[Module], dict[str, Any], int]] = {
    "plain": (Module, {}, 9),
    "data opened early": (Counting, {}, 9),
    "two optimizers": (TwoOptimizers, {}, 18),
    "accumulation and clipping": (Module, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "max_epochs": 5}, 9),
    "everything": (
        Everything,
        {
            "precision": "bf16-mixed",
            "accumulate_grad_batches": 2,
            "gradient_clip_val": 0.5,
            "averaging": True,
            "max_epochs": 5,
        },
        9,
    ),
    "bf16": (Module, {"precision": "bf16-mixed", "gradient_clip_val": 0.5}, 6),
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(kit: Any, tmp_path: Path, case: str) -> None:
    kind, arguments, fail_at = CASES[case]
    ends = []

    def make(failing: int | None = None) -> Module:
        module = kind(kit.awkward() if kind is Everything else kit.model(), failing)
        module.groups = kit.groups
        return module

    for name, failing in (("whole", None), ("killed", fail_at)):
        torch.manual_seed(0)
        module, run = make(failing), trainer(tmp_path / name, CompressionCallback(**kit.cuts), **arguments)
        if failing is None:
            fit(run, module, kit.data())
        else:
            with pytest.raises(RuntimeError, match="killed"):
                fit(run, module, kit.data())
            assert kit.orders(module) in ([8, 8], [5, 5])
            torch.manual_seed(99)
            module = make()
            run = trainer(tmp_path / name, CompressionCallback(**kit.cuts), **arguments)
            fit(run, module, kit.data(), tmp_path / name / "last.ckpt")
        ends.append(state(run, module))
        assert kit.orders(module) == [5, 5]
    assert kit.unequal(*ends) == []
    assert [event["step"] for event in ends[0]["compressor"]["history"]["events"]] == [3, 7]


def test_a_pending_probe_of_the_guard_survives(kit: Any, tmp_path: Path) -> None:
    def options(after: float) -> dict[str, Any]:
        values = iter([1.0, after])
        guard = Guard(lambda: next(values), allowed=0.1, higher_is_better=True, probe_after=4)
        return {"schedule": At((3,)), "criteria": [FixedOrder(5)], "guard": guard}

    module, run = Module(kit.model(), fail_at=6), trainer(tmp_path, CompressionCallback(**options(0.0)))
    with pytest.raises(RuntimeError, match="killed"):
        fit(run, module, kit.data())
    assert kit.orders(module) == [5, 5]
    module, callback = Module(kit.model()), CompressionCallback(**options(0.0))
    callback._options["guard"].metric()
    fit(trainer(tmp_path, callback), module, kit.data(), tmp_path / "last.ckpt")
    assert kit.orders(module) == [12, 12]
    assert callback.compressor is not None
    assert callback.compressor.history[0].kind == "rolled_back"


def test_cut_checkpoints_are_tested_on_a_full_size_model(kit: Any, tmp_path: Path) -> None:
    cut, run = Module(kit.model()), trainer(tmp_path, CompressionCallback(**kit.cuts))
    fit(run, cut, kit.data())
    for stage in ("validate", "test", "predict"):
        whole = Module(kit.model())
        go = getattr(trainer(tmp_path, CompressionCallback()), stage)
        go(whole, DataLoader(kit.data(), batch_size=6), ckpt_path=tmp_path / "last.ckpt")
        assert kit.unequal(whole.state_dict(), cut.state_dict()) == []
        assert not whole._load_state_dict_pre_hooks


@pytest.mark.parametrize("arguments", [{"fast_dev_run": True}, {"limit_train_batches": 2}, {"max_steps": 9}])
def test_a_run_too_short_for_cuts_is_not_cut(
    kit: Any, tmp_path: Path, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    module, callback = Module(kit.model()), CompressionCallback()
    fit(trainer(tmp_path, callback, **arguments), module, kit.data())
    assert kit.orders(module) == [12, 12]
    assert "too short for the cuts of the preset 'default'" in caplog.text
    assert callback.compressor is not None
    assert len(callback.compressor.history) == 0


def test_a_run_that_goes_on_for_longer_keeps_its_schedule(kit: Any, tmp_path: Path) -> None:
    def go_on(epochs: int, checkpoint: Path | None = None, **options: Any) -> list[int]:
        callback = CompressionCallback(settings="white", **options)
        folder = tmp_path / f"{epochs} {options}"
        fit(trainer(folder, callback, max_epochs=epochs), Module(kit.model()), kit.data(), checkpoint)
        assert callback.compressor is not None
        return [event.step for event in callback.compressor.history]

    assert go_on(3) == [1, 2, 3, 4]  # of 12 steps
    short = tmp_path / "3 {}" / "last.ckpt"
    assert go_on(5, short) == [1, 2, 3, 4]
    assert go_on(5, short, total_steps=50) == [1, 2, 3, 4, 15, 20]  # 5, 10, 15, 20, of which the first are past
    assert go_on(1) == []
    assert go_on(5, tmp_path / "1 {}" / "last.ckpt") == [6, 8]  # none before, of 20 steps


def test_the_trainers_length_gives_the_schedule(kit: Any, tmp_path: Path) -> None:
    callback = CompressionCallback(settings="white")
    fit(trainer(tmp_path, callback, max_epochs=5), Module(kit.model()), kit.data())
    assert callback.compressor is not None
    assert [event.step for event in callback.compressor.history] == [2, 4, 6, 8]  # of 20 steps
    with pytest.raises(ConfigError, match="schedule="):
        fit(trainer(tmp_path, CompressionCallback(), max_epochs=-1), Module(kit.model()), kit.data())


def test_numbers_and_pictures_go_to_the_trainers_loggers(kit: Any, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loggers = [pl.loggers.TensorBoardLogger(tmp_path, "board"), pl.loggers.CSVLogger(tmp_path, "table")]
    callback = CompressionCallback(**kit.cuts)
    fit(trainer(tmp_path, callback, logger=loggers, log_every_n_steps=1), Module(kit.model()), kit.data())
    events = accumulator.EventAccumulator(loggers[0].log_dir).Reload()
    for layer in ("net.blocks.0.ssm", "net.blocks.1.ssm"):
        assert [(e.step, e.value) for e in events.Scalars(f"compressm/order/{layer}")] == [(0, 12), (2, 8), (6, 5)]
        reports = [r for cut in callback.compressor.history.cuts for r in cut.report.layers if r.name == layer]
        logged = [e.value for e in events.Scalars(f"compressm/discarded/{layer}")]
        assert logged == pytest.approx([r.discarded for r in reports])
    pytest.importorskip("matplotlib")
    assert [e.step for e in events.Images("compressm/hankel_singular_values")] == [2, 6]
    table = (Path(loggers[1].log_dir) / "metrics.csv").read_text()
    assert "compressm/cut_seconds" in table


def test_evaluation_is_not_captured_and_hooks_go(kit: Any, tmp_path: Path) -> None:
    seen: list[Cut] = []
    module, callback = Module(kit.model()), CompressionCallback(**kit.cuts, on_cut=seen.append)
    fit(trainer(tmp_path, callback, val_check_interval=1), module, kit.data())
    assert [cut.step for cut in seen] == [3, 7]
    assert all(layer.controllability == "data" for cut in seen for layer in cut.report.layers)
    assert not any(m._forward_hooks for m in module.modules())


def test_the_other_package_works_too(kit: Any, tmp_path: Path) -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Other(other.LightningModule):
        training_step, configure_optimizers = Module.training_step, Module.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.net, self.fail_at = kit.model(), None

    module, callback = Other(), CompressionCallback(**kit.cuts)
    run = other.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, callbacks=[callback], enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    run.fit(module, DataLoader(kit.data(), batch_size=6))
    assert kit.orders(module) == [5, 5]
