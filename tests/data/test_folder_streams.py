from pathlib import Path

import numpy as np
import pytest

from manystream.data.folder import folder
from manystream.data.image import UnreadableImageError
from manystream.data.streams import StreamSpec
from tests.data.builders import DEPTH, RGB, write_image

COLOR_IMAGE = np.ones((4, 6, 3), np.uint8)
DEPTH_IMAGE = np.ones((2, 3), np.uint16)


def found(root, split="train", **options):
    """The streams of a split, as they are described."""
    return folder(root, splits=[split], classes=("bed", "desk"), **options).streams


@pytest.fixture
def root(tmp_path) -> Path:
    """Two images of colour and one of depth to train on; a validation split without depth."""
    write_image(tmp_path / "train/rgb/bed/a.png", COLOR_IMAGE)
    write_image(tmp_path / "train/rgb/bed/b.JPG", COLOR_IMAGE)
    write_image(tmp_path / "train/depth/bed/a.npy", DEPTH_IMAGE)
    write_image(tmp_path / "val/rgb/bed/v.png", COLOR_IMAGE)
    (tmp_path / "val/depth").mkdir()
    return tmp_path


def test_discovered_streams_have_color_first(root):
    assert found(root, "train") == (RGB, DEPTH)


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("left", COLOR_IMAGE, StreamSpec("left", 3, "color")),
        ("range", DEPTH_IMAGE, StreamSpec("range", 1, "depth")),
        ("metres", np.ones((2, 2), np.float32), StreamSpec("metres", 1, "depth")),
        ("Depth8", np.ones((2, 2), np.uint8), StreamSpec("Depth8", 1, "depth")),
        ("infrared", np.ones((2, 2), np.uint8), StreamSpec("infrared", 1, "other")),
        ("bands", np.ones((2, 2, 5), np.uint8), StreamSpec("bands", 5, "other")),
        ("flow", np.ones((2, 2, 3), np.float32), StreamSpec("flow", 3, "other")),
    ],
)
def test_kind_is_inferred_from_the_first_image(tmp_path, name, pixels, expected):
    write_image(tmp_path / "train" / name / "bed" / "a.npy", pixels)
    assert found(tmp_path, "train") == (expected,)


def test_color_streams_come_first_and_the_named_ones_before_all(tmp_path):
    for name in ("a_left", "infrared", "rgb"):
        pixels = DEPTH_IMAGE if name == "infrared" else COLOR_IMAGE
        write_image(tmp_path / "train" / name / "bed" / "a.png", pixels)
    assert [s.name for s in found(tmp_path, "train")] == ["rgb", "a_left", "infrared"]


def test_a_damaged_first_image_does_not_stop_the_discovery(root):
    (root / "train/rgb/bed/a.png").write_text("torn")
    assert found(root, "train") == (RGB, DEPTH)


def test_nothing_to_discover(root):
    with pytest.raises(ValueError, match="depth holds no image"):
        found(root, "val")
    (root / "val/depth/bed").mkdir()
    (root / "val/depth/bed/x.png").write_text("torn")
    with pytest.raises(UnreadableImageError, match=r"x\.png"):
        found(root, "val")
    (root / "test").mkdir()
    with pytest.raises(ValueError, match="has no stream folders"):
        found(root, "test")
