"""The helper in loops that Accelerate prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from compressm.errors import MissingDependencyError

accelerate = pytest.importorskip("accelerate", reason="needs Accelerate: pip install 'compressm[accelerate]'")

from compressm.training.integrations.accelerate import AcceleratedCompressor  # noqa: E402
from compressm.training.integrations.packages import require  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Run:
    """A prepared run; `several` trains with two optimizers, `awkward` has frozen and tied parameters and an average."""

    def __init__(
        self, kit: Any, several: bool = False, awkward: bool = False, log: Path | None = None, **arguments: Any
    ) -> None:
        if log is not None:
            arguments |= {"log_with": "tensorboard", "project_dir": log}
        self.accelerator = accelerate.Accelerator(cpu=True, **arguments)
        if log is not None:
            self.accelerator.init_trackers("board")
        model, sampler = kit.awkward() if awkward else kit.model(), torch.Generator()
        groups = kit.groups(model)
        optimizers: list[Any] = [torch.optim.AdamW(groups, lr=1e-2)]
        if several:
            optimizers = [torch.optim.Adam(groups[:1]), torch.optim.SGD(groups[1:], lr=1e-2, momentum=0.9)]
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8)) if awkward else None
        if self.average is not None:
            self.accelerator.register_for_checkpointing(self.average)
        schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 20) for o in optimizers]
        loader = DataLoader(kit.data(120), batch_size=6, shuffle=True, generator=sampler.manual_seed(7))
        prepared = self.accelerator.prepare(model, loader, *optimizers, *schedulers)
        self.model, self.loader, rest = prepared[0], prepared[1], prepared[2:]
        self.optimizers, self.schedulers = list(rest[: len(optimizers)]), list(rest[len(optimizers) :])
        self.compressor = AcceleratedCompressor(
            self.accelerator,
            self.model,
            self.optimizers,
            self.schedulers,
            mirrors=[] if self.average is None else [self.average],
            **kit.cuts,
        )

    def train(self, start: int, stop: int) -> None:
        for number, (x, y) in enumerate(self.loader):
            if not start <= number < stop:
                continue
            with self.accelerator.accumulate(self.model):
                with self.accelerator.autocast():
                    loss = nn.functional.cross_entropy(self.model(x), y)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 0.5)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                for scheduler in self.schedulers:
                    scheduler.step()
            if self.average is not None and self.accelerator.sync_gradients:
                self.average.update_parameters(self.model)
            self.compressor.step()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizers": [optimizer.optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "compressor": self.compressor.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 12),
    "two optimizers": ({"several": True}, 12),
    "accumulation": ({"gradient_accumulation_steps": 2}, 20),
    "everything": (
        {"several": True, "awkward": True, "gradient_accumulation_steps": 2, "mixed_precision": "bf16"},
        20,
    ),
    "compiled": ({"dynamo_backend": "eager"}, 9),
}


@pytest.fixture(autouse=True)
def fresh() -> Any:
    yield
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(kit: Any, tmp_path: Path, case: str, fresh: None) -> None:
    arguments, batches = CASES[case]
    whole = Run(kit, **arguments)
    whole.train(0, batches)
    assert [event.step for event in whole.compressor.compressor.history] == [3, 7]
    wanted, rate = whole.state(), 2 if "gradient_accumulation_steps" in arguments else 1
    for at in (2, 5, 8) if case == "plain" else (5,):
        first = Run(kit, **arguments)
        first.train(0, at * rate)
        first.accelerator.save_state(str(tmp_path / str(at)))
        torch.manual_seed(99)
        again = Run(kit, **arguments)
        assert kit.orders(again.model) == [12, 12]
        again.accelerator.load_state(str(tmp_path / str(at)))
        assert kit.unequal(again.state(), first.state()) == [], at
        again.train(at * rate, batches)
        assert kit.unequal(again.state(), wanted) == [], at
        again.accelerator.free_memory()


def test_numbers_and_pictures_go_to_the_trackers(kit: Any, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("matplotlib")
    run = Run(kit, log=tmp_path)
    run.train(0, 9)
    run.compressor.finish()
    run.accelerator.end_training()
    events = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    scalars = events.Scalars("compressm/order/blocks.0.ssm")
    assert [(e.step, e.value) for e in scalars] == [(0, 12), (3, 8), (7, 5)]
    assert [e.step for e in events.Scalars("compressm/total_cut_seconds")] == [9]
    assert [e.step for e in events.Images("compressm/hankel_singular_values")] == [3, 7]
    assert not run.accelerator.unwrap_model(run.model)._load_state_dict_pre_hooks


def test_another_length_replaces_the_schedule(
    kit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    for total, start, stop in ((10, 0, 6), (40, 6, 20)):
        monkeypatch.setattr(kit, "cuts", {"total_steps": total, "settings": "white"})
        run = Run(kit)
        if start:
            run.accelerator.load_state(str(tmp_path / "state"))
        run.train(start, stop)
        run.accelerator.save_state(str(tmp_path / "state"))
        steps.append([event.step for event in run.compressor.compressor.history])
    assert steps == [[1, 2, 3, 4], [1, 2, 3, 4, 8, 12, 16]]
    assert "is replaced by Window(start=0, end=16, cuts=4)" in caplog.text


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"Nothing is not installed: pip install 'compressm\[some\]'"):
        require("Nothing", "some", "no_such_package", "nor_this.one")
