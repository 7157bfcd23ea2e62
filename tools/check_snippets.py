"""Execute the Python blocks of README.md and docs/, and look up the `compressm` commands in their shell blocks.

All ```` ```python ```` blocks of one page share a namespace and run in a scratch folder, which leaves nothing behind. A
block that is not to run has a comment on the line before its fence: `<!-- not executed: the reason -->`. One that needs
a package that may be absent has `<!-- needs: its module -->` there and runs where that can be imported.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?P<info>.*)$")
SKIP = re.compile(r"<!-- not executed: .+ -->")
NEEDS = re.compile(r"<!-- needs: (?P<module>[\w.]+) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, text and the line of the page where the text begins."""

    language: str
    text: str
    line: int
    skipped: bool


def main(arguments: list[str]) -> int:
    """Run all pages, or those named; 1 where one fails."""
    torch.set_num_threads(1)
    pages = [Path(a).resolve() for a in arguments] or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    failed = [page for page in pages if not run_page(page)]
    print(f"{len(pages)} pages, {len(failed)} failed")
    return 1 if failed else 0


def run_page(page: Path) -> bool:
    """Execute a page's blocks in order; whether all of them worked."""
    name = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
    found = list(blocks(page.read_text(encoding="utf-8")))
    python = [b for b in found if b.language == "python" and not b.skipped]
    problems = [
        f"{name}:{b.line}: {problem}"
        for b in found
        if b.language in ("bash", "sh", "console") and not b.skipped
        for problem in command_problems(b.text)
    ]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"(lightning|transformers|accelerate)\.")  # of those packages alone
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # s5-pytorch, when it is imported
        problem = execute(python, str(name), scratch)
    if problem:
        problems.append(problem)
    if python or problems:
        print(f"{name}: {len(python)} Python blocks in {time.monotonic() - start:.1f} s")
    print("".join(f"{problem}\n" for problem in problems), end="")
    return not problems


def execute(python: list[Block], name: str, folder: str) -> str | None:
    """Run blocks in one namespace inside `folder`; the traceback of the first that fails."""
    module = types.ModuleType("__snippets__")  # dataclasses look their module up in sys.modules
    sys.modules[module.__name__] = module
    before = Path.cwd()
    os.chdir(folder)
    torch.manual_seed(0)
    try:
        for block in python:
            tree = ast.parse(block.text, filename=name)
            ast.increment_lineno(tree, block.line - 1)
            exec(compile(tree, name, "exec"), module.__dict__)
    except Exception:  # noqa: BLE001 - whatever the page's code raises is reported
        return traceback.format_exc()
    finally:
        os.chdir(before)
        del sys.modules[module.__name__]
        forget_accelerators()
    return None


def forget_accelerators() -> None:
    """Put back what Accelerate keeps for the whole process: the first Accelerator's choices hold for all later ones."""
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, indentation (of tabs and lists) removed."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        at += 1
        if fence is None:
            continue
        start, indent = at, len(fence["indent"])
        while at < len(lines) and lines[at].strip() != "```":
            at += 1
        before = next((line for line in reversed(lines[: start - 1]) if line.strip()), "")
        body = "\n".join(line[indent:] for line in lines[start:at])
        yield Block(fence["language"], body, start + 1, SKIP.search(before) is not None or _absent(before))
        at += 1


def _absent(comment: str) -> bool:
    """Whether a block with this comment before it needs a module that is not installed, which is said."""
    needed = NEEDS.search(comment)
    absent = needed is not None and importlib.util.find_spec(needed["module"]) is None
    if absent:
        print(f"{comment.strip()}: not installed, so the block is not executed")
    return absent


def command_problems(text: str) -> Iterator[str]:
    """The commands and options in the `compressm ...` lines of a shell block that do not exist; nothing is run."""
    import typer.main

    from compressm.cli.app import app

    root: Any = typer.main.get_command(app)
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if len(words) < 2 or words[0] != "compressm" or words[1] == "--help":
            continue
        command = root.commands.get(words[1])
        if command is None:
            yield f"`{line.strip()}`: there is no command {words[1]}"
            continue
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words[2:]:
            if word.startswith("-") and word.split("=")[0] not in known | {"--help"}:
                yield f"`{line.strip()}`: {words[1]} has no option {word}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
