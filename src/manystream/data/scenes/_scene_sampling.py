"""Random scenes of a class: what varies within the class, and what must not betray it."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.random import Generator

from manystream.data.scenes import _render as render
from manystream.data.scenes._render import Camera, Floats, Room
from manystream.data.scenes._sensors import GAMMA, Light, Paint

OUTLINES = ("disc", "square")
RELIEFS = ("raised", "recessed")
PATTERNS = ("plain", "stripes", "checks")

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
    lights: tuple[Light, ...]
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


def _sample_lamp(rng: Generator) -> Light:
    """Draw the wall's lamp, as likely from one side as from the opposite one."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(30, 65))
    flat = np.cos(elevation)
    direction = [flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]
    return _sample_light(rng, np.array(direction))


def _sample_daylight(rng: Generator) -> Light:
    """Draw the light on floor and clutter: their shading must not tell where the lamp is."""
    return _sample_light(rng, render.unit(rng.uniform((-1, 0.5, 0.2), (1, 1.5, 1))))


def _sample_light(rng: Generator, direction: Floats) -> Light:
    ambient, tint = rng.uniform(0.25, 0.5), rng.uniform(0.85, 1.0, 3)
    return Light(direction, ambient * tint, (1 - ambient) * tint)


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
    return np.array(colorsys.hsv_to_rgb(*hsv)) ** GAMMA
