"""`compressm`: train, analyze, compress, eval, bench."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from compressm.cli.analyze_command import analyze
from compressm.cli.bench_command import bench
from compressm.cli.compress_command import compress
from compressm.cli.eval_command import evaluate
from compressm.cli.train_command import train
from compressm.errors import CompressmError


class _InterruptedError(Exception):
    """Ctrl-C in a command. Typer would make an exit of it that says nothing."""


class _Commands(TyperGroup):
    """The commands, whose interruption reaches `run`."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that `ctx` names."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise _InterruptedError from interrupt


app = typer.Typer(
    name="compressm",
    cls=_Commands,
    help="State space models that shrink while they train.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(train)
app.command()(analyze)
app.command()(compress)
app.command("eval")(evaluate)
app.command()(bench)


# Older versions of typer raise click's errors, newer ones those of their own copy of click: typer names neither.
_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


_FILE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # writing names no file then


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"compressm {version('compressm')}")
        except PackageNotFoundError:
            typer.echo("compressm (not installed)")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """State space models that shrink while they train."""


def run(arguments: list[str] | None = None) -> int:
    """Run the command line with `arguments` (default: the process's own) and return its exit code.

    0: done; 2: wrong settings, data or files, told in one message; 130: interrupted by Ctrl-C.
    """
    try:
        result = app(args=arguments, prog_name="compressm", standalone_mode=False)
    except CompressmError as error:
        _complain(str(error))
        return 2
    except OSError as error:
        if error.filename is None and error.errno not in _FILE_SYSTEM:  # no file is to blame
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        _complain(f"{where}{error.strerror}.")
        return 2
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, _InterruptedError, typer.Abort):
        typer.echo("Interrupted.", err=True)
        return 130
    except _USAGE_ERROR as error:
        error.show()
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):  # PyTorch has no error for it
            raise
        _complain("There is not enough memory; choose smaller sizes (batch, length, width, order or blocks).")
        return 2
    return result if isinstance(result, int) else 0


def _complain(text: str) -> None:
    """An error, in red unless the environment asks for no colours (no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    typer.secho(f"Error: {text}", err=True, fg=None if plain else typer.colors.RED)


def main() -> None:
    """The console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an arrow or a sigma that an old code page has not
    sys.exit(run())
