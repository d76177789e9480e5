"""The embedded data set is frozen: results are kept for it, and other tests train on it."""

import pickle
import zlib

import numpy as np
import pytest
import torch

from manystream.data.scenes import CLASSES, STREAMS, scenes

RGB, DEPTH = 0, 1


@pytest.fixture(scope="module")
def table():
    return scenes({"train": 40, "val": 20}, 48)


def images(table, stream: int) -> np.ndarray:
    return np.stack([table.read(i, stream) for i in range(len(table))])


@pytest.mark.parametrize(
    ("size", "seed", "color", "depth"),
    [
        (48, 0, 3161223131, 4258071835),
        (64, 0, 3021647469, 1385783396),
        (33, 3, 314911269, 2712846467),
    ],
)
def test_the_images_are_frozen(size, seed, color, depth):
    table = scenes({"train": 30, "val": 10, "test": 10}, size, seed=seed)
    found = [zlib.crc32(images(table, stream).tobytes()) for stream in (RGB, DEPTH)]
    assert found == [color, depth]
    assert table.labels()[:3] == {0: ["lamp", "bottle", "can"], 3: ["vase", "can", "box"]}[seed]


@pytest.mark.parametrize("size", [1, 16, 33])
def test_shapes_and_types(size):
    table = scenes({"train": 1}, size)
    color, depth = table.read(0, RGB), table.read(0, DEPTH)
    assert (color.shape, color.dtype) == ((size, size, 3), np.uint8)
    assert (depth.shape, depth.dtype) == ((size, size, 1), np.uint16)
    assert table.streams == STREAMS


def test_depth_is_in_millimetres_with_zeros_where_there_is_no_reading(table):
    depth = images(table, DEPTH)
    readings = depth[depth > 0]
    assert readings.min() > 500
    assert readings.max() <= 10_000
    assert 1000 < np.median(readings) < 2000
    assert 0.05 < np.mean(depth == 0) < 0.3


def test_depth_is_a_whole_number_of_steps_of_disparity(table):
    depth = images(table, DEPTH)
    readings = depth[depth > 0].astype(float)
    steps = np.round(125_000 / readings)
    assert np.abs(readings - 125_000 / steps).max() <= 0.5


def test_the_table_gets_nearer_towards_the_bottom():
    depth = images(scenes({"train": 200}, 48), DEPTH).astype(float)
    depth[depth == 0] = np.nan
    rows = np.nanmedian(depth[:, :, :4], axis=(0, 2, 3))  # left of most things
    assert (np.diff(rows[-12:]) <= 0).all()
    assert rows[-1] < rows[0] - 300


def test_each_ten_samples_show_every_class_once(table):
    targets = table.targets.numpy()
    assert targets.dtype == np.int64
    for first in range(0, len(targets), 10):
        assert sorted(targets[first : first + 10]) == list(range(len(CLASSES)))
    assert not np.array_equal(targets[:10], targets[10:20])


def test_a_sample_depends_on_seed_split_and_number_alone(table):
    longer = pickle.loads(pickle.dumps(scenes({"val": 50, "train": 60}, 48)))
    for i in (7, 2, 39):
        for stream in (DEPTH, RGB):
            np.testing.assert_array_equal(longer.read(50 + i, stream), table.read(i, stream))
    assert torch.equal(longer.targets[50:90], table.targets[:40])


def test_splits_and_seeds_share_no_image():
    tables = [scenes({"train": 20, "val": 20, "test": 20}, 16, seed=seed) for seed in (0, 1)]
    for stream in (RGB, DEPTH):
        assert len({image.tobytes() for table in tables for image in images(table, stream)}) == 120
    assert len(set(tables[0].ids)) == 60


@pytest.mark.parametrize("num_samples", [{}, {"train": 0}, {"train": 9, "dev": 9}])
def test_splits_that_there_are_not(num_samples):
    with pytest.raises(
        ValueError, match=r"splits are \{.*\}; expected samples of train, val, test"
    ):
        scenes(num_samples)
