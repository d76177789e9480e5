"""Analytic ray casting of a room with a relief in its wall, and the cameras that look at it.

Wall coordinates, in metres: the wall is the plane z = 0, x points right, y up and z out of the
wall; the origin is the relief's centre. Every surface bounds a convex solid, wall and floor too.
A ray advances by one along the optical axis for each unit of its parameter, so the parameter of a
hit *is* its z-depth. P is the number of pixels H·W; vectors are stored component first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

WALL, RELIEF, FLOOR, CLUTTER = range(4)
"""Numbers of a room's parts; clutter has every number from ``CLUTTER`` on."""

_NEARLY_PARALLEL = 1e-12


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with square pixels and a square image.

    Attributes:
        position: in wall coordinates, shape (3,).
        axes: unit vectors right, down and forward as rows, shape (3, 3).
        fov: full angle of view, radians.
    """

    position: Floats
    axes: Floats
    fov: float


@dataclass(frozen=True)
class Rays:
    """Rays of all pixels, row by row.

    Attributes:
        origin: shape (3,).
        directions: with a component of 1 along the optical axis, shape (3, P).
    """

    origin: Floats
    directions: Floats

    def at(self, depth: Floats) -> Floats:
        """Points at z-depth ``depth`` of shape (P,); shape (3, P)."""
        return self.origin[:, None] + depth * self.directions


@dataclass(frozen=True)
class Ball:
    """A ball around ``center``, shape (3,)."""

    center: Floats
    radius: float

    def crossing(self, rays: Rays) -> tuple[Floats, Floats]:
        """Parameters where each ray enters and leaves, shape (P,); NaN where it misses."""
        offset = rays.origin - self.center
        a = np.einsum("ip,ip->p", rays.directions, rays.directions)
        middle = -(offset @ rays.directions) / a
        half_squared = middle**2 - (offset @ offset - self.radius**2) / a
        half = np.sqrt(np.where(half_squared < 0, np.nan, half_squared))
        return middle - half, middle + half

    def normals(self, points: Floats) -> Floats:
        """Outward unit normals at K points of the surface, shape (3, K)."""
        return (points - self.center[:, None]) / self.radius


@dataclass(frozen=True)
class Polyhedron:
    """The intersection of K half-spaces n · p <= offset.

    Attributes:
        planes: outward unit normals n, shape (K, 3).
        offsets: distances of the planes from the origin, shape (K,).
    """

    planes: Floats
    offsets: Floats

    def crossing(self, rays: Rays) -> tuple[Floats, Floats]:
        """Parameters where each ray enters and leaves, shape (P,); enter > leave at a miss."""
        outside = self.planes @ rays.origin - self.offsets
        outward = self.planes @ rays.directions
        outward[outward == 0] = _NEARLY_PARALLEL
        t = -outside[:, None] / outward
        enter = np.where(outward < 0, t, -np.inf).max(axis=0)
        leave = np.where(outward > 0, t, np.inf).min(axis=0)
        return enter, leave

    def normals(self, points: Floats) -> Floats:
        """Outward unit normals at K points of the surface, shape (3, K)."""
        facet = (self.planes @ points - self.offsets[:, None]).argmax(axis=0)
        normals: Floats = self.planes[facet].T
        return normals


Solid: TypeAlias = Ball | Polyhedron


@dataclass(frozen=True)
class Room:
    """What a camera can see. Each of its rays must meet the wall or the floor.

    Attributes:
        solids: wall, relief, floor, then clutter.
        recessed: the relief is carved out of the wall instead of standing on it.
    """

    solids: tuple[Solid, ...]
    recessed: bool


@dataclass(frozen=True)
class Hits:
    """What each ray meets first.

    Attributes:
        depth: z-depth in metres, shape (P,).
        part: number of the room's part, shape (P,).
        points: in wall coordinates, shape (3, P).
        normals: unit normals towards the camera's side, shape (3, P).
        facing: cosine between normal and line of sight, shape (P,).
    """

    depth: Floats
    part: NDArray[np.intp]
    points: Floats
    normals: Floats
    facing: Floats


def unit(vector: ArrayLike) -> Floats:
    """Scale a vector, or each row of a matrix, to length 1."""
    array: Floats = np.asarray(vector, dtype=np.float64)
    length: Floats = np.linalg.norm(array, axis=-1, keepdims=True)
    return array / length


def look_at(position: Floats, target: Floats, roll: float) -> Floats:
    """Axes of a camera at ``position`` that looks at ``target``; see :class:`Camera`."""
    forward = unit(target - position)
    right = unit(np.cross(forward, (0.0, 1.0, 0.0)))
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    return np.stack([c * right + s * down, c * down - s * right, forward])


def camera_rays(camera: Camera, size: int) -> Rays:
    """Rays through the centres of ``size`` × ``size`` pixels."""
    axis = ((2 * np.arange(size) + 1) / size - 1) * np.tan(camera.fov / 2)
    x, y = np.meshgrid(axis, axis)
    pixels = np.stack([x.ravel(), y.ravel(), np.ones(size * size)])
    return Rays(camera.position, camera.axes.T @ pixels)


def half_space(normal: ArrayLike, offset: float) -> Polyhedron:
    """Everything behind the plane n · p = offset."""
    return Polyhedron(unit(normal)[None], np.array([offset]))


def box(low: Floats, high: Floats) -> Polyhedron:
    """An axis-aligned box between two corners of shape (3,)."""
    return Polyhedron(np.concatenate([np.eye(3), -np.eye(3)]), np.concatenate([high, -low]))


def dome(radius: float, height: float) -> Ball:
    """The ball whose cap on the wall has this radius and height; a bowl where height < 0."""
    curvature_radius = (radius**2 + height**2) / (2 * abs(height))
    center_z = np.sign(height) * (abs(height) - curvature_radius)
    return Ball(np.array([0.0, 0.0, center_z]), curvature_radius)


def block(radius: float, height: float, bevels: Floats) -> Polyhedron:
    """A square block of half width ``radius`` with slanted sides; a niche where height < 0.

    Args:
        radius: half the side length where the block meets the wall.
        height: of the flat top above the wall; its depth in the wall where negative.
        bevels: widths of the slanted sides seen from the front: right, left, top, bottom.
    """
    sides = abs(height) * np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
    slanted = np.column_stack([sides, np.sign(height) * bevels])
    lengths = np.linalg.norm(slanted, axis=1)
    planes = np.vstack([slanted / lengths[:, None], (0, 0, np.sign(height))])
    return Polyhedron(planes, abs(height) * np.append(radius / lengths, 1))


def first_hit(solid: Solid, rays: Rays) -> Floats:
    """Z-depth where each ray meets a solid from outside, infinity where it does not; shape (P,)."""
    enter, leave = solid.crossing(rays)
    return np.where((enter > 0) & (enter <= leave), enter, np.inf)


def carve(wall_depth: Floats, hollow: Solid, rays: Rays) -> tuple[Floats, Floats]:
    """Let rays that pass a hollow's opening in the wall go on to its inner surface.

    Args:
        wall_depth: z-depth of the intact wall, shape (P,).
        hollow: the solid taken out of the wall.
        rays: P rays.

    Returns:
        Z-depth of what is left of the wall and of the hollow, infinity where a ray meets the
        other; both of shape (P,).
    """
    enter, leave = hollow.crossing(rays)
    opening = (enter <= wall_depth) & (wall_depth < leave)
    return np.where(opening, np.inf, wall_depth), np.where(opening, leave, np.inf)


def trace(room: Room, camera: Camera, size: int) -> Hits:
    """Cast a ray through each of ``size`` × ``size`` pixels."""
    rays = camera_rays(camera, size)
    depths = np.stack([first_hit(solid, rays) for solid in room.solids])
    if room.recessed:
        depths[WALL], depths[RELIEF] = carve(depths[WALL], room.solids[RELIEF], rays)
    depth, part = depths.min(axis=0), depths.argmin(axis=0)
    points = rays.at(depth)
    normals = _visible_normals(room, points, part)
    cosine = -np.einsum("ip,ip->p", normals, rays.directions)
    return Hits(depth, part, points, normals, cosine / np.linalg.norm(rays.directions, axis=0))


def _visible_normals(room: Room, points: Floats, part: NDArray[np.intp]) -> Floats:
    normals = np.empty_like(points)
    for number, solid in enumerate(room.solids):
        seen = np.flatnonzero(part == number)
        inwards = room.recessed and number == RELIEF
        normals[:, seen] = solid.normals(points[:, seen]) * (-1 if inwards else 1)
    return normals
