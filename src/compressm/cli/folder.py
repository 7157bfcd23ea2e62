"""The run folder: what lies where."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from compressm.cli.config import RunConfig
from compressm.cli.note import RunNote
from compressm.cli.parsing import Tree, build, flatten
from compressm.cli.recipes import read_yaml
from compressm.errors import CheckpointError, ConfigError

_CHECKPOINT = "step-"

T = TypeVar("T")


@dataclass(frozen=True)
class RunFolder:
    """config.yaml, metrics.jsonl, checkpoints/step-*, tensorboard/, responses/, pictures/ and report.md."""

    path: Path

    @classmethod
    def create(cls, path: Path | None, config: RunConfig, note: RunNote) -> RunFolder:
        """A new folder with `config` in it, made whole or not at all; by default runs/DATASET-DATE-TIME.

        Raises:
            ConfigError: the folder exists and is not empty.
        """
        if path is None:
            name = Path(config.data.path).stem if config.data.path else config.data.dataset.replace(":", "-")
            path = _free(Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise _not_empty(path)
        staging: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            staging.chmod(0o755)
            write_yaml(staging / "config.yaml", flatten(config))
            note.write(staging)
            os.replace(staging, path)
        except OSError as error:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            if path.is_dir() and any(path.iterdir()):  # another run was quicker
                raise _not_empty(path) from error
            raise ConfigError(
                f"The run folder {path} cannot be made: {error.strerror or error}. Free space, or choose another place "
                f"with --run."
            ) from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder.

        Raises:
            ConfigError: there is no run in `path`.
        """
        folder = cls(path)
        if folder.is_run:
            return folder
        free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        what = "it has no config.yaml and run.json" if path.is_dir() else "it is a file"
        raise ConfigError(
            f"{path} is not a run folder: {what if path.exists() else 'there is no such folder'}. Give the folder that "
            f"a run has made{f', or start a run there with --run {path}' if free else ''}."
        )

    @property
    def is_run(self) -> bool:
        """Whether a run was started here."""
        return self.config_file.is_file() and (self.path / "run.json").is_file()

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The log of the run."""
        return self.path / "metrics.jsonl"

    @property
    def pictures(self) -> Path:
        """The folder of pictures."""
        return self.path / "pictures"

    @property
    def report(self) -> Path:
        """The report for people."""
        return self.path / "report.md"

    @property
    def how_to_go_on(self) -> str:
        """The command that goes on with this run."""
        return f"Go on with: compressm train --resume {shlex.quote(str(self.path))}"

    def config(self) -> RunConfig:
        """The configuration that the run was started with."""
        content = read_yaml(self.config_file)
        try:
            return build(RunConfig, content)
        except ConfigError as error:
            raise ConfigError(f"{self.config_file}: {error}") from error

    def note(self) -> RunNote:
        """What was recorded at the start beside the configuration."""
        return RunNote.read(self.path)

    def response_file(self, step: int) -> Path:
        """Where the impulse responses before and after the cut of a step are kept."""
        return self.path / "responses" / f"step-{step:08d}.npz"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.path / "checkpoints" / f"{_CHECKPOINT}{step:08d}"

    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob(f"{_CHECKPOINT}" + "[0-9]" * 8))

    def set_aside(self, damaged: Path) -> None:
        """Rename a damaged checkpoint, so that it no longer counts among those that are kept."""
        damaged.rename(_free(damaged.with_name(f"damaged-{damaged.name}")))

    def prune(self, keep: int) -> None:
        """Delete all but the `keep` newest checkpoints."""
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)


def find_checkpoints(path: Path) -> list[Path]:
    """The checkpoint at `path` alone, or all of them, newest first, where `path` is a run folder.

    Raises:
        CheckpointError: there is none.
    """
    if (path / "structure.json").is_file():
        return [path]
    found = RunFolder(path).checkpoints()
    if not found:
        raise CheckpointError(f"{path} is neither a checkpoint (structure.json) nor a run folder with checkpoints.")
    return found[::-1]


def first_sound(candidates: Sequence[Path], load: Callable[[Path], T], warn: Callable[[str], None]) -> tuple[T, Path]:
    """What `load` makes of the first checkpoint that it can read, and that checkpoint; it warns of those before it.

    Raises:
        CheckpointError: none of them can be read; the message names them all.
    """
    errors: list[tuple[Path, CheckpointError]] = []
    for path in candidates:
        try:
            loaded = load(path)
        except CheckpointError as error:
            errors.append((path, error))
            continue
        for damaged, reason in errors:
            warn(f"The checkpoint {damaged} cannot be used: {reason} The older {path} is taken instead.")
        return loaded, path
    if len(errors) == 1:
        raise errors[0][1]
    listed = " ".join(f"{path}: {error}" for path, error in errors)
    raise CheckpointError(f"None of the {len(errors)} checkpoints can be used. {listed}") from errors[0][1]


def require_place(option: str, path: Path) -> None:
    """Raise ConfigError unless a file or folder can be made at `path`, with the folders that it lies in."""
    above = next((folder for folder in path.absolute().parents if folder.exists()), path)
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ConfigError(f"{option} {path} cannot be made: {above} is no folder that may be written. Choose another.")


def write_yaml(path: Path, tree: Tree) -> None:
    """Write plain mappings as YAML."""
    import yaml

    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def _not_empty(path: Path) -> ConfigError:
    what = "exists and is not empty" if path.is_dir() else "is a file"
    remedy = f"continue it with --resume {path}, or " if RunFolder(path).is_run else ""
    return ConfigError(f"The run folder {path} {what}; {remedy}choose another one with --run.")


def _free(path: Path) -> Path:
    """`path`, or with the first free number after it."""
    candidates = (path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 1000)))
    return next(candidate for candidate in candidates if not candidate.exists())
