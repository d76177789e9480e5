"""Measurements of subsets as tables of text, which the command line prints and the page holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manystream.evaluation.measurement import Measured, Subsets
    from manystream.tasks import Quantity

CHANCE = "chance"
"""What an answer reaches that is the same for every sample."""

AS_THEY_COME = "all as they come"

_SAME = "on the same samples, those that have every stream"
_AS_THEY_ARE = "each on all samples that have its streams: not to be compared with each other"


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        title: what it is of.
        columns: their titles.
        rows: cells; the first of each row is its name.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]


def subset_tables(
    runs: Mapping[str, Subsets], quantities: Mapping[str, Quantity]
) -> list[TextTable]:
    """Lay out every subset on the same samples; beside it as they are, where that differs.

    Of one run all metrics are told, of several the first.

    Args:
        runs: measurements by the name of the run.
        quantities: how the task shows its metrics, the first one first.
    """
    same = {name: dict(subsets) for name, subsets in runs.items() if subsets}
    others = {
        name: {**subsets.as_they_are, AS_THEY_COME: subsets.as_they_come}
        for name, subsets in runs.items()
        if subsets.as_they_come and not subsets.all_complete
    }
    tables = []
    for title, measured in ((_SAME, same), (_AS_THEY_ARE, others)):
        if measured and len(runs) == 1:
            tables.append(measured_table(title, next(iter(measured.values())), quantities))
        elif measured:
            tables.append(_of_several(title, measured, quantities))
    return tables


def measured_table(
    title: str, measured: Mapping[str, Measured], quantities: Mapping[str, Quantity]
) -> TextTable:
    """Lay out a row for each of some measurements, and one for the chance level of the last."""
    columns = ["streams present", "samples", *(shown.title for shown in quantities.values())]
    rows = [
        [subset, _count(values), *(q.text(values[name]) for name, q in quantities.items())]
        for subset, values in measured.items()
    ]
    *_, last = measured.values()
    chance = [_chance(last, name, quantity) for name, quantity in quantities.items()]
    if any(chance):
        rows.append([CHANCE, _count(last), *chance])
    return TextTable(title, columns, rows)


def _of_several(
    title: str, runs: Mapping[str, Mapping[str, Measured]], quantities: Mapping[str, Quantity]
) -> TextTable:
    """Lay out the first metric, a row for each run; behind each value its samples."""
    metric, quantity = next(iter(quantities.items()))
    subsets = list(dict.fromkeys(subset for measured in runs.values() for subset in measured))
    rows = []
    for name, measured in runs.items():
        cells = [
            f"{quantity.text(measured[s][metric])} ({_count(measured[s])})" if s in measured else ""
            for s in subsets
        ]
        *_, last = measured.values()
        rows.append([name, *cells, _chance(last, metric, quantity)])
    return TextTable(title, [f"{quantity.title} (samples)", *subsets, CHANCE], rows)


def _chance(values: Measured, metric: str, quantity: Quantity) -> str:
    chance = values.get(f"{metric}_chance")
    return "" if chance is None else quantity.text(chance)


def _count(values: Measured) -> str:
    return f"{values['num_samples']:.0f}"
