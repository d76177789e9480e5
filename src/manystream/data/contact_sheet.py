"""A contact sheet: some samples of every class, their streams side by side, made visible."""

from __future__ import annotations

from textwrap import fill
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from manystream.data.image import UnreadableImageError
from manystream.data.streams import StreamSpec
from manystream.data.table import SampleTable

# In inches.
_CELL, _BELOW, _LABEL, _TITLE = 1.5, 0.6, 1.35, 0.5
# In characters.
_LONGEST_NAME, _LABEL_WIDTH = 30, 16

_LONGEST_SIDE = 160
_NO_READING = (150, 150, 150)
# Single wild readings would leave everything else one color.
_PERCENTILES = (2, 98)


def contact_sheet(
    table: SampleTable, *, per_class: int = 3, seed: int = 0, title: str = ""
) -> Figure:
    """Draw a row per class and a group of pictures per sample, one picture per stream.

    An absent stream is an empty cell that says so, as is an image that cannot be read.

    Args:
        table: the samples.
        per_class: how many of each class, chosen at random; all if it has no more.
        seed: of the choice.
        title: above the sheet.

    Raises:
        ValueError: if ``per_class`` is below 1.
    """
    if per_class < 1:
        raise ValueError(f"per_class={per_class}; expected at least 1 sample of each class")
    rng, targets = np.random.default_rng(seed), table.targets.numpy()
    rows = {
        name: np.sort(rng.permutation(np.flatnonzero(targets == number))[:per_class]).tolist()
        for number, name in enumerate(table.classes)
    }
    rows = {name: chosen for name, chosen in rows.items() if chosen}
    figure, grid = _layout(len(rows), max(map(len, rows.values())), len(table.streams), title)
    for row, (name, chosen) in enumerate(rows.items()):
        for column, index in enumerate(chosen):
            _draw_sample(figure, grid, (row, column), table, index)
        middle = grid[row, 0].get_position(figure)
        label = literal(fill(name.replace("_", " "), _LABEL_WIDTH))
        center = (middle.y0 + middle.y1) / 2
        figure.text(0.1 / figure.get_figwidth(), center, label, va="center", size=9, weight="bold")
    return figure


def literal(text: str) -> str:
    r"""Have matplotlib draw a text as it is, although what is between two dollars is a formula.

    Example:
        >>> print(literal("$5 or $6"))
        \$5 or \$6
    """
    return text.replace("$", r"\$")


def _layout(rows: int, columns: int, num_streams: int, title: str) -> tuple[Figure, GridSpec]:
    width = _LABEL + columns * (num_streams * _CELL + 0.2)
    height = _TITLE + rows * (_CELL + _BELOW)
    figure = Figure(figsize=(width, height))
    figure.text(0.1 / width, 1 - 0.25 / height, literal(title), size=11, weight="bold", va="center")
    edges = {"left": _LABEL / width, "right": 1 - 0.1 / width}
    edges |= {"top": 1 - _TITLE / height, "bottom": _BELOW / height}
    return figure, figure.add_gridspec(rows, columns, **edges, wspace=0.08, hspace=_BELOW / _CELL)


def _draw_sample(
    figure: Figure, grid: GridSpec, place: tuple[int, int], table: SampleTable, index: int
) -> None:
    cells = grid[place].subgridspec(1, len(table.streams), wspace=0.06)
    shown = [_picture(table, index, stream) for stream in range(len(table.streams))]
    shapes = [what.pixels.shape for what in shown if isinstance(what, Picture)]
    aspect = shapes[0][0] / shapes[0][1] if shapes else 0.75
    for stream, what in enumerate(shown):
        axes = figure.add_subplot(cells[0, stream])
        axes.set(xticks=[], yticks=[])
        caption = ""
        if isinstance(what, Picture):
            axes.imshow(what.pixels)
            caption = what.caption
        else:
            _draw_word(axes, what, aspect)
        axes.set_xlabel(f"{literal(table.streams[stream].name)}\n{caption}", size=6.5, labelpad=2)
        if stream == 0:
            name = table.ids[index]
            name = name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]
            axes.set_title(literal(name), size=6.5, loc="left", pad=2)


def _draw_word(axes: Axes, word: str, aspect: float) -> None:
    """Say why a cell has no picture."""
    absent = word == "absent"
    axes.set_facecolor("0.95")
    axes.patch.set(hatch="///" if absent else "", edgecolor="0.85")
    box = {"facecolor": "0.95", "edgecolor": "none", "pad": 2}
    color = "0.45" if absent else "firebrick"
    axes.text(0.5, 0.5, word, ha="center", va="center", size=9, color=color, bbox=box)
    axes.set_box_aspect(aspect)


class Picture(NamedTuple):
    """A picture, shape (H, W, 3), uint8, and its caption."""

    pixels: np.ndarray
    caption: str


def _picture(table: SampleTable, index: int, stream: int) -> Picture | str:
    """Return what a cell shows: an image, or a word on why there is none."""
    if not table.present[index, stream]:
        return "absent"
    try:
        return picture(table.read(index, stream), table.streams[stream])
    except UnreadableImageError:
        return "unreadable"


def picture(image: np.ndarray, spec: StreamSpec) -> Picture:
    """Make an image visible.

    Color stays as it is. Depth is color-mapped between the 2nd and 98th percentile of its readings,
    which the caption names with their unit; grey is no reading. Of other streams the first three
    channels, or the first, are stretched between their percentiles.

    Args:
        image: shape (H, W, C), as stored.
        spec: its stream.
    """
    step = -(-max(image.shape[:2]) // _LONGEST_SIDE)
    image = image[::step, ::step]
    if spec.kind == "depth":
        return _depth_picture(image[..., 0], spec)
    plain = spec.kind == "color" and image.dtype == np.uint8
    stretched, caption = (image, "") if plain else _stretched(image, np.isfinite(image))
    if image.shape[-1] < 3:
        stretched = np.repeat(stretched[..., :1], 3, axis=-1)
    return Picture(stretched[..., :3], caption and f"{caption}, {spec.channels} ch.")


def _depth_picture(depth: np.ndarray, spec: StreamSpec) -> Picture:
    valid = np.isfinite(depth) & (depth > 0)
    stretched, caption = _stretched(depth, valid)
    mapped = colormaps["viridis"](stretched)[..., :3] * 255
    pixels = np.where(valid[..., None], mapped, _NO_READING).astype(np.uint8)
    if not valid.any():
        return Picture(pixels, "no reading")
    lost = 1 - valid.mean()
    none = f", {lost:.0%} none" if lost >= 0.005 else ""
    return Picture(pixels, f"{caption} {spec.unit or 'as stored'}{none}")


def _stretched(values: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, str]:
    """Turn values into uint8, from percentile to percentile of the valid, and say which these are.

    Args:
        values: of any shape.
        valid: of the same shape, bool.
    """
    low, high = np.percentile(values[valid], _PERCENTILES) if valid.any() else (0.0, 0.0)
    clean = np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low)
    stretched = (clean - low) / (high - low) if high > low else np.full_like(clean, 0.5)
    digits = 0 if high >= 100 else 2
    caption = f"{low:.{digits}f} to {high:.{digits}f}"
    return (stretched.clip(0, 1) * 255).astype(np.uint8), caption
