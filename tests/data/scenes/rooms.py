"""Rooms with a simple relief, and cameras on them, that the rendering tests share."""

import numpy as np

from manystream.data.scenes import _render as render

BEVELS = np.array([0.3, 0.4, 0.35, 0.5])


def camera_at(distance: float, yaw: float = 0.0, pitch: float = 0.0, fov: float = 0.7):
    towards = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    position = distance * towards
    return render.Camera(position, render.look_at(position, np.zeros(3), roll=0.0), fov)


def room_with(relief: render.Solid, recessed: bool) -> render.Room:
    wall, floor = render.half_space((0, 0, 1), 0.0), render.half_space((0, 1, 0), -100.0)
    return render.Room((wall, relief, floor), recessed)


def relief_room(outline: str, height: float) -> render.Room:
    solid = render.dome(1.0, height) if outline == "disc" else render.block(1.0, height, BEVELS)
    return room_with(solid, recessed=height < 0)
