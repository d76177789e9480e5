"""What commands say about single classes: a table, numbers and the confusion matrix."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from manystream.cli.output import console
from manystream.evaluation.per_class import ClassTable
from manystream.evaluation.plots import plot_confusion
from manystream.evaluation.strict_json import strict_json


def report_classes(table: ClassTable, folder: Path) -> None:
    """Print accuracies by class, and write ``classes.json`` and ``confusion.png``."""
    (folder / "classes.json").write_text(strict_json(table.to_dict()) + "\n")
    plot_confusion(table).savefig(folder / "confusion.png", dpi=120)
    console.print(_printed(table))


def _printed(table: ClassTable) -> Table:
    printed = Table("class")
    for title in ("samples", "accuracy", "precision"):
        printed.add_column(title, justify="right")
    printed.add_column("most often taken for")
    for row in table.rows():
        printed.add_row(
            row.name,
            str(row.num_samples),
            _percent(row.accuracy),
            _percent(row.precision),
            row.taken_for or "",
        )
    return printed


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
