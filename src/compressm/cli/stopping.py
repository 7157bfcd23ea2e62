"""Ctrl-C while training: finish the step, save, leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class StopRequest:
    """While entered, the first SIGINT only sets `requested`; a second one interrupts at once.

    Outside the main thread, where Python delivers no signals, nothing is changed.
    """

    def __init__(self) -> None:
        """Nothing is requested yet."""
        self.requested = False
        self._before: signal.Handlers | int | object = None

    def __enter__(self) -> StopRequest:
        """Take over SIGINT."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give SIGINT back."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C takes effect at the end of the block; a second one at once.

    For imports of compiled modules: some of them drop an exception that reaches them, and the program would go on.
    """
    with StopRequest() as stop:
        yield
    if stop.requested:
        raise KeyboardInterrupt


def import_torch() -> None:
    """Import PyTorch, which takes seconds, so that Ctrl-C meanwhile is not lost."""
    with held_back():
        import torch  # noqa: F401  # pyright: ignore[reportUnusedImport]
