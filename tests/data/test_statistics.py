import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manystream.data.statistics import StreamStatistics, image_moments, pooled
from tests.data.builders import DEPTH, OTHER


@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 6), max_size=8))
def test_merged_moments_are_those_of_all_pixels(seed, sizes):
    rng = np.random.default_rng(seed)
    images = [rng.normal(1e6, 3, (size, 2, 2)) for size in sizes]
    moments = [image_moments(image, OTHER) for image in images]
    pixels = np.concatenate([np.zeros((0, 2)), *(image.reshape(-1, 2) for image in images)])
    counts = np.sum([np.zeros(2), *(count for count, _, _ in moments)], axis=0)
    assert counts.tolist() == [len(pixels)] * 2
    found = pooled(moments, num_channels=2)
    if len(pixels):
        np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.std, pixels.std(axis=0), rtol=1e-9)
    else:
        assert found == StreamStatistics((0.0, 0.0), (1.0, 1.0))


def test_only_readings_count_in_depth():
    depth = np.array([[0, np.nan, np.inf], [-1, 2, 4]], np.float32)[..., None]
    moments = image_moments(depth, DEPTH)
    assert moments[0].tolist() == [2]
    assert pooled([moments], 1) == StreamStatistics((3.0,), (1.0,))


@pytest.mark.parametrize(
    ("mean", "std"), [((1.0,), (0.0,)), ((1.0,), ()), ((1.0,), (float("nan"),))]
)
def test_statistics_that_cannot_normalise(mean, std):
    with pytest.raises(ValueError, match="one positive standard deviation per channel"):
        StreamStatistics(mean, std)
