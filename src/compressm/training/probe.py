"""A cut that the guard has yet to judge, with all it takes to take it back."""

from __future__ import annotations

from dataclasses import dataclass

from compressm.surgery.snapshot import Snapshot
from compressm.training.history import Cut, Event


@dataclass(frozen=True)
class Probe:
    """The cut, the metric before it, and the state before it of training (`snapshot`) and of the compressor."""

    cut: Cut
    before: float
    snapshot: Snapshot
    events: tuple[Event, ...]
