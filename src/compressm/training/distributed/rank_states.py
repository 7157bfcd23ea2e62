"""A compressor's state with what each process has for itself: its captures and its random states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressm.surgery.random_state import RandomState
from compressm.training.compressor import InTrainingCompressor


class RankStates:
    """Stands in for the compressor in `save_checkpoint` and `load_checkpoint` on many processes.

    Each process has captures and random states of its own, which rank 0 alone cannot save. On all processes::

        states = RankStates.collect(compressor)
        if compressor.processes.rank == 0:
            save_checkpoint(path, model, optimizer=optimizer, compressor=states, rng=False)

        load_checkpoint(path, model, optimizer=optimizer, compressor=RankStates(compressor), rng=False)

    With as many processes as saved it, a run goes on bit for bit. With another number the captures are dealt out to
    those there are, so that the next cut sees all of them, and the random states of processes that were not there
    before stay as they are. A single process loads its random states in the usual way, where it saved them.
    """

    def __init__(self, compressor: InTrainingCompressor, collected: Mapping[str, Any] | None = None) -> None:
        self._compressor, self._collected = compressor, collected

    @classmethod
    def collect(cls, compressor: InTrainingCompressor) -> RankStates:
        """The state of now, with that of the other processes; called by all of them."""
        state = compressor.state_dict()
        probe = state["probe"]
        own = {
            "calibration": state["calibration"],
            "random": RandomState.capture().state_dict(),
            "probe_random": None if probe is None else probe["snapshot"]["random"],
        }
        ranks = compressor.processes.gather(own)
        return cls(compressor, state if len(ranks) == 1 else {**state, "ranks": ranks})

    def state_dict(self) -> dict[str, Any]:
        """What was collected, else the compressor's own state."""
        return self._compressor.state_dict() if self._collected is None else dict(self._collected)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over this process's part of a state that was collected, or a single process's state."""
        ranks = state.get("ranks")
        if ranks is None:
            self._compressor.load_state_dict(state)
            return
        processes = self._compressor.processes
        rank, size = processes.rank, processes.size
        own = {**state, "calibration": _merged([part["calibration"] for part in ranks[rank::size]], size / len(ranks))}
        if rank < len(ranks):
            if own["probe"] is not None and ranks[rank]["probe_random"] is not None:
                snapshot = {**own["probe"]["snapshot"], "random": ranks[rank]["probe_random"]}
                own["probe"] = {**own["probe"], "snapshot": snapshot}
            self._compressor.load_state_dict(own)
            RandomState.from_state_dict(ranks[rank]["random"]).restore()
        else:
            self._compressor.load_state_dict(own)


def _merged(parts: list[dict[str, Any]], scale: float) -> dict[str, Any]:
    """The captures of several processes as those of one, gradients times `scale`.

    A process captures gradients of its own loss, of which the loss of all is the mean.
    """
    merged: dict[str, Any] = {}
    for part in parts:
        for name, capture in part.items():
            into = merged.setdefault(name, {"inputs": [], "gradients": []})
            into["inputs"].extend(capture["inputs"])
            into["gradients"].extend([gradient * scale, mask] for gradient, mask in capture["gradients"])
    return merged
