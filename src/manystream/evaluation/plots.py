"""Figures of runs: curves, subsets of streams, failing sensors, cost; and of one network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter

from manystream.data.contact_sheet import literal
from manystream.evaluation.conditions import Curve
from manystream.evaluation.measurement import Measured
from manystream.evaluation.per_class import ClassTable
from manystream.tasks import Quantity

if TYPE_CHECKING:
    from manystream.evaluation.report import Run

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

_MOST_COLUMNS = 3
_MOST_CLASSES_WITH_NUMBERS = 20
_MOST_LEVEL_LABELS = 4  # bars of more runs are too narrow for them

_BAR_INCHES = 0.2

_SHARE = Quantity("", is_share=True)
_CHANCE = "chance"


def plot_curves(runs: Sequence[Run]) -> Figure:
    """Draw loss, first metric, speed, and dropout if there is any, over the epochs of each run.

    Validation is drawn solid, training dashed.
    """
    name, quantity = first_quantity(runs)
    has_dropout = any(any(run.history.get("dropout_probability", ())) for run in runs)
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    loss, metric, speed, *others = figure.subplots(1, 3 + has_dropout)
    for run, color in zip(runs, cycle(COLORS), strict=False):
        if not run.history:  # an ensemble, whose members were trained
            continue
        _curve(loss, run, "loss", color)
        _curve(metric, run, name, color)
        for probability in others:
            values = run.history["dropout_probability"]
            probability.plot(range(1, len(values) + 1), values, color=color)
        values = run.history.get("train_samples_per_second", [])
        speed.plot(range(1, len(values) + 1), values, color=color)
    _dress(loss, "loss")
    _dress(metric, quantity.title)
    _scale(metric, quantity, 1)
    _draw_chance(metric, quantity.chance)
    _dress(speed, "training samples per second")
    for probability in others:
        _dress(probability, "modality dropout probability")
        _scale(probability, _SHARE, 1)
    for axes in figure.axes:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    speed.set_ylim(bottom=0)
    _legend(figure, loss)
    if quantity.chance is not None:
        metric.legend(handles=metric.lines[-1:], fontsize=8, frameon=False)
    return figure


def plot_subsets(runs: Sequence[Run]) -> Figure:
    """Draw the first metric of each run for every subset of streams, as bars.

    Bars of different samples say how many they are of. Dotted across each, what guessing reaches.
    """
    name, quantity = first_quantity(runs)
    subsets = list(dict.fromkeys(subset for run in runs for subset in run.subsets.shown))
    counts = {int(v["num_samples"]) for run in runs for v in run.subsets.shown.values()}
    narrow = len(runs) > _MOST_LEVEL_LABELS
    inches = len(subsets) * max(1.6, _BAR_INCHES * (len(runs) + 1)) + 2
    figure = Figure(figsize=(max(5.0, inches), 4.2 if narrow else 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(runs)
    for i, (run, color) in enumerate(zip(runs, cycle(COLORS), strict=False)):
        shift = (i - (len(runs) - 1) / 2) * width
        shown = run.subsets.shown
        measured = {x + shift: shown[s] for x, s in enumerate(subsets) if s in shown}
        values = [metrics[name] for metrics in measured.values()]
        bars = axes.bar(list(measured), values, width * 0.95, color=color, label=literal(run.name))
        texts = [
            _bar_text(metrics, name, quantity, len(counts) > 1) for metrics in measured.values()
        ]
        axes.bar_label(bars, texts, fontsize=8, padding=2, rotation=90 if narrow else 0)
        for place, metrics in measured.items():
            chance = metrics.get(f"{name}_chance", quantity.chance)
            _draw_chance(axes, chance, (place - width / 2, place + width / 2))
    axes.set_xticks(range(len(subsets)), [literal(subset) for subset in subsets])
    same = f"the same {counts.pop()} samples" if len(counts) == 1 else "samples differ"
    axes.set_xlabel(f"streams present ({same})")
    _dress(axes, quantity.title)
    _scale(axes, quantity, 1.25 if narrow else 1.12)
    _legend(figure, axes)
    return figure


def _bar_text(metrics: Measured, name: str, quantity: Quantity, say_count: bool) -> str:
    value = f"{metrics[name]:.0%}" if quantity.is_share else f"{metrics[name]:.3g}"
    return f"{value}\nn = {metrics['num_samples']:.0f}" if say_count else value


def first_quantity(runs: Sequence[Run]) -> tuple[str, Quantity]:
    """Find the metric that the runs' task puts first, and how it is shown."""
    return next(iter(runs[0].task.quantities().items()))


def plot_conditions(runs: Sequence[Run]) -> Figure:
    """Draw the first metric of each run against random loss, and noise and darkness on a stream.

    A dashed line says what is left without that stream: beyond it, the network would do better if
    it did not see the stream at all.
    """
    _, quantity = first_quantity(runs)
    measured = [(run.name, run.robustness) for run in runs if run.robustness is not None]
    curves = {name: robustness.curves() for name, robustness in measured}
    titles = list(dict.fromkeys(title for by_title in curves.values() for title in by_title))
    figure, panels = _grid(len(titles))
    for axes, title in zip(panels, titles, strict=False):
        for (name, by_title), color in zip(curves.items(), cycle(COLORS), strict=False):
            if title in by_title:
                _draw_condition(axes, by_title[title], name, color)
        _dress(axes, title)
        _scale(axes, quantity, 1.02)
        axes.grid(alpha=0.25)
    figure.supylabel(quantity.title, fontsize=10)
    _legend(figure, figure.axes[0])
    return figure


