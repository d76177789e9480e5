"""Rows beside each other: ratios to a baseline of the same run, and tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.results import Row

REFERENCE = "masked in-place"
"""The baseline that ratios are against; the first row where there is none."""

Cell = Callable[[Row], str]

console = Console(width=150)


def label(row: Row) -> str:
    """Return what a table calls a row."""
    return f"{row['name']}, graphs" if row.get("graphs") else str(row["name"])


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Add ``time_ratio``, ``speedup`` and ``memory_ratio`` to the reference among the rows.

    Rows without ``step_ms``, which could not be measured or not be timed, stay as they are.
    """
    timed = [row for row in rows if "step_ms" in row]
    reference = next((row for row in timed if row["name"] == REFERENCE), (timed or [{}])[0])
    return [{**row, **_ratios(row, reference)} if "step_ms" in row else row for row in rows]


def _ratios(row: Row, reference: Row) -> Row:
    ratios = {
        "ratio_to": label(reference),
        "time_ratio": row["step_ms"] / reference["step_ms"],
        "speedup": reference["step_ms"] / row["step_ms"],
    }
    if "activation_peak_bytes" in row:
        peak, usual = row["activation_peak_bytes"], reference["activation_peak_bytes"]
        ratios["memory_ratio"] = peak / usual
    return ratios


def table_of(
    rows: Sequence[Row],
    columns: Mapping[str, Cell],
    title: str | None = None,
    *,
    name: Cell = label,
    caption: str | None = None,
) -> Table:
    """Lay rows out, one error in place of all numbers where there is one.

    Args:
        rows: the rows.
        columns: from a row to a cell, by the column's title.
        title: above the table.
        name: from a row to its first cell.
        caption: below the table; by default what ratios are to.
    """
    to = next((f"against {row['ratio_to']}" for row in rows if "ratio_to" in row), None)
    table = Table("", title=title, caption=caption or to)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        failed = "error" in row
        cells = [str(row["error"])[:60]] if failed else [cell(row) for cell in columns.values()]
        table.add_row(*(escape(text) for text in (name(row), *cells)))
    return table


def number(key: str, spec: str, scale: float = 1.0) -> Cell:
    """Make a cell of a row's number, with a format and a factor; empty where it has none."""
    return lambda row: "" if row.get(key) is None else format(row[key] * scale, spec)


def step(row: Row) -> str:
    """Show the median time of a step and half the distance of the quartiles."""
    return f"{row['step_ms']:.2f} ± {row['step_spread_ms'] / 2:.2f}"
