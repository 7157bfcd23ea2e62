"""Tables as rich tables for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from compressm.cli.report.rows import Table


def print_table(console: Console, table: Table) -> None:
    """Draw one table, without optional columns that there is no room for."""
    shown = _fitting(table, console.width)
    drawn = RichTable(title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number in shown:
        left = (number == 0 and table.columns[0] != "batch") or table.columns[number] in ("layer", "form", "part")
        drawn.add_column(table.columns[number], justify="left" if left else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(row[number] for number in shown))
    console.print(drawn)
    below = table.text_below([table.columns[number] for number in shown])
    if below:
        console.print(below, style="dim")


def _fitting(table: Table, width: int) -> list[int]:
    """The columns to draw in `width` characters."""
    widest = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    shown = list(range(len(table.columns)))
    for name in table.optional:
        if sum(widest[number] + 3 for number in shown) <= width:
            break
        shown.remove(table.columns.index(name))
    return shown


def markdown_table(table: Table) -> str:
    """One table with its title as a heading."""
    lines = [f"## {table.title}", ""]
    if table.rows:
        lines += [_line(table.columns), _line(["---", *["---:"] * (len(table.columns) - 1)])]
        lines += [_line(row) for row in table.rows]
    below = table.text_below(table.columns)
    if below:
        lines += ["", below]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
