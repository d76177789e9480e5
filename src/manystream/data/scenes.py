"""Rendered RGB-D scenes that need both streams: a data set without a download."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

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

DEPTH = 1
MIN_IMAGE_SIZE = 16

Interval: TypeAlias = tuple[float, float]


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
    """Draw a scene of one class; nothing but the relief and its paint depends on the class.

    Args:
        rng: source of all that varies within a class.
        outline: one of ``OUTLINES``.
        relief: one of ``RELIEFS``.
        pattern: one of ``PATTERNS``.
    """
    camera = _sample_camera(rng)
    view_radius = np.linalg.norm(camera.position) * np.tan(camera.fov / 2)
    radius = view_radius * rng.uniform(0.42, 0.62)
    room = _sample_room(rng, outline, relief, radius, view_radius)
    num_clutter = len(room.solids) - render.CLUTTER
    clutter_patterns = rng.integers(len(PATTERNS), size=num_clutter)
    lamp, daylight = _sample_lamp(rng), _sample_daylight(rng)
    return Scene(
        camera=camera,
        room=room,
        paints=(
            _sample_mottle(rng, view_radius),
            _sample_pattern(rng, pattern, radius),
            _sample_mottle(rng, view_radius),
            *(_sample_pattern(rng, PATTERNS[number], radius) for number in clutter_patterns),
        ),
        lights=(lamp, lamp, *[daylight] * (1 + num_clutter)),
        exposure=rng.uniform(0.2, 0.4),
    )


def _sample_room(
    rng: Generator, outline: str, relief: str, radius: float, view_radius: float
) -> Room:
    floor = -radius * rng.uniform(1.1, 1.8)
    solids = (
        render.half_space((0, 0, 1), 0.0),
        _sample_relief(rng, outline, relief, radius),
        render.half_space((0, 1, 0), floor),
        *(_sample_clutter(rng, view_radius, floor) for _ in range(rng.integers(4))),
    )
    return Room(solids, recessed=relief == "recessed")


def _sample_camera(rng: Generator) -> Camera:
    fov, distance = np.radians(rng.uniform(32, 44)), rng.uniform(1.9, 2.7)
    yaw, pitch, roll = np.radians(rng.uniform((-10, -4, -8), (10, 6, 8)))
    towards = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    aim = np.append(rng.uniform(-0.3, 0.3, 2), 0) * distance * np.tan(fov / 2)
    return Camera(distance * towards, render.look_at(distance * towards, aim, roll), fov)


def _sample_relief(rng: Generator, outline: str, relief: str, radius: float) -> render.Solid:
    """Draw a relief of slopes below 50°: no view sees past its rim, so its outline betrays nothing.

    Each side of a block slants differently: no view knows its bevels, so parallax betrays little.
    """
    height = radius * rng.uniform(0.36, 0.46)
    signed_height = height if relief == "raised" else -height
    if outline == "disc":
        return render.dome(radius, signed_height)
    bevels = height / 1.15 + radius * rng.uniform(0, 0.3, 4)
    return render.block(radius, signed_height, bevels)


def _sample_clutter(rng: Generator, view_radius: float, floor: float) -> render.Solid:
    size = view_radius * rng.uniform(0.1, 0.22)
    x, z = view_radius * rng.uniform((-1.2, 0.25), (1.2, 0.9))
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
    colors = [_sample_color(rng, (0.3, 0.9), value) for value in ((0.3, 0.55), (0.6, 1.0))]
    return Paint(rng.permutation(colors), waves, rng.uniform(0, 2 * np.pi, num_waves), sharpness=3)


def _sample_mottle(rng: Generator, view_radius: float) -> Paint:
    color = _sample_color(rng, saturation=(0.0, 0.4), value=(0.35, 0.85))
    colors = color * np.array([[1.0], [rng.uniform(0.75, 0.95)]])
    waves = rng.normal(0, 1.5, (2, 2)) / view_radius
    return Paint(colors, waves, rng.uniform(0, 2 * np.pi, 2), sharpness=0.5)


def _sample_color(rng: Generator, saturation: Interval, value: Interval) -> Floats:
    hsv = rng.random(), rng.uniform(*saturation), rng.uniform(*value)
    return np.array(colorsys.hsv_to_rgb(*hsv)) ** render.GAMMA


class SceneSource:
    """Rendered RGB-D scenes of twelve classes that neither stream can tell apart alone.

    A class is an outline (disc, square) × a relief (raised, recessed) × a pattern (plain,
    stripes, checks), for example ``"disc-raised-stripes"``: a painted dome, block, bowl or niche
    in a wall. Both streams show the outline, so each alone is bounded from above:

    - Depth cannot show the pattern, which is paint: at most 1/3 of the samples, exactly.
    - Colour cannot show the relief: a bowl lit from the left has the shading of a dome lit from
      the right, and the wall's lamp is anywhere. At most 1/2, and a little more than that by
      what perspective betrays.
    - Both together tell all classes apart.

    A four-layer CNN, 10 epochs on 3000 samples of 64×64, was right on 0.33 of new samples by
    depth, 0.53 by colour and 0.98 by both. Holes were set to the mean depth: left at 0, they
    outweigh the relief.

    Sample i depends on ``(seed, split, i)`` alone, whichever is read first. Classes are balanced
    to within one sample. Colour is RGB, uint8 (H, W, 3); depth is the distance along the optical
    axis in millimetres, 0 = no reading, uint16 (H, W, 1).

    Args:
        num_samples: number of samples N.
        image_size: height and width in pixels, at least 16.
        split: ``"train"``, ``"val"`` or ``"test"``; each has scenes of its own.
        seed: of all scenes and all sensor noise.
        missing: share of samples, in [0, 1], that lack one stream, chosen uniformly.

    Attributes:
        streams, classes: the same for every instance.
        image_size: as given.
        ids: ``"<split>-<i>"`` for each sample.
        targets: class of each sample, shape (N,), int64.
        present: which streams each sample has, shape (N, 2), bool.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> source = SceneSource(24, split="val")
        >>> source.read(0, stream=1).shape
        (64, 64, 1)
    """

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
        self.ids = [f"{split}-{index:06d}" for index in range(num_samples)]
        self._seed, self._split = seed, SPLITS.index(split)
        rng = self._generator()
        self.targets = _balanced_targets(rng, num_samples)
        self.present = _draw_present(rng, num_samples, missing)
        self._latest: tuple[int, Scene, Hits] | None = None

    def read(self, index: int, stream: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Render one stream of one sample.

        Args:
            index: number of the sample.
            stream: 0 for colour, 1 for depth.

        Returns:
            Shape (H, W, 3), uint8, or (H, W, 1), uint16 millimetres.

        Raises:
            ValueError: if the sample lacks the stream.
        """
        if not self.present[index, stream]:
            raise ValueError(f"{self.streams[stream].name} of sample {self.ids[index]} is absent")
        scene, hits = self._trace(index)
        rng = self._generator(index, 1 + stream)
        shape = (self.image_size, self.image_size, self.streams[stream].channels)
        if stream == DEPTH:
            return render.sense_depth(hits, rng).reshape(shape)
        radiance = render.shade(hits, scene.paints, scene.lights)
        return render.sense_color(radiance, scene.exposure, rng).T.reshape(shape)

    def _trace(self, index: int) -> tuple[Scene, Hits]:
        """Cast a sample's rays once for streams that are read one after the other."""
        latest = self._latest
        if latest is None or latest[0] != index:
            scene = self._scene(index)
            hits = render.trace(scene.room, scene.camera, self.image_size)
            self._latest = latest = (index, scene, hits)
        return latest[1:]

    def _scene(self, index: int) -> Scene:
        names = self.classes[int(self.targets[index])].split("-")
        return sample_scene(self._generator(index, 0), *names)

    def _generator(self, *key: int) -> Generator:
        return default_rng(SeedSequence(self._seed, spawn_key=(self._split, *key)))


def _check_arguments(num_samples: int, image_size: int, split: str, missing: float) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; expected at least 1")
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(f"image_size is {image_size}; expected at least {MIN_IMAGE_SIZE} pixels")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    if not 0 <= missing <= 1:
        raise ValueError(f"missing is {missing}; expected a share of the samples in [0, 1]")


def _balanced_targets(rng: Generator, num_samples: int) -> Tensor:
    """Each class once in every round of samples, so that a longer set begins like a shorter one."""
    num_classes = len(SceneSource.classes)
    rounds = [rng.permutation(num_classes) for _ in range(0, num_samples, num_classes)]
    return torch.from_numpy(np.concatenate(rounds)[:num_samples])


def _draw_present(rng: Generator, num_samples: int, missing: float) -> Tensor:
    present = np.ones((num_samples, len(SceneSource.streams)), dtype=bool)
    incomplete = rng.permutation(num_samples)[: round(missing * num_samples)]
    present[incomplete, rng.integers(len(SceneSource.streams), size=len(incomplete))] = False
    return torch.from_numpy(present)
