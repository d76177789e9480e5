import json

import numpy as np
import pytest
import torch

from manystream.data.preprocessing import Preprocessing, normalise, resize, to_tensor
from manystream.data.statistics import StreamStatistics
from tests.data.builders import DEPTH, OTHER, RGB, ramps


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


def test_a_tensor_has_the_images_values_channel_first():
    image = ramps(2, 3)
    found = to_tensor(image)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), image)


def test_depth_takes_the_nearest_pixel_and_the_rest_is_blended():
    steps = torch.tensor([[[0.0, 0.0, 1000.0, 1000.0]]])
    assert resize(steps, DEPTH, (1, 2)).flatten().tolist() == [0, 1000]
    assert resize(steps[:, :, 1:3], DEPTH, (1, 4)).flatten().tolist() == [0, 0, 1000, 1000]
    blended = resize(steps[:, :, 1:3], OTHER, (1, 4)).flatten().tolist()
    assert blended == [0, 250, 750, 1000]


def test_depth_without_a_reading_is_zero_after_normalisation():
    statistics = StreamStatistics((1000.0,), (500.0,))
    depth = torch.tensor([[[0.0, float("nan"), float("inf"), -3.0, 500.0, 2000.0]]])
    assert normalise(depth, DEPTH, statistics).flatten().tolist() == [0, 0, 0, 0, -1, 2]
    zeros = torch.zeros(1, 1, 1)
    assert normalise(zeros, OTHER, statistics).flatten().tolist() == [-2]
