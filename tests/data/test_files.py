import os
from pathlib import Path

import numpy as np
import pytest
import torch

from manystream.data.files import ImageFiles
from manystream.data.folder import folder
from manystream.data.image import UnreadableImageError
from manystream.data.streams import ToMetres
from manystream.data.survey import look_at
from manystream.data.table import Column, SampleTable
from tests.data.builders import DEPTH, RGB, write_image
from tests.data.official import jpeg_named_png, torn_png

COLOR_IMAGE = np.full((6, 9, 3), 7, np.uint8)
DEPTH_IMAGE = np.random.default_rng(0).integers(1000, 2000, (6, 9), np.uint16)


def table_in(root: Path, *, groups=("r1", "r1", ""), decode=None, max_pixels=2**26) -> SampleTable:
    """Samples a, b, c; b lacks depth, c colour."""
    files = ImageFiles(root, max_pixels)
    return SampleTable(
        (
            Column(RGB, files, ["rgb/a.png", "rgb/b.png", None]),
            Column(DEPTH, files, ["depth/a.png", None, "depth/c.png"], decode),
        ),
        ("bed", "desk"),
        ["a", "b", "c"],
        torch.tensor([0, 1, 1]),
        ["train"] * 3,
        groups,
    )


@pytest.fixture
def root(tmp_path):
    for name in "ab":
        write_image(tmp_path / f"rgb/{name}.png", COLOR_IMAGE)
    for name in "ac":
        write_image(tmp_path / f"depth/{name}.png", DEPTH_IMAGE)
    return tmp_path


def test_samples_as_they_are_given(root):
    source = table_in(root)
    assert source.groups == ("r1", "r1", "")
    assert source.present.int().tolist() == [[1, 1], [1, 0], [0, 1]]
    assert source.path(2, 1) == root / "depth/c.png"
    with pytest.raises(ValueError, match="'b' has no stream 'depth'"):
        source.path(1, 1)


def test_values_are_decoded_by_stream(root):
    source = table_in(root, decode=ToMetres("mm"))
    metres = (DEPTH_IMAGE / 1000).astype(np.float32)
    np.testing.assert_array_equal(source.read(0, 1)[..., 0], metres)
    np.testing.assert_array_equal(source.read(0, 0), COLOR_IMAGE)


def test_groups_are_none_where_none_is_known(root):
    assert table_in(root, groups=[""] * 3).groups is None


def test_a_file_over_the_limit_is_unreadable(root):
    source = table_in(root, max_pixels=53)
    with pytest.raises(UnreadableImageError, match="at most 53"):
        source.read(0, 0)
    assert all(look.problem for look in look_at(source).values())


def test_how_files_are_read_decides_what_is_seen_again(root):
    """What is kept of one way to read a file is not taken for another."""
    decoders = (None, ToMetres("mm"), ToMetres("cm"))
    means = [look_at(table_in(root, decode=x))[0, 1].moments[1, 0] for x in decoders]
    assert means == pytest.approx([means[0], means[0] / 1000, means[0] / 100])
    assert look_at(table_in(root, max_pixels=53))[0, 0].problem


def spoil_torn(path):
    torn_png(path)


def spoil_name(path):
    jpeg_named_png(path)


def spoil_link_to_itself(path):
    path.unlink()
    path.symlink_to(path.name)


def spoil_link_to_nothing(path):
    path.unlink()
    path.symlink_to("nothing.png")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_torn, "truncated"),
        (spoil_name, "it is named .png, but it is a JPEG; rename it"),
        (spoil_link_to_itself, "symbolic links"),
        (spoil_link_to_nothing, "No such file"),
    ],
)
def test_a_look_names_what_cannot_be_read(root, spoil, reason):
    look_at(table_in(root))
    spoil(root / "depth/c.png")
    found = {image: look.problem for image, look in look_at(table_in(root)).items()}
    assert reason in found.pop((2, 1))
    assert not any(found.values())


def test_a_folder_name_that_is_no_utf8_is_told_or_left_out(tmp_path):
    for name in ("bed/a", "desk/b"):
        write_image(tmp_path / f"train/rgb/{name}.png", COLOR_IMAGE)
    bad = os.fsencode(tmp_path / "train/rgb/bed") + b"/caf\xe9.png"
    os.link(tmp_path / "train/rgb/bed/a.png", bad)
    with pytest.raises(ValueError, match=r"rgb/bed/caf\\xe9\.png: its name is not UTF-8"):
        folder(tmp_path, streams=(RGB,), report=lambda line: None)
    told = []
    source = folder(tmp_path, streams=(RGB,), on_error="skip", report=told.append)
    assert source.ids == ["bed/a", "desk/b"]
    assert len(told) == 1


def test_folders_that_lead_to_themselves_are_passed_over(tmp_path):
    for name in ("bed/a", "desk/b"):
        write_image(tmp_path / f"train/rgb/{name}.png", COLOR_IMAGE)
    (tmp_path / "train/rgb/loop").symlink_to("loop")
    (tmp_path / "train/rgb/bed/up").symlink_to("..")
    assert folder(tmp_path, streams=(RGB,), report=lambda line: None).ids == ["bed/a", "desk/b"]
