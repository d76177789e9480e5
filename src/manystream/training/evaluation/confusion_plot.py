"""The confusion matrix as a picture."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from manystream.data.lettering import literal
from manystream.training.evaluation.per_class import ClassTable

_MOST_WITH_NUMBERS = 20


def plot_confusion(table: ClassTable) -> Figure:
    """Share of each class's samples taken for each class, as colors and, if few, numbers."""
    samples = table.confusion.sum(dim=1, keepdim=True).clamp_min(1)
    shares = (table.confusion / samples).tolist()
    side = min(3.0 + 0.35 * len(table.classes), 24.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the class", shrink=0.8)
    _name_axes(axes, table.classes)
    if len(table.classes) <= _MOST_WITH_NUMBERS:
        _write_numbers(axes, shares)
    return figure


def _name_axes(axes: Axes, classes: tuple[str, ...]) -> None:
    places, names = range(len(classes)), [literal(name) for name in classes]
    axes.set_xticks(places, names, rotation=90, fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")


def _write_numbers(axes: Axes, shares: list[list[float]]) -> None:
    for row, of_class in enumerate(shares):
        for column, share in enumerate(of_class):
            if share >= 0.005:
                color = "white" if share > 0.5 else "black"
                text = f"{100 * share:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
