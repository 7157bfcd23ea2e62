"""Where text and progress bars go: results to standard output, everything on the way to standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from compressm.data.download import Progress as DownloadProgress

T = TypeVar("T")


class Terminal:
    """The two consoles of one command. `quiet` leaves results and errors only."""

    def __init__(self, quiet: bool = False) -> None:
        """Write to the process's standard streams."""
        self.quiet = quiet
        self.out = Console(highlight=False, markup=False, emoji=False)  # brackets and colons in names mean nothing
        self.err = Console(stderr=True, highlight=False, markup=False, emoji=False)

    @property
    def shows_progress(self) -> bool:
        """Whether progress bars are drawn: on a terminal only, and not when quiet."""
        return self.err.is_terminal and not self.quiet

    def say(self, text: str) -> None:
        """A line on what is being done."""
        if not self.quiet:
            self.err.print(text, soft_wrap=True)

    def insist(self, text: str) -> None:
        """A line that is shown also when quiet."""
        self.err.print(text, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A warning, which is shown also when quiet."""
        self.insist(f"Warning: {text}")

    @contextmanager
    def downloads(self) -> Iterator[Callable[[str], DownloadProgress]]:
        """Bars for downloads: what is given makes a callback for each file's name."""
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.err, disable=not self.shows_progress) as progress:

            def start(name: str) -> DownloadProgress:
                task = progress.add_task(f"Downloading {name}", total=None)
                return lambda received, announced: progress.update(task, completed=received, total=announced)

            yield start

    def track(self, items: Iterable[T], total: int, description: str) -> Iterator[T]:
        """`items`, with a bar."""
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.err, disable=not self.shows_progress, transient=True) as progress:
            yield from progress.track(items, total=total, description=description)

    @contextmanager
    def training(self, total: int, completed: int) -> Iterator[Callable[[int, str], None]]:
        """A bar for the steps of a run: what is given is called with the steps done and what to show beside them."""
        columns = (
            TextColumn("Training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=self.err, disable=not self.shows_progress) as progress:
            task = progress.add_task("", total=total, completed=completed)
            yield lambda step, text: progress.update(task, completed=step, description=text)
