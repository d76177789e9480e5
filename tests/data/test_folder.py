from pathlib import Path

import numpy as np
import pytest
import torch

from manystream.data.folder import available_splits, folder, unlabelled
from manystream.data.image import UnreadableImageError
from manystream.data.streams import StreamSpec
from manystream.data.table import SampleTable
from tests.data.builders import DEPTH, OTHER, RGB, noise, write_image


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


def described(root: Path, split: str = "train") -> tuple[StreamSpec, ...]:
    """The streams of a split, as they are described."""
    return listed(root, split, None, classes=("bed", "desk")).streams


def test_discovered_streams_have_color_first(root):
    assert described(root) == (RGB, DEPTH)


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("left", color(1), StreamSpec("left", 3, "color")),
        ("range", depth(1), StreamSpec("range", 1, "depth")),
        ("metres", np.ones((2, 2), np.float32), StreamSpec("metres", 1, "depth")),
        ("Depth8", np.ones((2, 2), np.uint8), StreamSpec("Depth8", 1, "depth")),
        ("infrared", np.ones((2, 2), np.uint8), StreamSpec("infrared", 1, "other")),
        ("bands", np.ones((2, 2, 5), np.uint8), StreamSpec("bands", 5, "other")),
        ("flow", np.ones((2, 2, 3), np.float32), StreamSpec("flow", 3, "other")),
    ],
)
def test_kind_is_inferred_from_the_first_image(tmp_path, name, pixels, expected):
    write_image(tmp_path / "train" / name / "bed" / "a.npy", pixels)
    assert described(tmp_path) == (expected,)


def test_color_streams_come_first_and_the_named_ones_before_all(tmp_path):
    for name in ("a_left", "infrared", "rgb"):
        pixels = depth(1) if name == "infrared" else color(1)
        write_image(tmp_path / "train" / name / "bed" / "a.png", pixels)
    assert [s.name for s in described(tmp_path)] == ["rgb", "a_left", "infrared"]


def test_a_damaged_first_image_does_not_stop_the_discovery(root):
    (root / "train/rgb/bed/a.png").write_text("torn")
    assert described(root) == (RGB, DEPTH)


def test_nothing_to_discover(root):
    with pytest.raises(ValueError, match="depth holds no image"):
        described(root, "val")
    (root / "val/depth/bed").mkdir()
    (root / "val/depth/bed/x.png").write_text("torn")
    with pytest.raises(UnreadableImageError, match=r"x\.png"):
        described(root, "val")
    (root / "test").mkdir()
    with pytest.raises(ValueError, match="has no stream folders"):
        described(root, "test")


@pytest.fixture
def images(tmp_path):
    """Sample a has both streams, b colour only, c depth only."""
    write_image(tmp_path / "rgb/a.png", noise(4, 5))
    write_image(tmp_path / "rgb/b.JPG", noise(4, 5))
    write_image(tmp_path / "depth/a.npy", noise(4, 5, 1).astype(np.uint16))
    write_image(tmp_path / "depth/c.png", noise(4, 5, 1)[..., 0].astype(np.uint16) * 257)
    return tmp_path


def test_unlabelled_samples_are_the_union_of_the_streams(images):
    source = unlabelled(images, (RGB, DEPTH))
    assert source.streams == (RGB, DEPTH)
    assert source.classes == ()
    assert source.ids == ["a", "b", "c"]
    assert source.targets.tolist() == [0, 0, 0]
    assert source.present.tolist() == [[True, True], [True, False], [False, True]]


def test_paths_and_pixels_of_unlabelled_images(images):
    source = unlabelled(images, (RGB, DEPTH))
    assert source.path(1, 0) == images / "rgb/b.JPG"
    np.testing.assert_array_equal(source.read(0, 0), noise(4, 5))
    np.testing.assert_array_equal(source.read(2, 1), noise(4, 5, 1).astype(np.uint16) * 257)


def test_an_unlabelled_stream_without_a_folder_is_absent_everywhere(images):
    source = unlabelled(images, (OTHER, DEPTH))
    assert source.ids == ["a", "c"]
    assert source.present.tolist() == [[False, True], [False, True]]


def test_no_unlabelled_image_at_all(images):
    with pytest.raises(ValueError, match=r"no readable image of the streams sonar under"):
        unlabelled(images, (OTHER,))
    with pytest.raises(ValueError, match="no readable image"):
        unlabelled(images / "nowhere", (RGB,))


def test_a_damaged_unlabelled_file(images):
    (images / "rgb/b.JPG").write_text("torn")
    with pytest.raises(UnreadableImageError, match=r"rgb/b\.JPG"):
        unlabelled(images, (RGB, DEPTH)).read(1, 0)
