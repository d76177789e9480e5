from dataclasses import replace

import numpy as np
import pytest

from manystream.data.scenes import _render as render
from manystream.data.scenes._scene_sampling import OUTLINES
from tests.data.scenes.rooms import BEVELS, camera_at, relief_room, room_with


def relief_height(outline: str, height: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The relief as a function of the wall's coordinates, written without any ray."""
    size = abs(height)
    if outline == "disc":
        below = (1 - size**2) / (2 * size)  # Of the sphere's centre under the wall.
        cap = np.sqrt(np.maximum((size + below) ** 2 - x**2 - y**2, 0)) - below
    else:
        right, left, top, bottom = size / BEVELS
        sides = ((1 - x) * right, (1 + x) * left, (1 - y) * top, (1 + y) * bottom)
        cap = np.minimum(size, np.min(sides, axis=0))
    return np.sign(height) * np.maximum(cap, 0)


def march(outline: str, height: float, rays: render.Rays, reach: float) -> np.ndarray:
    """Z-depth where each ray first falls below the height field, by small steps and bisection."""

    def above(t):
        x, y, z = rays.at(t)
        return z > relief_height(outline, height, x, y)

    low, step = np.zeros(rays.directions.shape[1]), reach / 2000
    for _ in range(2000):
        low = np.where(above(low + step), low + step, low)
    high = low + step
    for _ in range(40):
        middle = (low + high) / 2
        low, high = np.where(above(middle), middle, low), np.where(above(middle), high, middle)
    return low


class TestGeometry:
    def test_wall_straight_ahead_has_one_depth(self):
        hits = render.trace(room_with(render.dome(1e-6, 1e-6), False), camera_at(2.5), size=16)
        np.testing.assert_allclose(hits.depth, 2.5, rtol=1e-12)
        np.testing.assert_array_equal(hits.part, render.WALL)

    def test_depth_of_a_tilted_wall(self):
        yaw, fov, size = 0.4, 0.8, 16
        room = room_with(render.dome(1e-6, 1e-6), False)
        hits = render.trace(room, camera_at(2.0, yaw=yaw, fov=fov), size)
        x = np.tan(fov / 2) * ((np.arange(size) + 0.5) / (size / 2) - 1)
        expected = 2.0 * np.cos(yaw) / (np.cos(yaw) + x * np.sin(yaw))
        np.testing.assert_allclose(hits.depth.reshape(size, size), np.tile(expected, (size, 1)))

    @pytest.mark.parametrize("outline", OUTLINES)
    @pytest.mark.parametrize("height", [0.45, -0.45])
    def test_summit_of_a_raised_and_bottom_of_a_recessed_relief(self, outline, height):
        depth = render.trace(relief_room(outline, height), camera_at(5.0), size=31).depth
        assert depth[31 * 31 // 2] == pytest.approx(5.0 - height, abs=1e-12)
        assert (depth.min() if height > 0 else depth.max()) == pytest.approx(5.0 - height)

    @pytest.mark.parametrize("outline", OUTLINES)
    @pytest.mark.parametrize("height", [0.4, -0.4])
    def test_depth_and_normals_match_a_marched_height_field(self, outline, height):
        camera = camera_at(4.0, yaw=0.3, pitch=0.15)
        hits = render.trace(relief_room(outline, height), camera, size=24)
        marched = march(outline, height, render.camera_rays(camera, 24), reach=8.0)
        np.testing.assert_allclose(hits.depth, marched, atol=1e-6)

        x, y, _ = hits.points
        delta = 1e-6
        slope_x = relief_height(outline, height, x + delta, y) - relief_height(
            outline, height, x, y
        )
        slope_y = relief_height(outline, height, x, y + delta) - relief_height(
            outline, height, x, y
        )
        normals = render.unit(np.stack([-slope_x, -slope_y, np.full_like(x, delta)], axis=1)).T
        np.testing.assert_allclose(hits.normals, normals, atol=1e-4)

    @pytest.mark.parametrize(("wall_x", "passes"), [(1.05, False), (0.95, True), (-1.05, False)])
    def test_only_rays_through_the_opening_enter_a_niche(self, wall_x, passes):
        niche = render.block(1.0, -0.4, BEVELS)
        rays = render.Rays(np.array([wall_x + 5, 0, 1]), np.array([[-5.0], [0.0], [-1.0]]))
        wall, inside = render.carve(np.array([1.0]), niche, rays)
        assert np.isfinite(inside[0]) == passes
        assert np.isfinite(wall[0]) != passes

    def test_box_and_ball_in_front_of_the_wall(self):
        room = room_with(render.dome(1e-6, 1e-6), False)
        box = render.box(np.array([-0.3, -0.2, 0.1]), np.array([0.3, 0.2, 0.5]))
        ball = render.Ball(np.array([0.0, 0.0, 1.0]), 0.1)
        centre = 15 * 15 // 2
        boxed = render.trace(replace(room, solids=(*room.solids, box)), camera_at(2.0), 15)
        both = render.trace(replace(room, solids=(*room.solids, box, ball)), camera_at(2.0), 15)
        assert boxed.depth[centre] == pytest.approx(1.5)
        assert both.depth[centre] == pytest.approx(0.9)
        assert both.part[centre] == render.CLUTTER + 1

    def test_camera_sees_right_on_the_right_and_up_on_top(self):
        ball = render.Ball(np.array([0.5, 0.4, 0.2]), 0.1)
        hits = render.trace(room_with(ball, False), camera_at(2.0), 32)
        rows, columns = np.nonzero((hits.part == render.RELIEF).reshape(32, 32))
        assert rows.max() < 16 <= columns.min()
