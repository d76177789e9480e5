import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from manystream.data import _render as render
from manystream.data.scenes import OUTLINES, PATTERNS, RELIEFS, SceneSource, sample_scene
from manystream.data.source import Source

COLOR, DEPTH = 0, 1
WHITE = render.Paint(np.ones((2, 3)), np.empty((0, 2)), np.empty(0), sharpness=1)
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


@pytest.fixture(scope="module")
def source() -> SceneSource:
    return SceneSource(36, seed=3)


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


class TestAmbiguity:
    @pytest.mark.parametrize("outline", OUTLINES)
    def test_mirrored_lamp_makes_raised_and_recessed_look_alike(self, outline):
        distant = camera_at(400.0, fov=0.008)
        raised, recessed = (
            render.trace(relief_room(outline, height), distant, 47) for height in (0.4, -0.4)
        )
        strength = np.full(3, 0.6)
        lamp = render.Light(render.unit([0.5, 0.3, 0.8]), np.full(3, 0.4), strength)
        opposite = replace(lamp, direction=lamp.direction * [-1, -1, 1])

        def shade(hits, light):
            return render.shade(hits, [WHITE] * 3, [light] * 3)

        difference = np.abs(shade(raised, lamp) - shade(recessed, opposite))
        assert difference.max() < 0.01
        assert np.mean(np.abs(shade(raised, lamp) - shade(recessed, lamp))) > 0.02
        assert np.max(recessed.depth - raised.depth) == pytest.approx(0.8, abs=1e-3)

    @pytest.mark.parametrize("outline", OUTLINES)
    def test_outline_is_the_same_raised_or_recessed(self, outline):
        for seed in range(30):
            raised, recessed = (
                sample_scene(default_rng(seed), outline, relief, "plain") for relief in RELIEFS
            )
            seen = [
                render.trace(scene.room, scene.camera, 48).part == render.RELIEF
                for scene in (raised, recessed)
            ]
            assert np.mean(seen[0] != seen[1]) < 0.002

    def test_paint_and_lights_do_not_depend_on_the_relief(self):
        raised, recessed = (sample_scene(default_rng(5), "disc", r, "checks") for r in RELIEFS)
        assert pickle.dumps((raised.camera, raised.paints, raised.lights)) == pickle.dumps(
            (recessed.camera, recessed.paints, recessed.lights)
        )

    def test_geometry_does_not_depend_on_the_pattern(self):
        scenes = [sample_scene(default_rng(5), "square", "raised", p) for p in PATTERNS]
        depths = [render.trace(scene.room, scene.camera, 32).depth for scene in scenes]
        np.testing.assert_array_equal(depths[0], depths[1])
        np.testing.assert_array_equal(depths[0], depths[2])

    @pytest.mark.parametrize(
        ("pattern", "num_colors"), [("plain", 1), ("stripes", 2), ("checks", 2)]
    )
    def test_patterns_show_in_colour(self, pattern, num_colors):
        scene = sample_scene(default_rng(0), "square", "raised", pattern)
        side = np.linspace(0, 4, 200)
        albedo = scene.paints[render.RELIEF].albedo(
            np.stack(np.meshgrid(side, side)).reshape(2, -1)
        )
        colors, counts = np.unique(albedo.round(6), axis=1, return_counts=True)
        assert np.sum(counts > 0.2 * albedo.shape[1]) == num_colors
        assert colors.min() >= 0
        assert colors.max() <= 1


class TestSensors:
    @pytest.fixture
    def wall(self):
        def at(distance: float) -> render.Hits:
            room = room_with(render.dome(1e-6, 1e-6), False)
            return render.trace(room, camera_at(distance), size=64)

        return at

    @pytest.mark.parametrize("distance", [1.0, 3.0])
    def test_depth_noise_grows_with_squared_distance(self, wall, distance):
        depth = render.sense_depth(wall(distance), default_rng(0))
        readings = depth[depth > 0].astype(float)
        deviation = 1.2 + 1.9 * (distance - 0.4) ** 2
        assert readings.mean() == pytest.approx(1000 * distance, abs=deviation / 10)
        assert readings.std() == pytest.approx(deviation, rel=0.1)

    @pytest.mark.parametrize("distance", [0.4, 6.5])
    def test_no_reading_out_of_range(self, wall, distance):
        assert not render.sense_depth(wall(distance), default_rng(0)).any()

    def test_no_reading_of_a_surface_seen_edge_on(self, wall):
        hits = wall(2.0)
        edge_on = np.arange(hits.depth.size) % 2 == 0
        hits = replace(hits, facing=np.where(edge_on, 0.05, 0.9))
        depth = render.sense_depth(hits, default_rng(0))
        assert not depth[edge_on].any()
        assert np.mean(depth[~edge_on] > 0) > 0.9

    def test_automatic_exposure(self):
        radiance = default_rng(0).uniform(1, 3, (3, 4096))
        for exposure in (0.2, 0.4):
            stored = render.sense_color(radiance, exposure, default_rng(1))
            linear = (stored / 255.0) ** 2.2
            assert linear.mean() == pytest.approx(exposure, rel=0.01)


