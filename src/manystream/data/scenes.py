"""Things on a table before a colour and a depth camera: a data set without a download.

Ten classes are told by shape, which both cameras see, and by their usual paint. Each camera has its
own troubles: dim or dark rooms, tinted light, other paint; coarse depth with holes. The images are
frozen, the same bits with any NumPy on any CPU: made of uniform numbers by + - * / and square roots
of single values, which IEEE 754 defines; sums, powers and sines differ.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import PCG64, Generator, SeedSequence

from manystream.data.streams import StreamSpec
from manystream.data.table import Column, SampleTable

STREAMS = (StreamSpec("rgb", 3, "color"), StreamSpec("depth", 1, "depth"))
SPLITS = ("train", "val", "test")
Array = Any  # of NumPy, or one of its numbers


class _Thing(NamedTuple):
    height: float
    widths: tuple[int, ...]  # half of it at even steps from foot to top, in %
    edge: float = 0  # how far an edge stands out of its front; 0 is round
    colors: str = ""
    checks: tuple[float, float] = (0, 0)  # changes of colour over half its width, and its height


_THINGS = {
    "ball": _Thing(0.95, (0, 31, 41, 46, 48, 46, 41, 31, 0), 0, "d91f1a e6e6e6", (2.5, 0)),
    "book": _Thing(1.15, (42, 42), 0.2, "2640b3 d9bf33", (1.2, 0)),
    "bottle": _Thing(1.35, (25, 26, 26, 26, 26, 22, 11, 10, 10), 0, "1a8033 d9d9b3", (0, 3)),
    "bowl": _Thing(0.62, (20, 36, 45, 51, 55, 58, 60, 61, 62), 0, "ccccd9 264dbf", (0, 4)),
    "box": _Thing(0.8, (52, 52), 1, "996b38 734d24", (1.5, 0)),
    "can": _Thing(1.1, (27, 27), 0, "bf1a26 bfbfc7", (0, 4)),
    "cone": _Thing(1.15, (52, 46, 40, 34, 28, 22, 16, 10, 4), 0, "f2660d e6e6e6", (0, 4)),
    "lamp": _Thing(1.3, (26, 10, 5, 5, 48, 43, 38, 33, 28), 0, "e6cc59 998033"),
    "pot": _Thing(0.75, (27, 29, 31, 33, 35, 37, 39, 48, 48), 0, "a64d26 733319", (3, 0)),
    "vase": _Thing(1.2, (22, 32, 40, 42, 36, 26, 17, 16, 24), 0, "803399 cca6cc", (2, 4)),
}
CLASSES = tuple(_THINGS)
_USUAL = 0.7  # share of the things that have their class's paint; the others have any
_PITCH = 0.35  # the cameras look down: what is 1 nearer stands so much lower


def scenes(num_samples: Mapping[str, int], image_size: int = 64, *, seed: int = 0) -> SampleTable:
    """List rendered scenes: RGB, uint8, and depth in millimetres, uint16, where 0 is no reading.

    Sample i depends on (seed, split, i) alone. Each ten samples in a row show every class once.

    Args:
        num_samples: of each split, ``"train"``, ``"val"`` or ``"test"``.
        image_size: height and width in pixels.
        seed: of all scenes and all sensor noise.

    Raises:
        ValueError: if a split is none of these, or has no sample.
    """
    if not set(num_samples) <= set(SPLITS) or min(num_samples.values(), default=0) < 1:
        raise ValueError(f"splits are {num_samples}; expected samples of {', '.join(SPLITS)}")
    cells = [(split, i) for split, number in num_samples.items() for i in range(number)]
    columns = tuple(Column(spec, RenderedScenes(spec, image_size, seed), cells) for spec in STREAMS)
    ids = [f"{split}-{i:06d}" for split, i in cells]
    targets = torch.tensor([_target(seed, *cell) for cell in cells])
    return SampleTable(columns, CLASSES, ids, targets, [split for split, _ in cells])


class RenderedScenes(NamedTuple):
    """One stream of rendered scenes; a cell is a split and a number in it."""

    spec: StreamSpec
    image_size: int
    seed: int
    root: None = None

    def read(self, cell: tuple[str, int]) -> Array:
        thing = _THINGS[CLASSES[_target(self.seed, *cell)]]
        scene = _arrange(_generator(self.seed, *cell), thing, self.image_size)
        rng = _generator(self.seed, *cell, 1 + STREAMS.index(self.spec))
        return _take_color(rng, scene) if self.spec.kind == "color" else _take_depth(rng, scene)

    def path(self, cell: tuple[str, int]) -> Path:
        return Path(self.spec.name, f"{cell[0]}-{cell[1]:06d}")

    def stamp(self, cell: tuple[str, int]) -> Hashable:
        return cell


def _generator(seed: int, split: str, *key: int) -> Generator:
    return Generator(PCG64(SeedSequence(seed, spawn_key=(SPLITS.index(split), *key))))


def _target(seed: int, split: str, index: int) -> int:
    return int(_generator(seed, split, index // 10, 0).random(10).argsort()[index % 10])


def _between(rng: Generator, low: Array, high: Array, *shape: int) -> Array:
    return low + (high - low) * rng.random(shape)


def _smooth(rng: Generator, size: int, cells: int) -> Array:
    grid, at = rng.random((cells + 1, cells + 1)), np.arange(size) * cells / size
    i, f = at.astype(int), at % 1
    rows = grid[i] + f[:, None] * (grid[i + 1] - grid[i])
    return rows[:, i] + f * (rows[:, i + 1] - rows[:, i])


def _arrange(rng: Generator, thing: _Thing, size: int) -> tuple[Array, ...]:
    """Set a thing on a table before a wall: its colours, nearness, slopes of that, where it is."""
    x = (2 * np.arange(size)[None] + 1) / size - 1
    y = -x.T
    foot, end = _between(rng, -0.8, -0.62), _between(rng, -0.25, 0.1)
    table, wall = (foot - y) / _PITCH, (foot - end) / _PITCH + _between(rng, -0.4, 0.4) * x
    near = np.maximum(table, wall)
    both = (_paint(rng, None, k * x, y, 0.35) for k in (3, 1))
    color = np.where((near == wall)[..., None], *both)
    color = color * (0.8 + 0.4 * _smooth(rng, size, 9)[..., None])
    odd = _Thing(rng.random() + 0.3, tuple(int(w) for w in _between(rng, 10, 60, 5)))
    for shown, is_odd in [(odd, True)] * (rng.random() < 0.5) + [(thing, False)]:
        scale = _between(rng, 0.3, 0.5) if is_odd else _between(rng, 0.95, 1.15)
        left = _between(rng, -1, 1) if is_odd else _between(rng, -0.2, 0.2)
        at = _between(rng, foot + 0.1, end) if is_odd else foot
        z, inside, a, b = _front(rng, shown, (x - left) / scale, (y - at) / scale)
        z = z * scale + (foot - at) / _PITCH
        seen = inside & (z > near)
        near = np.where(seen, z, near)
        paint = _paint(rng, None if is_odd or rng.random() > _USUAL else shown, a, b, 1)
        color = np.where(seen[..., None], paint, color)
    right, down = np.diff(near, append=near[:, -1:]), np.diff(near, axis=0, append=near[-1:])
    return color, near, right * (size / 2), down * (-size / 2), seen


def _front(rng: Generator, thing: _Thing, x: Array, y: Array) -> tuple[Array, ...]:
    """Return how near a thing's front is, where it is seen, and the place on it, across and up."""
    tilt, turn = _between(rng, -0.12, 0.12), _between(rng, -0.6, 0.6)
    u, v = x + tilt * y, y - tilt * x
    squares = np.array([w * w for w in (*thing.widths, 0)]) / 10_000

    def cut(height: Array) -> tuple[Array, Array]:
        at = np.clip(height / thing.height, 0, 1) * (len(thing.widths) - 1)
        square = squares[at.astype(int)] + at % 1 * np.diff(squares)[at.astype(int)]
        w = np.sqrt(square)
        if thing.edge:
            return thing.edge * np.minimum((u + w) / (1 + turn), (w - u) / (1 - turn)), w
        return np.sqrt(np.maximum(square - u * u, 0)), w

    z, w = cut(height := v + _PITCH * cut(v)[0])
    inside = (np.abs(u) < w) & (height >= 0) & (height <= thing.height)
    back, (rim, top) = (v - thing.height) / _PITCH, cut(np.array(thing.height))
    hollow = ~inside & (np.abs(u) < top) & (np.abs(back) < rim)
    z, inside = np.where(hollow, -back - 0.2, z), inside | hollow
    return z, inside, u / np.maximum(w, 0.01), height / thing.height


