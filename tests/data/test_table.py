import numpy as np
import pytest

from manystream.data.arrays import arrays
from manystream.data.table import SampleTable
from tests.data.builders import DEPTH, OTHER, RGB, noise, table_of


@pytest.fixture
def whole() -> SampleTable:
    """Three samples: all streams, colour only, all but colour."""
    images = [noise(4, 4), noise(4, 4, 1), noise(4, 4, 2)]
    samples = [images, [images[0], None, None], [None, *images[1:]]]
    return table_of((RGB, DEPTH, OTHER), samples, [0, 1, 1], ["a", "", "b"], ["train", "val", "x"])


def test_samples_with_none_of_the_streams_are_left_out(whole):
    source = whole.with_streams(["sonar", "depth"])
    assert source.streams == (OTHER, DEPTH)
    assert source.classes == whole.classes
    assert source.ids == ["0", "2"]
    assert source.targets.tolist() == [0, 1]
    assert source.present.tolist() == [[True, True], [True, True]]
    np.testing.assert_array_equal(source.read(1, 0), noise(4, 4, 2))
    np.testing.assert_array_equal(source.read(1, 1), noise(4, 4, 1))


def test_absence_is_kept(whole):
    source = whole.with_streams(["depth", "rgb"])
    assert source.present.tolist() == [[True, True], [False, True], [True, False]]


def test_what_cannot_be_selected(whole):
    with pytest.raises(ValueError, match="no stream 'lidar' in the data; it has rgb, depth, sonar"):
        whole.with_streams(["rgb", "lidar"])
    absent = table_of((RGB, DEPTH), [[noise(4, 4), None]])
    with pytest.raises(ValueError, match="all 1 samples lack the streams depth"):
        absent.with_streams(["depth"])


def test_samples_are_selected_in_step(whole):
    found = whole.select([2, 0, 2])
    assert found.ids == ["2", "0", "2"]
    assert found.targets.tolist() == [1, 0, 1]
    assert found.groups == ["b", "a", "b"]
    assert found.splits == ["x", "train", "x"]
    assert found.present.tolist() == [[False, True, True], [True] * 3, [False, True, True]]
    assert found.labels() == ["desk", "bed", "desk"]
    assert whole.select([1]).groups is None


def test_splits_are_parts_and_trainval_is_two_of_them(whole):
    assert whole.part("val").ids == ["1"]
    assert whole.part("trainval").ids == ["0", "1"]
    with pytest.raises(ValueError, match=r"split='test' has no samples; .*'train', 'val', 'x'"):
        whole.part("test")


def test_images_are_taken_away(whole):
    left = whole.without({(1, 0), (2, 1)})
    assert left.ids == ["0", "2"]
    assert left.present.tolist() == [[True] * 3, [False, False, True]]
    assert whole.present.sum() == 6
    with pytest.raises(ValueError, match="'2' has no stream 'depth'; ask only where"):
        left.read(1, 1)
    with pytest.raises(ValueError, match="no readable image is left: all 2 samples lack"):
        left.without({(0, 0), (0, 1), (0, 2), (1, 2)})


def test_absences_are_counted(whole):
    assert whole.absences() == {"rgb": 1, "depth": 1, "sonar": 1}


def test_arrays_are_a_table_that_reads_many_rows_at_once():
    rgb, depth = np.stack([noise(4, 5) ^ i for i in range(3)]), np.ones((3, 4, 5), np.uint16)
    depth[2] = 7
    table = arrays(
        {"rgb": rgb, "depth": depth},
        ["bed", "desk", "bed"],
        present={"depth": [True, False, True]},
        splits=["train", "train", "val"],
    )
    assert table.streams == (RGB, DEPTH)
    assert table.classes == ("bed", "desk")
    assert table.present.tolist() == [[True, True], [True, False], [True, True]]
    part = table.part("val")
    np.testing.assert_array_equal(part.read(0, 0), rgb[2])
    np.testing.assert_array_equal(table.read_many([2, 0], 1)[:, 0, 0, 0], [7, 1])
    with pytest.raises(ValueError, match="'1' has no stream 'depth'"):
        table.read_many([0, 1], 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["bed"]}, "there are 1 labels, and {'rgb': 2}"),
        ({"labels": ["bed", "sofa"], "classes": ["bed", "desk"]}, "'sofa' is of none of the"),
        ({"labels": [0, 2], "classes": ["bed", "desk"]}, "label 2 is of none of the classes"),
        ({"images": {"rgb": np.zeros((2, 4))}}, r"'rgb' are float64 of shape \(2, 4\); expected"),
        ({"present": {"depth": [True, True]}}, "present names the stream 'depth'; there are rgb"),
        ({"present": {"rgb": [False, False]}}, "all 2 samples lack the streams rgb"),
        ({"groups": ["a"]}, "'groups': 1"),
    ],
)
def test_arrays_that_do_not_fit(changes, message):
    fitting = {"images": {"rgb": np.zeros((2, 4, 4, 3), np.uint8)}, "labels": ["bed", "desk"]}
    with pytest.raises(ValueError, match=message):
        arrays(**{**fitting, **changes})


def test_labels_of_arrays_may_be_numbers():
    rgb = np.zeros((3, 4, 4, 3), np.uint8)
    assert arrays({"rgb": rgb}, np.array([1, 0, 1]), classes=["a", "b"]).targets.tolist() == [
        1,
        0,
        1,
    ]
    assert arrays({"rgb": rgb}, [7, 5, 7]).classes == ("5", "7")
