import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from manystream.data.preprocessing import Preprocessing, normalise, resize
from manystream.data.statistics import StreamStatistics
from tests.data.builders import DEPTH, OTHER, RGB, noise, ramps


def test_preprocessing_survives_json():
    statistics = (
        StreamStatistics((1.0, 0.1, 3.0), (2.0, 1 / 3, 1.0)),
        StreamStatistics((5.0,), (2.0,)),
    )
    for size in (224, (240, 320)):
        preprocessing = Preprocessing(size, (RGB, DEPTH), statistics)
        text = json.dumps(preprocessing.to_dict())
        assert Preprocessing.from_dict(json.loads(text)) == preprocessing


def test_preprocessing_is_checked():
    one = StreamStatistics((0.0,), (1.0,))
    with pytest.raises(ValueError, match="image_size=0"):
        Preprocessing(0, (DEPTH,), (one,))
    with pytest.raises(ValueError, match=r"have \[1\] channels; expected \[3\]"):
        Preprocessing(8, (RGB,), (one,))
    with pytest.raises(ValueError, match=r"have \[1\] channels; expected \[1, 1\]"):
        Preprocessing(8, (DEPTH, DEPTH), (one,))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("spec", [OTHER, DEPTH])
def test_at_its_own_size_an_image_is_copied(dtype, spec):
    image = (ramps(2, 3) * 200).astype(dtype)
    found = resize(image, spec, (2, 3))
    assert found.dtype == dtype
    assert found.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(found, image)
    assert not np.shares_memory(found, image)


def test_depth_takes_the_nearest_pixel_and_the_rest_is_blended():
    steps = np.array([[0, 0, 1000, 1000]], np.uint16)[..., None]
    assert resize(steps, DEPTH, (1, 2)).flatten().tolist() == [0, 1000]
    assert resize(steps[:, 1:3], DEPTH, (1, 4)).flatten().tolist() == [0, 0, 1000, 1000]
    assert resize(steps[:, 1:3], OTHER, (1, 4)).flatten().tolist() == [0, 250, 750, 1000]
    narrow = (steps[:, 1:3] // 10).astype(np.uint8)
    assert resize(narrow, OTHER, (1, 4)).flatten().tolist() == [0, 25, 75, 100]


# Of a float image whose result is one pixel wide, torch (2.11, 2.13) blends only the first rows.
@given(lengths=st.tuples(*[st.integers(1, 60)] * 3, st.integers(2, 60)))
def test_resizing_is_what_torch_does_rounded_to_the_dtype(lengths):
    height, width, *size = lengths
    image = noise(height, width, 2).astype(np.uint16) * 7
    full = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    nearest = F.interpolate(full, size, mode="nearest-exact")[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(resize(image, DEPTH, tuple(size)), nearest)
    blended = F.interpolate(full, size, mode="bilinear", antialias=True)[0]
    blended = blended.permute(1, 2, 0).numpy()
    floats = resize(image.astype(np.float32), OTHER, tuple(size))
    np.testing.assert_allclose(floats, blended, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(resize(image, OTHER, tuple(size)), floats.round())
    narrow = resize((image // 7).astype(np.uint8), OTHER, tuple(size))
    assert narrow.dtype == np.uint8
    assert np.abs(narrow - blended / 7).max() <= 1 + 1e-3


def test_depth_without_a_reading_is_zero_after_normalisation():
    statistics = StreamStatistics((1000.0,), (500.0,))
    depth = torch.tensor([[[0.0, float("nan"), float("inf"), -3.0, 500.0, 2000.0]]])
    assert normalise(depth, DEPTH, statistics).flatten().tolist() == [0, 0, 0, 0, -1, 2]
    zeros = torch.zeros(1, 1, 1)
    assert normalise(zeros, OTHER, statistics).flatten().tolist() == [-2]
