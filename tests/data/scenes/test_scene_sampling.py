import pickle
from dataclasses import replace

import numpy as np
import pytest
from numpy.random import default_rng

from manystream.data.scenes import _render as render
from manystream.data.scenes import _sensors as sensors
from manystream.data.scenes._scene_sampling import OUTLINES, PATTERNS, RELIEFS, sample_scene
from tests.data.scenes.rooms import camera_at, relief_room

WHITE = sensors.Paint(np.ones((2, 3)), np.empty((0, 2)), np.empty(0), sharpness=1)


class TestAmbiguity:
    @pytest.mark.parametrize("outline", OUTLINES)
    def test_mirrored_lamp_makes_raised_and_recessed_look_alike(self, outline):
        distant = camera_at(400.0, fov=0.008)
        raised, recessed = (
            render.trace(relief_room(outline, height), distant, 47) for height in (0.4, -0.4)
        )
        strength = np.full(3, 0.6)
        lamp = sensors.Light(render.unit([0.5, 0.3, 0.8]), np.full(3, 0.4), strength)
        opposite = replace(lamp, direction=lamp.direction * [-1, -1, 1])

        def shade(hits, light):
            return sensors.shade(hits, [WHITE] * 3, [light] * 3)

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
