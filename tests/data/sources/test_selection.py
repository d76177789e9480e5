import numpy as np
import pytest
import torch

from manystream.data.source import Source
from manystream.data.sources.selection import SelectedStreams
from tests.data.builders import DEPTH, OTHER, RGB, ArraySource, noise


@pytest.fixture
def whole() -> ArraySource:
    """Three samples: all streams, colour only, all but colour."""
    images = [noise(4, 4), noise(4, 4, 1), noise(4, 4, 2)]
    source = ArraySource(
        (RGB, DEPTH, OTHER), [images, [images[0], None, None], [None, *images[1:]]]
    )
    source.targets = torch.tensor([0, 1, 1])
    return source


def test_samples_with_none_of_the_streams_are_left_out(whole):
    source: Source = SelectedStreams(whole, ["sonar", "depth"])
    assert source.streams == (OTHER, DEPTH)
    assert source.classes == whole.classes
    assert source.ids == ["0", "2"]
    assert source.targets.tolist() == [0, 1]
    assert source.present.tolist() == [[True, True], [True, True]]
    np.testing.assert_array_equal(source.read(1, 0), noise(4, 4, 2))
    np.testing.assert_array_equal(source.read(1, 1), noise(4, 4, 1))


def test_absence_is_kept(whole):
    source = SelectedStreams(whole, ["depth", "rgb"])
    assert source.present.tolist() == [[True, True], [False, True], [True, False]]


def test_what_cannot_be_selected(whole):
    with pytest.raises(ValueError, match="no stream 'lidar' in the data; it has rgb, depth, sonar"):
        SelectedStreams(whole, ["rgb", "lidar"])
    absent = ArraySource((RGB, DEPTH), [[noise(4, 4), None]])
    with pytest.raises(ValueError, match="no sample has any of the streams depth"):
        SelectedStreams(absent, ["depth"])
