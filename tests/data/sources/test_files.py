import os
from pathlib import Path

import numpy as np
import pytest

from manystream.data.image import UnreadableImageError
from manystream.data.sources.files import FileSample, FileSource
from manystream.data.sources.folder import FolderSource
from manystream.data.survey import survey
from manystream.data.survey_cache import survey_once
from manystream.data.units import ToMetres
from tests.data.builders import DEPTH, RGB, write_image
from tests.data.sources.official import jpeg_named_png, torn_png

COLOR_IMAGE = np.full((6, 9, 3), 7, np.uint8)
DEPTH_IMAGE = np.random.default_rng(0).integers(1000, 2000, (6, 9), np.uint16)
SAMPLES = (
    FileSample("a", 0, ("rgb/a.png", "depth/a.png"), "r1"),
    FileSample("b", 1, ("rgb/b.png", None), "r1"),
    FileSample("c", 1, (None, "depth/c.png"), ""),
)


def source_of(root: Path, samples=SAMPLES, **options) -> FileSource:
    return FileSource(root, "train", (RGB, DEPTH), ("bed", "desk"), samples, **options)


@pytest.fixture
def root(tmp_path):
    for name in "ab":
        write_image(tmp_path / f"rgb/{name}.png", COLOR_IMAGE)
    for name in "ac":
        write_image(tmp_path / f"depth/{name}.png", DEPTH_IMAGE)
    return tmp_path


def test_samples_as_they_are_given(root):
    source = source_of(root)
    assert source.ids == ["a", "b", "c"]
    assert source.groups == ["r1", "r1", ""]
    assert source.targets.tolist() == [0, 1, 1]
    assert source.present.int().tolist() == [[1, 1], [1, 0], [0, 1]]
    with pytest.raises(ValueError, match="'b' has no stream 'depth'"):
        source.path(1, 1)


def test_values_are_decoded_by_stream(root):
    source = source_of(root, decode={"depth": ToMetres("mm")})
    metres = (DEPTH_IMAGE / 1000).astype(np.float32)
    np.testing.assert_array_equal(source.read(0, 1)[..., 0], metres)
    np.testing.assert_array_equal(source.read(0, 0), COLOR_IMAGE)


def test_groups_are_none_where_none_is_known(root):
    assert source_of(root, [x._replace(group="") for x in SAMPLES]).groups is None


def test_taking_files_away_keeps_groups_and_targets_in_step(root):
    remaining = source_of(root).without({root / "rgb/b.png", root / "depth/a.png"})
    assert remaining.ids == ["a", "c"]
    assert remaining.groups == ["r1", ""]
    assert remaining.targets.tolist() == [0, 1]
    assert remaining.present.int().tolist() == [[1, 0], [0, 1]]


def test_a_file_over_the_limit_is_unreadable(root):
    source = source_of(root, max_pixels=53)
    with pytest.raises(UnreadableImageError, match="at most 53"):
        source.read(0, 0)
    assert len(survey(source).unreadable) == 4


def test_how_files_are_decoded_is_part_of_the_fingerprint(root):
    prints = {
        source_of(root, **options).fingerprint()
        for options in (
            {},
            {"decode": {"depth": ToMetres("mm")}},
            {"decode": {"depth": ToMetres("cm")}},
            {"max_pixels": 99},
        )
    }
    assert len(prints) == 4
    assert source_of(root).fingerprint() == source_of(root).fingerprint()


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
def test_a_survey_names_what_cannot_be_read(root, spoil, reason):
    spoil(root / "depth/c.png")
    (found,) = survey_once(source_of(root)).unreadable
    assert found.path == root / "depth/c.png"
    assert reason in found.reason


def test_a_folder_name_that_is_no_utf8_is_told_or_left_out(tmp_path):
    for name in ("bed/a", "desk/b"):
        write_image(tmp_path / f"train/rgb/{name}.png", COLOR_IMAGE)
    bad = os.fsencode(tmp_path / "train/rgb/bed") + b"/caf\xe9.png"
    os.link(tmp_path / "train/rgb/bed/a.png", bad)
    with pytest.raises(ValueError, match=r"rgb/bed/caf\\xe9\.png: its name is not UTF-8"):
        FolderSource(tmp_path, "train", (RGB,))
    told = []
    source = FolderSource(tmp_path, "train", (RGB,), settle=told.extend)
    assert source.ids == ["bed/a", "desk/b"]
    assert len(told) == 1


def test_folders_that_lead_to_themselves_are_passed_over(tmp_path):
    for name in ("bed/a", "desk/b"):
        write_image(tmp_path / f"train/rgb/{name}.png", COLOR_IMAGE)
    (tmp_path / "train/rgb/loop").symlink_to("loop")
    (tmp_path / "train/rgb/bed/up").symlink_to("..")
    assert FolderSource(tmp_path, "train", (RGB,)).ids == ["bed/a", "desk/b"]
