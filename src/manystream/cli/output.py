"""What commands share: where they print, tables, and folders to write into."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manystream.evaluation.tables import subset_tables
from manystream.extras import train_extra

with train_extra():
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

if TYPE_CHECKING:
    from manystream.evaluation import ClassTable, Subsets
    from manystream.evaluation.conditions import Curve
    from manystream.tasks import Quantity

# Names of classes, streams and files are printed as they are: "[/red]" ends no colour, and
# ":cat:" is no picture.
_AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False}

console = Console(**_AS_IT_IS)
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 200  # nothing there would break longer lines, which rich would at 80


def say(line: str) -> None:
    """Print a line."""
    _print(console, line)


def complain(line: str) -> None:
    """Print a message of failure to the standard error."""
    _print(Console(stderr=True, **_AS_IT_IS), line, style="red")


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str = "",
    title: str | None = None,
) -> None:
    """Print a table whose first column names its rows, and the others hold numbers."""
    (first, *others), rows = columns, list(rows)
    table = Table(title=title, title_justify="left", caption=caption or None)
    names = [*first.split(), *(row[0] for row in rows)]
    table.add_column(first, width=max(map(cell_len, names)))  # whole, however narrow the terminal
    for column in others:
        table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_subsets(runs: Mapping[str, Subsets], quantities: Mapping[str, Quantity]) -> None:
    """Print metrics for every subset of streams; of several runs the first of the metrics.

    Args:
        runs: by the name of the run, what ``evaluate_subsets`` measured.
        quantities: how the task shows its metrics.
    """
    for table in subset_tables(runs, quantities):
        print_table(table.columns, table.rows, title=table.title)


def print_curves(curves: Mapping[str, Curve], quantity: Quantity) -> None:
    """Print curves, by their titles; those that have the same levels are columns of one table."""
    alike: dict[tuple[Any, ...], dict[str, Curve]] = {}
    for title, curve in curves.items():
        alike.setdefault((curve.unit, *curve.levels), {})[title] = curve
    for (unit, *levels), by_title in alike.items():
        rows = [
            [f"{level:g}", *(_point(curve, row, quantity) for curve in by_title.values())]
            for row, level in enumerate(levels)
        ]
        counts = sorted({curve.num_samples for curve in by_title.values()})
        samples = f"{' or '.join(map(str, counts))} samples"
        print_table([unit, *by_title], rows, f"{quantity.title} of {samples}")


def _point(curve: Curve, row: int, quantity: Quantity) -> str:
    value = quantity.text(curve.values[row])
    return value if curve.spread is None else f"{value} ± {quantity.text(curve.spread[row])}"


def print_classes(table: ClassTable) -> None:
    """Print accuracy and precision of each class, and what it is mistaken for."""
    printed = Table("class")
    for title in ("samples", "accuracy", "precision"):
        printed.add_column(title, justify="right")
    printed.add_column("most often taken for")
    for row in table.rows():
        shares = ("" if s is None else f"{s:.1%}" for s in (row.accuracy, row.precision))
        printed.add_row(row.name, str(row.num_samples), *shares, row.taken_for or "")
    console.print(printed)


def fresh_path(out: Path | None, prefix: str = "") -> Path:
    """Choose the path to write to, by default one in ``runs`` with the date and time.

    Raises:
        ValueError: if it exists, or cannot be made.
    """
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    out = out or Path("runs") / "-".join(filter(None, (prefix, now)))
    try:
        exists, folder = _is_there(out), _nearest_folder(out)
    except OSError as error:  # A name that is too long, a link to itself.
        raise ValueError(
            f"cannot write into --out {out}: {error.strerror}; name another"
        ) from error
    if exists:
        raise ValueError(f"--out {out} exists; name one that does not, nothing is overwritten")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f"cannot write into --out {out}: {folder} is no folder that can be written into; name "
            "another"
        )
    return out


def _nearest_folder(path: Path) -> Path:
    """Find the first of a path's parents that is there."""
    return next(parent for parent in path.absolute().parents if _is_there(parent))


def _is_there(path: Path) -> bool:
    # Path.exists hides a name that is too long in some versions of Python, and raises in others.
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def plain(values: Any) -> Any:
    """Turn values into what YAML and JSON can hold."""
    if isinstance(values, dict):
        return {key: plain(value) for key, value in values.items()}
    return str(values) if isinstance(values, Path) else values


def _print(to: Console, line: str, style: str | None = None) -> None:
    # Soft wrapping breaks no path in two.
    to.print(line, style=style, highlight=False, soft_wrap=True)