class TestSceneSource:
    def test_is_a_source(self, source):
        checked: Source = source
        assert [spec.name for spec in checked.streams] == ["rgb", "depth"]
        assert len(checked.classes) == len(set(checked.classes)) == 12
        assert len(checked.ids) == len(set(checked.ids)) == 36
        assert checked.targets.dtype == torch.int64
        assert checked.targets.shape == (36,)
        assert checked.present.dtype == torch.bool
        assert checked.present.shape == (36, 2)
        assert checked.present.all()

    @pytest.mark.parametrize("size", [16, 33])
    def test_shapes_and_types(self, size):
        small = SceneSource(1, image_size=size)
        color, depth = small.read(0, COLOR), small.read(0, DEPTH)
        assert (color.shape, color.dtype) == ((size, size, 3), np.uint8)
        assert (depth.shape, depth.dtype) == ((size, size, 1), np.uint16)

    def test_depth_is_in_millimetres_with_zeros_for_holes(self, source):
        depth = np.stack([source.read(i, DEPTH) for i in range(36)])
        readings = depth[depth > 0]
        assert readings.min() >= 500
        assert readings.max() <= 6000
        assert 1200 < np.median(readings) < 3200
        assert 0.001 < np.mean(depth == 0) < 0.1

    def test_images_do_not_depend_on_the_order_of_reading(self, source):
        forward = [(source.read(i, COLOR), source.read(i, DEPTH)) for i in range(12)]
        other = pickle.loads(pickle.dumps(SceneSource(36, seed=3)))
        for i in reversed(range(12)):
            np.testing.assert_array_equal(other.read(i, DEPTH), forward[i][DEPTH])
        for i in (7, 2, 11):
            np.testing.assert_array_equal(other.read(i, COLOR), forward[i][COLOR])

    def test_a_longer_set_begins_with_the_shorter_one(self, source):
        longer = SceneSource(100, seed=3)
        assert torch.equal(longer.targets[:36], source.targets)
        np.testing.assert_array_equal(longer.read(35, COLOR), source.read(35, COLOR))

    def test_size_changes_the_sampling_of_a_scene_only(self, source):
        large = SceneSource(36, image_size=128, seed=3)
        small_depth, large_depth = (
            np.median(s.read(4, DEPTH)[s.read(4, DEPTH) > 0]) for s in (source, large)
        )
        assert large_depth == pytest.approx(small_depth, rel=0.01)

    @pytest.mark.parametrize("num_samples", [1, 12, 240, 245])
    def test_classes_are_balanced(self, num_samples):
        counts = torch.bincount(SceneSource(num_samples).targets, minlength=12)
        assert counts.max() - counts.min() <= 1

    def test_classes_are_shuffled(self):
        assert not torch.equal(SceneSource(24).targets, torch.arange(24) % 12)

    def test_splits_and_seeds_have_scenes_of_their_own(self):
        sources = [SceneSource(20, 16, split=split) for split in ("train", "val", "test")]
        sources.append(SceneSource(20, 16, seed=1))
        images = {s.read(i, COLOR).tobytes() for s in sources for i in range(20)}
        assert len(images) == 80
        assert len({i for s in sources[:3] for i in s.ids}) == 60

    @pytest.mark.parametrize("missing", [0.0, 0.25, 1.0])
    def test_missing_share_lacks_exactly_one_stream(self, missing):
        present = SceneSource(200, missing=missing).present
        assert present.any(dim=1).all()
        assert int((~present).any(dim=1).sum()) == 200 * missing
        if missing:
            assert (~present).any(dim=0).all()

    def test_missing_changes_no_image(self, source):
        lossy = SceneSource(36, seed=3, missing=0.5)
        assert torch.equal(lossy.targets, source.targets)
        index = int(lossy.present.all(dim=1).nonzero()[0])
        np.testing.assert_array_equal(lossy.read(index, DEPTH), source.read(index, DEPTH))

    def test_reading_an_absent_stream_is_an_error(self):
        lossy = SceneSource(4, missing=1.0)
        stream = int((~lossy.present[2]).nonzero())
        with pytest.raises(ValueError, match=rf"{lossy.streams[stream].name} .* train-000002"):
            lossy.read(2, stream)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_samples": 0}, "num_samples is 0; expected at least 1"),
            ({"image_size": 8}, "image_size is 8; expected at least 16"),
            ({"split": "dev"}, "split is 'dev'; expected one of train, val, test"),
            ({"missing": 1.5}, "missing is 1.5"),
            ({"missing": -0.1}, "missing is -0.1"),
            ({"missing": float("nan")}, "missing is nan"),
        ],
    )
    def test_arguments_out_of_range(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            SceneSource(**{"num_samples": 2, **arguments})
