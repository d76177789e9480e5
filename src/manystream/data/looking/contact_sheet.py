"""A contact sheet: some samples of every class, their streams side by side."""

from __future__ import annotations

from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, GridSpecFromSubplotSpec

from manystream.data.image import UnreadableImageError
from manystream.data.looking.lettering import literal
from manystream.data.looking.pictures import Picture, picture
from manystream.data.source import Source

# In inches.
_CELL = 1.5
_BELOW = 0.6
_LABEL = 1.35
_TITLE = 0.5
_LONGEST_NAME = 30
_LABEL_WIDTH = 16  # characters


def contact_sheet(source: Source, *, per_class: int = 3, seed: int = 0, title: str = "") -> Figure:
    """Draw a row per class and a group of pictures per sample, one picture per stream.

    An absent stream is an empty cell that says so, as is an image that cannot be read.

    Args:
        source: the samples.
        per_class: how many of each class, chosen at random; all if it has no more.
        seed: of the choice.
        title: above the sheet.

    Raises:
        ValueError: if ``per_class`` is below 1.
    """
    rows = {name: chosen for name, chosen in _choose(source, per_class, seed).items() if chosen}
    figure, grid = _layout(len(rows), max(map(len, rows.values())), len(source.streams), title)
    for row, (name, chosen) in enumerate(rows.items()):
        for column, index in enumerate(chosen):
            cells = grid[row, column].subgridspec(1, len(source.streams), wspace=0.06)
            _draw_sample(figure, cells, source, index)
        middle = grid[row, 0].get_position(figure)
        label = literal(fill(name.replace("_", " "), _LABEL_WIDTH))
        center = (middle.y0 + middle.y1) / 2
        figure.text(0.1 / figure.get_figwidth(), center, label, va="center", size=9, weight="bold")
    return figure


def _choose(source: Source, per_class: int, seed: int) -> dict[str, list[int]]:
    if per_class < 1:
        raise ValueError(f"per_class={per_class}; expected at least 1 sample of each class")
    rng = np.random.default_rng(seed)
    targets = source.targets.numpy()
    return {
        name: np.sort(rng.permutation(np.flatnonzero(targets == number))[:per_class]).tolist()
        for number, name in enumerate(source.classes)
    }


def _layout(rows: int, columns: int, num_streams: int, title: str) -> tuple[Figure, GridSpec]:
    width = _LABEL + columns * (num_streams * _CELL + 0.2)
    height = _TITLE + rows * (_CELL + _BELOW)
    figure = Figure(figsize=(width, height))
    figure.text(0.1 / width, 1 - 0.25 / height, literal(title), size=11, weight="bold", va="center")
    grid = figure.add_gridspec(
        rows,
        columns,
        left=_LABEL / width,
        right=1 - 0.1 / width,
        top=1 - _TITLE / height,
        bottom=_BELOW / height,
        wspace=0.08,
        hspace=_BELOW / _CELL,
    )
    return figure, grid


def _draw_sample(
    figure: Figure, cells: GridSpecFromSubplotSpec, source: Source, index: int
) -> None:
    shown = [_picture(source, index, stream) for stream in range(len(source.streams))]
    shapes = [picture.pixels.shape for picture in shown if isinstance(picture, Picture)]
    aspect = shapes[0][0] / shapes[0][1] if shapes else 0.75
    for stream, what in enumerate(shown):
        axes = figure.add_subplot(cells[0, stream])
        axes.set(xticks=[], yticks=[])
        caption = _fill(axes, what, aspect)
        axes.set_xlabel(f"{literal(source.streams[stream].name)}\n{caption}", size=6.5, labelpad=2)
        if stream == 0:
            axes.set_title(literal(_shortened(source.ids[index])), size=6.5, loc="left", pad=2)


def _picture(source: Source, index: int, stream: int) -> Picture | str:
    """What a cell shows: an image, or a word on why there is none."""
    if not source.present[index, stream]:
        return "absent"
    try:
        return picture(source.read(index, stream), source.streams[stream])
    except UnreadableImageError:
        return "unreadable"


def _fill(axes: Axes, what: Picture | str, aspect: float) -> str:
    """Draw what a cell shows, and give its caption."""
    if isinstance(what, Picture):
        axes.imshow(what.pixels)
        return what.caption
    axes.set_facecolor("0.95")
    axes.patch.set(hatch="///" if what == "absent" else "", edgecolor="0.85")
    color = "0.45" if what == "absent" else "firebrick"
    box = {"facecolor": "0.95", "edgecolor": "none", "pad": 2}
    axes.text(0.5, 0.5, what, ha="center", va="center", size=9, color=color, bbox=box)
    axes.set_box_aspect(aspect)
    return ""


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]
