"""Rendered RGB-D scenes that need both streams: a data set without a download."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray
from torch import Tensor

from manystream.data import _render as render
from manystream.data._render import Camera, Floats, Hits, Paint, Room
from manystream.data.source import StreamSpec

OUTLINES = ("disc", "square")
RELIEFS = ("raised", "recessed")
PATTERNS = ("plain", "stripes", "checks")
SPLITS = ("train", "val", "test")

COLOR, DEPTH = range(2)
MIN_IMAGE_SIZE = 16
DEPTH_RANGE_M = (0.5, 6.0)


@dataclass(frozen=True)
class Scene:
    """All that a picture of one sample depends on, apart from the sensors' noise.

    Attributes:
        camera: the RGB-D camera; both streams share it.
        room: the surfaces.
        paints: one for each part of the room.
        lights: one for each part of the room.
        exposure: mean of the picture that the camera's automatic exposure aims at, in (0, 1).
    """

    camera: Camera
    room: Room
    paints: tuple[Paint, ...]
    lights: tuple[render.Light, ...]
    exposure: float


def sample_scene(rng: Generator, outline: str, relief: str, pattern: str) -> Scene:
    """Draw a scene of one class; only the relief and its paint depend on the class."""
    camera = _sample_camera(rng)
    reach = np.linalg.norm(camera.position) * np.tan(camera.fov / 2)
    radius = reach * rng.uniform(0.42, 0.62)
    floor = -radius * rng.uniform(1.1, 1.8)
    sign = 1 if relief == "raised" else -1
    solids = (
        render.half_space((0, 0, 1), 0.0),
        _sample_relief(rng, outline, radius, sign),
        render.half_space((0, 1, 0), floor),
        *(_sample_clutter(rng, reach, floor) for _ in range(rng.integers(4))),
    )
    num_clutter = len(solids) - render.CLUTTER
    lamp, daylight = _sample_lamp(rng), _sample_daylight(rng)
    return Scene(
        camera=camera,
        room=Room(solids, recessed=relief == "recessed"),
        paints=(
            _sample_mottle(rng, reach),
            _sample_pattern(rng, pattern, radius),
            _sample_mottle(rng, reach),
            *(_sample_pattern(rng, "plain", radius) for _ in range(num_clutter)),
        ),
        lights=(lamp, lamp, *[daylight] * (1 + num_clutter)),
        exposure=rng.uniform(0.2, 0.4),
    )


def _sample_camera(rng: Generator) -> Camera:
    fov, distance = np.radians(rng.uniform(30, 42)), rng.uniform(1.8, 3.2)
    yaw, pitch, roll = np.radians(rng.uniform((-10, -4, -8), (10, 6, 8)))
    towards = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    aim = np.append(rng.uniform(-0.3, 0.3, 2), 0) * distance * np.tan(fov / 2)
    return Camera(distance * towards, render.look_at(distance * towards, aim, roll), fov)


def _sample_relief(rng: Generator, outline: str, radius: float, sign: int) -> render.Solid:
    """Draw a relief whose slopes no camera sees edge-on: its outline hides whether it is raised."""
    height = radius * rng.uniform(0.36, 0.46)
    if outline == "disc":
        return render.dome(radius, sign * height)
    bevels = height / 1.15 + radius * rng.uniform(0, 0.3, 4)
    return render.block(radius, sign * height, bevels)


def _sample_clutter(rng: Generator, reach: float, floor: float) -> render.Solid:
    size = reach * rng.uniform(0.1, 0.22)
    x, z = reach * rng.uniform((-1.2, 0.25), (1.2, 0.9))
    if rng.random() < 0.5:
        return render.Ball(np.array([x, floor + size, z]), size)
    half = size * rng.uniform(0.6, 1.2, 3)
    center = np.array([x, floor + half[1], z])
    return render.box(center - half, center + half)


def _sample_lamp(rng: Generator) -> render.Light:
    """Draw the wall's lamp, as likely from one side as from the opposite one."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(30, 65))
    flat = np.cos(elevation)
    direction = [flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]
    return _sample_light(rng, np.array(direction))


def _sample_daylight(rng: Generator) -> render.Light:
    """Draw the light on floor and clutter: their shading must not tell where the lamp is."""
    return _sample_light(rng, render.unit(rng.uniform((-1, 0.5, 0.2), (1, 1.5, 1))))


