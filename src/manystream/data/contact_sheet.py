"""A contact sheet: some samples of every class, their streams side by side, made visible."""

from __future__ import annotations

from textwrap import fill
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, GridSpecFromSubplotSpec

from manystream.data.image import UnreadableImageError
from manystream.data.lettering import literal
from manystream.data.streams import StreamSpec
from manystream.data.table import SampleTable

# In inches.
_CELL = 1.5
_BELOW = 0.6
_LABEL = 1.35
_TITLE = 0.5
_LONGEST_NAME = 30
_LABEL_WIDTH = 16  # characters

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
    rows = {name: chosen for name, chosen in _choose(table, per_class, seed).items() if chosen}
    figure, grid = _layout(len(rows), max(map(len, rows.values())), len(table.streams), title)
    for row, (name, chosen) in enumerate(rows.items()):
        for column, index in enumerate(chosen):
            cells = grid[row, column].subgridspec(1, len(table.streams), wspace=0.06)
            _draw_sample(figure, cells, table, index)
        middle = grid[row, 0].get_position(figure)
        label = literal(fill(name.replace("_", " "), _LABEL_WIDTH))
        center = (middle.y0 + middle.y1) / 2
        figure.text(0.1 / figure.get_figwidth(), center, label, va="center", size=9, weight="bold")
    return figure


def _choose(table: SampleTable, per_class: int, seed: int) -> dict[str, list[int]]:
    if per_class < 1:
        raise ValueError(f"per_class={per_class}; expected at least 1 sample of each class")
    rng = np.random.default_rng(seed)
    targets = table.targets.numpy()
    return {
        name: np.sort(rng.permutation(np.flatnonzero(targets == number))[:per_class]).tolist()
        for number, name in enumerate(table.classes)
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
    figure: Figure, cells: GridSpecFromSubplotSpec, table: SampleTable, index: int
) -> None:
    shown = [_picture(table, index, stream) for stream in range(len(table.streams))]
    shapes = [picture.pixels.shape for picture in shown if isinstance(picture, Picture)]
    aspect = shapes[0][0] / shapes[0][1] if shapes else 0.75
    for stream, what in enumerate(shown):
        axes = figure.add_subplot(cells[0, stream])
        axes.set(xticks=[], yticks=[])
        caption = _fill(axes, what, aspect)
        axes.set_xlabel(f"{literal(table.streams[stream].name)}\n{caption}", size=6.5, labelpad=2)
        if stream == 0:
            axes.set_title(literal(_shortened(table.ids[index])), size=6.5, loc="left", pad=2)


def _picture(table: SampleTable, index: int, stream: int) -> Picture | str:
    """Return what a cell shows: an image, or a word on why there is none."""
    if not table.present[index, stream]:
        return "absent"
    try:
        return picture(table.read(index, stream), table.streams[stream])
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


class Picture(NamedTuple):
    """A picture, shape (H, W, 3), uint8, and its caption."""

    pixels: np.ndarray
    caption: str


def picture(image: np.ndarray, spec: StreamSpec) -> Picture:
    """Make an image visible.

    Color stays as it is. Depth is color-mapped between the 2nd and 98th percentile of its readings,
    which the caption names with their unit; grey is no reading. Of other streams the first three
    channels, or the first, are stretched between their percentiles.

    Args:
        image: shape (H, W, C), as stored.
        spec: its stream.
    """
    small = _shrunk(image)
    if spec.kind == "depth":
        return _depth_picture(small[..., 0], spec)
    if spec.kind == "color" and image.dtype == np.uint8:
        return Picture(_three_channels(small), "")
    low, high = _range(small[np.isfinite(small)])
    return Picture(
        _three_channels(_stretched(small, low, high)), f"{_span(low, high)}, {spec.channels} ch."
    )


def _shrunk(image: np.ndarray) -> np.ndarray:
    step = -(-max(image.shape[:2]) // _LONGEST_SIDE)
    return image[::step, ::step]


def _depth_picture(depth: np.ndarray, spec: StreamSpec) -> Picture:
    valid = np.isfinite(depth) & (depth > 0)
    low, high = _range(depth[valid])
    mapped = colormaps["viridis"](_stretched(depth, low, high))[..., :3] * 255
    pixels = np.where(valid[..., None], mapped, _NO_READING).astype(np.uint8)
    if not valid.any():
        return Picture(pixels, "no reading")
    return Picture(pixels, f"{_span(low, high)} {spec.unit or 'as stored'}{_lost(valid)}")


def _lost(valid: np.ndarray) -> str:
    share = 1 - valid.mean()
    return f", {share:.0%} none" if share >= 0.005 else ""


def _range(values: np.ndarray) -> tuple[float, float]:
    if not values.size:
        return 0.0, 0.0
    low, high = np.percentile(values, _PERCENTILES)
    return float(low), float(high)


def _span(low: float, high: float) -> str:
    digits = 0 if high >= 100 else 2
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Turn values into uint8, with ``low`` at 0 and ``high`` at 255."""
    clean = np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low)
    stretched = (clean - low) / (high - low) if high > low else np.full_like(clean, 0.5)
    return (stretched.clip(0, 1) * 255).astype(np.uint8)


def _three_channels(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)