def plot_confusion(table: ClassTable) -> Figure:
    """Draw the shares of each class's samples taken for each class: colors and, if few, numbers."""
    samples = table.confusion.sum(dim=1, keepdim=True).clamp_min(1)
    shares = (table.confusion / samples).tolist()
    side = min(3.0 + 0.35 * len(table.classes), 24.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the class", shrink=0.8)
    places, names = range(len(table.classes)), [literal(name) for name in table.classes]
    axes.set_xticks(places, names, rotation=90, fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    if len(table.classes) <= _MOST_CLASSES_WITH_NUMBERS:
        _write_shares(axes, shares)
    return figure


def plot_costs(runs: Sequence[Run]) -> Figure:
    """Draw parameters, memory and time of a training step, and time of training, where known."""
    known = [(run.name, run.cost) for run in runs if run.cost is not None]
    names = [literal(name) for name, _ in known]
    panels = {
        "parameters, millions": [cost.num_parameters / 1e6 for _, cost in known],
        "peak memory of a step, MiB": [cost.peak_bytes / 2**20 for _, cost in known],
        "time of a step, ms": [cost.step_ms for _, cost in known],
    }
    seconds = [run.training_s for run in runs if run.cost is not None]
    if None not in seconds:
        panels["time of training, s"] = [s for s in seconds if s is not None]
    figure = Figure(figsize=(13, 0.4 * len(known) + 1.2), layout="constrained")
    for axes, (title, values) in zip(
        figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True
    ):
        bars = axes.barh(names, values, color=COLORS[0])
        axes.bar_label(bars, [f"{v:.3g}" for v in values], fontsize=8, padding=2)
        _dress(axes, title)
        axes.margins(x=0.15)
    axes.invert_yaxis()  # shared: the first run stands on top
    return figure


def plot_layers(by_layer: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Draw a line per stream over the layers of a network, on a logarithmic scale.

    Args:
        by_layer: by layer, one number per stream, as ``models.contributions`` gives them.
        title: headline of the figure.
    """
    layers = list(by_layer)
    names = list(dict.fromkeys(name for values in by_layer.values() for name in values))
    figure = Figure(figsize=(max(6.0, 0.32 * len(layers) + 2), 4), layout="constrained")
    axes = figure.subplots()
    for name, color in zip(names, cycle(COLORS), strict=False):
        values = [abs(by_layer[layer].get(name, math.nan)) for layer in layers]
        axes.plot(range(len(layers)), values, "o-", color=color, label=literal(name), markersize=4)
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=8)
    axes.set_yscale("log")
    _dress(axes, title)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _grid(num_panels: int) -> tuple[Figure, Iterable[Axes]]:
    """Make a figure with room for so many panels; what is left over is hidden."""
    columns = max(min(num_panels, _MOST_COLUMNS), 1)
    rows = -(-num_panels // columns) or 1
    figure = Figure(figsize=(3.7 * columns, 3.1 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for unused in panels[num_panels:]:
        unused.set_axis_off()
    return figure, panels


def _draw_condition(axes: Axes, curve: Curve, name: str, color: str) -> None:
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
    if curve.chance is not None:
        _draw_chance(axes, curve.chance)
    axes.set_xlabel(f"{curve.unit}\n{curve.num_samples} samples", fontsize=9)


def _write_shares(axes: Axes, shares: list[list[float]]) -> None:
    for row, of_class in enumerate(shares):
        for column, share in enumerate(of_class):
            if share >= 0.005:
                color = "white" if share > 0.5 else "black"
                text = f"{100 * share:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)


def _curve(axes: Axes, run: Run, quantity: str, color: str) -> None:
    for stage, style in (("val", "-"), ("train", "--")):
        values = run.history.get(f"{stage}_{quantity}", [])
        label = f"{run.name}, {'validation' if stage == 'val' else 'training'}"
        axes.plot(range(1, len(values) + 1), values, style, color=color, label=literal(label))


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(literal(title), fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _scale(axes: Axes, quantity: Quantity, top: float) -> None:
    """Scale the values of a quantity; shares go from 0 to ``top``."""
    if quantity.is_share:
        axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        axes.set_ylim(0, top)
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_chance(
    axes: Axes, chance: float | None, across: tuple[float, float] | None = None
) -> None:
    """Draw what an answer reaches that is the same for every sample: dotted, or nothing."""
    if chance is None:
        return
    label = None if _CHANCE in axes.get_legend_handles_labels()[1] else _CHANCE
    style: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 1.5}
    style["path_effects"] = [withStroke(linewidth=3, foreground="white")]  # it crosses bars
    if across is None:
        axes.axhline(chance, label=label, **style)
    else:
        axes.plot(across, (chance, chance), label=label, **style)


def _legend(figure: Figure, axes: Axes) -> None:
    """Name what is drawn, below the figure, unless that is one run and nothing else."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        inches = 0.6 + 0.08 * max(map(len, labels))  # of a name and what stands before it
        figure.legend(
            handles,
            labels,
            fontsize=9,
            frameon=False,
            loc="outside lower center",
            ncols=max(1, min(len(labels), int(figure.get_figwidth() / inches))),
        )
