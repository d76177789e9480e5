import numpy as np
import pytest

from manystream.data.folder import unlabelled
from manystream.data.image import UnreadableImageError
from tests.data.builders import DEPTH, OTHER, RGB, noise, write_image


@pytest.fixture
def folder(tmp_path):
    """Sample a has both streams, b colour only, c depth only."""
    write_image(tmp_path / "rgb/a.png", noise(4, 5))
    write_image(tmp_path / "rgb/b.JPG", noise(4, 5))
    write_image(tmp_path / "depth/a.npy", noise(4, 5, 1).astype(np.uint16))
    write_image(tmp_path / "depth/c.png", noise(4, 5, 1)[..., 0].astype(np.uint16) * 257)
    return tmp_path


def test_samples_are_the_union_of_the_streams(folder):
    source = unlabelled(folder, (RGB, DEPTH))
    assert source.streams == (RGB, DEPTH)
    assert source.classes == ()
    assert source.ids == ["a", "b", "c"]
    assert source.targets.tolist() == [0, 0, 0]
    assert source.present.tolist() == [[True, True], [True, False], [False, True]]


def test_paths_and_pixels(folder):
    source = unlabelled(folder, (RGB, DEPTH))
    assert source.path(1, 0) == folder / "rgb/b.JPG"
    np.testing.assert_array_equal(source.read(0, 0), noise(4, 5))
    np.testing.assert_array_equal(source.read(2, 1), noise(4, 5, 1).astype(np.uint16) * 257)


def test_a_stream_without_a_folder_is_absent_everywhere(folder):
    source = unlabelled(folder, (OTHER, DEPTH))
    assert source.ids == ["a", "c"]
    assert source.present.tolist() == [[False, True], [False, True]]


def test_no_image_at_all(folder):
    with pytest.raises(ValueError, match=r"no readable image of the streams sonar under"):
        unlabelled(folder, (OTHER,))
    with pytest.raises(ValueError, match="no readable image"):
        unlabelled(folder / "nowhere", (RGB,))


def test_without_makes_files_absent_and_drops_empty_samples(folder):
    source = unlabelled(folder, (RGB, DEPTH))
    remaining = source.without({(0, 0), (2, 1)})
    assert remaining.ids == ["a", "b"]
    assert remaining.present.tolist() == [[False, True], [True, False]]
    assert source.ids == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no readable image"):
        remaining.without({(0, 1), (1, 0)})


def test_a_damaged_file(folder):
    (folder / "rgb/b.JPG").write_text("torn")
    with pytest.raises(UnreadableImageError, match=r"rgb/b\.JPG"):
        unlabelled(folder, (RGB, DEPTH)).read(1, 0)