def _paint(rng: Generator, usual: _Thing | None, a: Array, b: Array, vivid: float) -> Array:
    grey, colors = _between(rng, 0.1, 0.9), _between(rng, 0.05, 0.9, 2, 3)
    colors, (across, up) = grey + vivid * (colors - grey), np.floor(2 * rng.random(2)) * (2, 4)
    if usual:
        stored = np.array([[*bytes.fromhex(color)] for color in usual.colors.split()])
        colors, (across, up) = stored / 255 * _between(rng, 0.75, 1.25, 2, 3), usual.checks
    changes = np.floor(across * a) + np.floor(up * b)
    return np.where(changes[..., None] % 2 == 0, *colors)


def _take_color(rng: Generator, scene: tuple[Array, ...]) -> Array:
    """Take a picture by a lamp and some light from everywhere; a few rooms are nearly dark."""
    color, near, right, up, thing = scene
    size, lamp = len(near), min(2.4 * rng.random(), 1)
    from_right, from_above = _between(rng, -0.8, 0.8), _between(rng, 0.1, 0.8)
    square = (1 + right * right + up * up) * (1 + from_right * from_right + from_above * from_above)
    lit = np.maximum(1 - from_right * right - from_above * up, 0) / np.sqrt(square)
    shadow = np.roll(thing, -int(np.floor(0.3 * from_right * size)), axis=1) & ~thing
    light = (0.3 + np.where(shadow, 0.25, 0.9) * lit) * (0.6 + 0.8 * _smooth(rng, size, 2))
    tint = _between(rng, 0.6, 1.1, 3) * _between(rng, 0.6, 1.2) * (0.001 + lamp * lamp)
    signal = color * light[..., None] * tint
    noise = rng.random(color.shape) - rng.random(color.shape)
    signal = signal + noise * (0.008 + 0.1 * np.sqrt(signal))
    return np.floor(255 * np.sqrt(np.clip(signal, 0, 1)) + 0.5).astype(np.uint8)


def _take_depth(rng: Generator, scene: tuple[Array, ...]) -> Array:
    """Measure disparity, 1 / distance, in steps; what is nearer casts a shadow to the left."""
    _, near, right, up, _ = scene
    shape, u = near.shape, rng.random()
    metres, sun = _between(rng, 1.2, 1.7) - 0.2 * near, u * u * u * u * (u * u * u * u) * u * u
    noise = rng.random(shape) - rng.random(shape) + 2 * _smooth(rng, len(near), 6) - 1
    steps = np.floor((1 / metres + (0.004 + 0.06 * sun) * noise) / 0.008 + 0.5)
    lost = np.roll(near, -max(1, len(near) // 24), axis=1) - near > 0.4
    lost |= (np.abs(right) + np.abs(up) > 6) & (rng.random(shape) < 0.5)
    lost |= _smooth(rng, len(near), 7) < 0.08 + 0.8 * sun
    lost |= rng.random(shape) < 0.01 + 0.5 * rng.random() * sun
    millimetres = np.floor(125_000 / np.maximum(steps, 13) + 0.5)
    return np.where(lost, 0, millimetres).astype(np.uint16)[..., None]
