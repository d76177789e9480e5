import pickle

import numpy as np
import pytest
import torch

from manystream.data.scenes import SceneSource

COLOR, DEPTH = 0, 1


@pytest.fixture(scope="module")
def source() -> SceneSource:
    return SceneSource(36, seed=3)


class TestSceneSource:
    def test_is_a_source(self, source):
        checked = source
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
