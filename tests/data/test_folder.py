from pathlib import Path

import numpy as np
import pytest
import torch

from manystream.data.folder import available_splits, folder
from manystream.data.streams import StreamSpec
from manystream.data.table import SampleTable
from tests.data.builders import DEPTH, RGB, write_image


def color(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def depth(value: int) -> np.ndarray:
    return np.full((2, 3), value, np.uint16)


@pytest.fixture
def root(tmp_path) -> Path:
    """Beds a (both streams) and b (colour only), desk c (depth only); a validation bed."""
    write_image(tmp_path / "train/rgb/bed/a.png", color(1))
    write_image(tmp_path / "train/rgb/bed/b.JPG", color(2))
    write_image(tmp_path / "train/depth/bed/a.npy", depth(1000))
    write_image(tmp_path / "train/depth/desk/c.png", depth(3000))
    write_image(tmp_path / "val/rgb/bed/v.png", color(9))
    (tmp_path / "val/depth").mkdir()
    return tmp_path


def listed(root: Path, split: str, streams=(RGB, DEPTH), **options) -> SampleTable:
    return folder(root, splits=[split], streams=streams, **options)


def train(root: Path) -> SampleTable:
    return listed(root, "train")


def test_samples_are_the_union_of_the_streams(root):
    source = train(root)
    assert source.streams == (RGB, DEPTH)
    assert source.classes == ("bed", "desk")
    assert list(source.ids) == ["bed/a", "bed/b", "desk/c"]
    assert source.targets.dtype == torch.int64
    assert source.targets.tolist() == [0, 0, 1]
    assert source.present.dtype == torch.bool
    assert source.present.tolist() == [[True, True], [True, False], [False, True]]


def test_paths_and_pixels(root):
    source = train(root)
    assert source.path(1, 0) == root / "train/rgb/bed/b.JPG"
    np.testing.assert_array_equal(source.read(0, 0), color(1))
    np.testing.assert_array_equal(source.read(2, 1), depth(3000)[..., None])
    with pytest.raises(ValueError, match=r"'desk/c' has no stream 'rgb'"):
        source.path(2, 0)


def test_streams_come_in_the_order_asked(root):
    source = listed(root, "train", [DEPTH, RGB])
    assert source.present.tolist() == [[True, True], [False, True], [True, False]]


def test_other_files_are_passed_over(root):
    (root / "train/rgb/bed/Thumbs.db").write_text("")
    (root / "train/rgb/bed/._a.png").write_text("")
    (root / "train/rgb/.cache").mkdir()
    (root / "train/rgb/empty").mkdir()
    assert train(root).ids == ["bed/a", "bed/b", "desk/c"]
    assert train(root).classes == ("bed", "desk")


def test_classes_of_training_hold_for_validation(root):
    source = listed(root, "val", (RGB, DEPTH), classes=("desk", "bed"))
    assert source.classes == ("desk", "bed")
    assert source.targets.tolist() == [1]
    assert source.present.tolist() == [[True, False]]


def test_a_class_that_training_lacks(root):
    with pytest.raises(ValueError, match=r"training lacks: 'bed'; expected only 'desk', 'sofa'"):
        listed(root, "val", (RGB,), classes=("desk", "sofa"))


def test_one_class_only(root):
    with pytest.raises(ValueError, match="one class only: 'bed'"):
        listed(root, "val", (RGB, DEPTH))


def test_missing_folders(root):
    with pytest.raises(ValueError, match=r"is not a folder; expected one laid out as root/<split>"):
        listed(root / "nowhere", "train", (RGB,))
    with pytest.raises(ValueError, match=r"split='test' is not in .*: 'train', 'val'"):
        listed(root, "test", (RGB,))
    with pytest.raises(ValueError, match=r"'dpeth' has no folder in .*there: 'depth', 'rgb'"):
        listed(root, "train", (RGB, StreamSpec("dpeth", 1)))


def test_no_image_at_all(root):
    with pytest.raises(ValueError, match=r"no image under .* for the streams 'depth'"):
        listed(root, "val", (DEPTH,), classes=("bed", "desk"))


def test_two_files_for_one_sample(root):
    write_image(root / "train/rgb/bed/a.tif", color(3))
    with pytest.raises(ValueError, match=r"a\.png and a\.tif"):
        train(root)


def test_without_makes_files_absent_and_drops_empty_samples(root):
    source = train(root)
    remaining = source.without({(0, 0), (2, 1)})
    assert remaining.ids == ["bed/a", "bed/b"]
    assert remaining.present.tolist() == [[False, True], [True, False]]
    assert remaining.targets.tolist() == [0, 0]
    assert remaining.classes == ("bed", "desk")
    assert remaining.path(1, 0) == source.path(1, 0)
    assert source.present.tolist() == [[True, True], [True, False], [False, True]]


def test_without_everything(root):
    source = listed(root, "val", (RGB,), classes=("bed", "desk"))
    with pytest.raises(ValueError, match="all 1 samples lack the streams rgb"):
        source.without({(0, 0)})


def test_all_splits_are_one_table_and_training_decides(root):
    table = folder(root)
    assert table.splits == ["train"] * 3 + ["val"]
    assert table.ids == ["bed/a", "bed/b", "desk/c", "bed/v"]
    assert table.classes == ("bed", "desk")
    assert table.part("val").path(0, 0) == root / "val/rgb/bed/v.png"
    with pytest.raises(ValueError, match=r"split='test' has no samples; .*'train', 'val'"):
        table.part("test")


def test_available_splits(root):
    (root / ".manystream").mkdir()
    (root / "readme.txt").write_text("")
    assert available_splits(root) == ("train", "val")
