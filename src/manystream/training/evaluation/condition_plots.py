"""Figures of how networks hold when sensors fail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from manystream.data.lettering import literal
from manystream.training.evaluation.robustness import Curve
from manystream.training.reports.plots import COLORS

if TYPE_CHECKING:
    from manystream.training.reports.report import Run

_MOST_COLUMNS = 3


def plot_conditions(runs: Sequence[Run]) -> Figure:
    """Mean class accuracy of each run against random loss, and noise and darkness on a stream.

    A dashed line says what is left without that stream: below it, the network would do better if it
    did not see the stream at all.
    """
    measured = [(run.name, run.robustness) for run in runs if run.robustness is not None]
    curves = {name: robustness.curves() for name, robustness in measured}
    titles = list(dict.fromkeys(title for by_title in curves.values() for title in by_title))
    figure, panels = _grid(len(titles))
    for axes, title in zip(panels, titles, strict=False):
        for (name, by_title), color in zip(curves.items(), cycle(COLORS), strict=False):
            if title in by_title:
                _draw(axes, by_title[title], name, color)
        _dress(axes, title)
    figure.supylabel("mean class accuracy", fontsize=10)
    handles, labels = next(iter(figure.axes)).get_legend_handles_labels()
    if len(runs) > 1:
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(runs))
    return figure


def _grid(num_panels: int) -> tuple[Figure, Iterable[Axes]]:
    """A figure with room for so many panels, and the panels; what is left over is hidden."""
    columns = max(min(num_panels, _MOST_COLUMNS), 1)
    rows = -(-num_panels // columns) or 1
    figure = Figure(figsize=(3.7 * columns, 3.1 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for unused in panels[num_panels:]:
        unused.set_axis_off()
    return figure, panels


def _draw(axes: Axes, curve: Curve, name: str, color: str) -> None:
    axes.errorbar(
        curve.levels,
        curve.values,
        curve.spread,
        fmt="o-",
        color=color,
        markersize=4,
        capsize=2,
        label=literal(name),
    )
    if curve.without is not None:
        axes.axhline(curve.without, color=color, linestyle="--", linewidth=1)
        # On the left, since curves begin far above it.
        place = (curve.levels[0], curve.without)
        axes.annotate("without", place, (0, 2), textcoords="offset points", fontsize=8, color=color)
    axes.set_xlabel(curve.unit, fontsize=9)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(literal(title), fontsize=10)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
