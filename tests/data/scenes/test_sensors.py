from dataclasses import replace

import numpy as np
import pytest
from numpy.random import default_rng

from manystream.data.scenes import _render as render
from manystream.data.scenes import _sensors as sensors
from tests.data.scenes.rooms import camera_at, room_with


class TestSensors:
    @pytest.fixture
    def wall(self):
        def at(distance: float) -> render.Hits:
            room = room_with(render.dome(1e-6, 1e-6), False)
            return render.trace(room, camera_at(distance), size=64)

        return at

    @pytest.mark.parametrize("distance", [1.0, 3.0])
    def test_depth_noise_grows_with_squared_distance(self, wall, distance):
        depth = sensors.sense_depth(wall(distance), default_rng(0))
        readings = depth[depth > 0].astype(float)
        deviation = 1.2 + 1.9 * (distance - 0.4) ** 2
        assert readings.mean() == pytest.approx(1000 * distance, abs=deviation / 10)
        assert readings.std() == pytest.approx(deviation, rel=0.1)

    @pytest.mark.parametrize("distance", [0.4, 6.5])
    def test_no_reading_out_of_range(self, wall, distance):
        assert not sensors.sense_depth(wall(distance), default_rng(0)).any()

    def test_no_reading_of_a_surface_seen_edge_on(self, wall):
        hits = wall(2.0)
        edge_on = np.arange(hits.depth.size) % 2 == 0
        hits = replace(hits, facing=np.where(edge_on, 0.05, 0.9))
        depth = sensors.sense_depth(hits, default_rng(0))
        assert not depth[edge_on].any()
        assert np.mean(depth[~edge_on] > 0) > 0.9

    def test_automatic_exposure(self):
        radiance = default_rng(0).uniform(1, 3, (3, 4096))
        for exposure in (0.2, 0.4):
            stored = sensors.sense_color(radiance, exposure, default_rng(1))
            linear = (stored / 255.0) ** 2.2
            assert linear.mean() == pytest.approx(exposure, rel=0.01)
