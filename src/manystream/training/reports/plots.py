"""Figures of runs: learning curves, and accuracy for every subset of streams."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from manystream.data.lettering import literal

if TYPE_CHECKING:
    from manystream.training.reports.report import Run

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def plot_curves(runs: Sequence[Run]) -> Figure:
    """Loss, mean class accuracy, dropout probability and speed over the epochs of each run.

    Validation is drawn solid, training dashed.
    """
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    loss, accuracy, probability, speed = figure.subplots(1, 4)
    for run, color in zip(runs, cycle(COLORS), strict=False):
        _curve(loss, run, "loss", color)
        _curve(accuracy, run, "mean_class_accuracy", color)
        values = run.history["dropout_probability"]
        probability.plot(range(1, len(values) + 1), values, color=color)
        values = run.history.get("train_samples_per_second", [])
        speed.plot(range(1, len(values) + 1), values, color=color)
    _dress(loss, "loss")
    _dress(accuracy, "mean class accuracy", share=True)
    _dress(probability, "modality dropout probability", share=True)
    _dress(speed, "training samples per second")
    speed.set_ylim(bottom=0)
    loss.legend(fontsize=8, frameon=False)
    return figure


def plot_subsets(runs: Sequence[Run]) -> Figure:
    """Mean class accuracy of each run for every subset of streams, as bars."""
    subsets = all_subsets(runs)
    figure = Figure(figsize=(max(5.0, 1.6 * len(subsets) + 2), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(runs)
    for i, (run, color) in enumerate(zip(runs, cycle(COLORS), strict=False)):
        measured = [(x, run.subsets[s]) for x, s in enumerate(subsets) if s in run.subsets]
        values = [accuracies["mean_class_accuracy"] for _, accuracies in measured]
        places = [x + (i - (len(runs) - 1) / 2) * width for x, _ in measured]
        bars = axes.bar(places, values, width * 0.95, color=color, label=literal(run.name))
        axes.bar_label(bars, [f"{v:.0%}" for v in values], fontsize=8, padding=2)
    axes.set_xticks(range(len(subsets)), [literal(subset) for subset in subsets])
    axes.set_xlabel("streams present")
    axes.set_title("mean class accuracy", fontsize=10)
    axes.set_ylim(0, 1.08)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        figure.legend(fontsize=9, frameon=False, loc="outside lower center", ncols=len(runs))
    return figure


def all_subsets(runs: Sequence[Run]) -> list[str]:
    """Subsets of streams that any of the runs was measured with, in order."""
    return list(dict.fromkeys(subset for run in runs for subset in run.subsets))


def plot_costs(runs: Sequence[Run]) -> Figure:
    """Parameters, and memory and time of a training step, of the runs that know them, as bars."""
    known = [(run.name, run.cost) for run in runs if run.cost is not None]
    names = [literal(name) for name, _ in known]
    panels = {
        "parameters, millions": [cost.num_parameters / 1e6 for _, cost in known],
        "peak memory of a step, MiB": [cost.peak_bytes / 2**20 for _, cost in known],
        "time of a step, ms": [cost.step_ms for _, cost in known],
    }
    figure = Figure(figsize=(11, 0.4 * len(known) + 1.2), layout="constrained")
    for axes, (title, values) in zip(
        figure.subplots(1, 3, sharey=True), panels.items(), strict=True
    ):
        bars = axes.barh(names, values, color=COLORS[0])
        axes.bar_label(bars, [f"{v:.3g}" for v in values], fontsize=8, padding=2)
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()  # shared: the first run stands on top
    return figure


def plot_layers(by_layer: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """One line per stream over the layers of a network, on a logarithmic scale.

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
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _curve(axes: Axes, run: Run, quantity: str, color: str) -> None:
    for stage, style in (("val", "-"), ("train", "--")):
        values = run.history.get(f"{stage}_{quantity}", [])
        label = f"{run.name}, {'validation' if stage == 'val' else 'training'}"
        axes.plot(range(1, len(values) + 1), values, style, color=color, label=literal(label))


def _dress(axes: Axes, title: str, *, share: bool = False) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if share:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