def _sample_light(rng: Generator, direction: Floats) -> render.Light:
    ambient, tint = rng.uniform(0.25, 0.5), rng.uniform(0.85, 1.0, 3)
    return render.Light(direction, ambient * tint, (1 - ambient) * tint)


def _sample_pattern(rng: Generator, pattern: str, radius: float) -> Paint:
    num_waves = PATTERNS.index(pattern)
    angle = rng.uniform(0, np.pi) + np.pi / 2 * np.arange(num_waves)
    frequency = rng.uniform(1.5, 3.5) / (2 * radius)
    waves = frequency * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    colors = [_sample_color(rng, 0.3, 0.9, *value) for value in ((0.2, 0.4), (0.7, 1.0))]
    return Paint(rng.permutation(colors), waves, rng.uniform(0, 2 * np.pi, num_waves), sharpness=3)


def _sample_mottle(rng: Generator, reach: float) -> Paint:
    color = _sample_color(rng, 0.0, 0.4, 0.35, 0.85)
    colors = color * np.array([[1.0], [rng.uniform(0.75, 0.95)]])
    waves = rng.normal(0, 1.5, (2, 2)) / reach
    return Paint(colors, waves, rng.uniform(0, 2 * np.pi, 2), sharpness=0.5)


def _sample_color(
    rng: Generator, min_saturation: float, max_saturation: float, min_value: float, max_value: float
) -> Floats:
    saturation, value = (
        rng.uniform(min_saturation, max_saturation),
        rng.uniform(min_value, max_value),
    )
    return np.array(colorsys.hsv_to_rgb(rng.random(), saturation, value)) ** render.GAMMA


class SceneSource:
    """TODO."""

    streams = (StreamSpec("rgb", 3, "color"), StreamSpec("depth", 1, "depth"))
    classes = tuple("-".join(parts) for parts in product(OUTLINES, RELIEFS, PATTERNS))

    def __init__(
        self,
        num_samples: int,
        image_size: int = 64,
        *,
        split: str = "train",
        seed: int = 0,
        missing: float = 0.0,
    ) -> None:
        _check_arguments(num_samples, image_size, split, missing)
        self.image_size = image_size
        self.ids: Sequence[str] = [f"{split}-{index:06d}" for index in range(num_samples)]
        self._entropy = (seed, SPLITS.index(split))
        rng = self._generator()
        self.targets: Tensor = torch.from_numpy(_balanced_targets(rng, num_samples))
        self.present: Tensor = torch.from_numpy(_draw_present(rng, num_samples, missing))
        self._latest: tuple[int, Scene, Hits] | None = None

    def read(self, index: int, stream: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
        scene, hits = self._trace(index)
        rng = self._generator(index, 1 + stream)
        shape = (self.image_size, self.image_size, -1)
        if stream == COLOR:
            radiance = render.shade(hits, scene.paints, scene.lights)
            return render.sense_color(radiance, scene.exposure, rng).T.reshape(shape)
        return render.sense_depth(hits, rng, self.image_size).reshape(shape)

    def _trace(self, index):
        if self._latest is None or self._latest[0] != index:
            scene = self.scene(index)
            hits = render.trace(scene.room, scene.camera, self.image_size)
            self._latest = index, scene, hits
        return self._latest[1:]

    def scene(self, index: int) -> Scene:
        outline, relief, pattern = self.classes[int(self.targets[index])].split("-")
        return sample_scene(self._generator(index, 0), outline, relief, pattern)

    def _generator(self, *key: int) -> Generator:
        seed, split = self._entropy
        return default_rng(SeedSequence(seed, spawn_key=(split, *key)))


def _check_arguments(num_samples, image_size, split, missing):
    pass


def _balanced_targets(rng: Generator, num_samples: int) -> NDArray[np.int64]:
    return rng.permutation(np.arange(num_samples) % len(SceneSource.classes))


def _draw_present(rng: Generator, num_samples: int, missing: float) -> NDArray[np.bool_]:
    present = np.ones((num_samples, 2), dtype=bool)
    incomplete = rng.permutation(num_samples)[: round(missing * num_samples)]
    present[incomplete, rng.integers(2, size=len(incomplete))] = False
    return present
