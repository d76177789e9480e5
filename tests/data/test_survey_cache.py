import json
import os

import numpy as np
import pytest
from PIL import Image

from manystream.data.source import StreamSpec
from manystream.data.sources import files
from manystream.data.sources.folder import FolderSource
from manystream.data.survey import Survey, survey
from manystream.data.survey_cache import survey_once
from tests.data.builders import DEPTH, RGB, write_image


@pytest.fixture
def source(tmp_path) -> FolderSource:
    rng = np.random.default_rng(0)
    for name in ("bed/a", "bed/b", "desk/c"):
        path = tmp_path / "train/rgb" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(path)
    (tmp_path / "train/rgb/desk/torn.png").write_text("torn")
    return FolderSource(tmp_path, "train", (RGB,))


@pytest.fixture
def no_decoding(monkeypatch):
    def refuse(path, max_pixels):
        raise AssertionError(f"{path} was decoded again")

    return lambda: monkeypatch.setattr(files, "read_image", refuse)


def test_a_survey_is_kept(source, no_decoding):
    first = survey_once(source)
    assert first == survey(source)
    assert first.unreadable_paths == {source.root / "train/rgb/desk/torn.png"}
    no_decoding()
    assert survey_once(FolderSource(source.root, "train", (RGB,))) == first
    json.loads((source.root / ".manystream/survey-train.json").read_text())
    assert len(list((source.root / ".manystream").iterdir())) == 1


def test_a_kept_survey_moves_with_its_folder(source, no_decoding, tmp_path):
    first = survey_once(source)
    moved = source.root.with_name("moved")
    source.root.rename(moved)
    no_decoding()
    again = survey_once(FolderSource(moved, "train", (RGB,)))
    assert again.statistics == first.statistics
    assert again.unreadable_paths == {moved / "train/rgb/desk/torn.png"}


def touch_later(source: FolderSource) -> FolderSource:
    path = source.path(0, 0)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    return source


def replace_image(source: FolderSource) -> FolderSource:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(source.path(0, 0))
    return source


def remove_image(source: FolderSource) -> FolderSource:
    source.path(0, 0).unlink()
    return FolderSource(source.root, "train", source.streams)


def change_kind(source: FolderSource) -> FolderSource:
    return FolderSource(source.root, "train", (StreamSpec("rgb", 3, "depth"),))


def damage_cache(source: FolderSource) -> FolderSource:
    (source.root / ".manystream/survey-train.json").write_text("{")
    return source


@pytest.mark.parametrize(
    "change", [touch_later, replace_image, remove_image, change_kind, damage_cache]
)
def test_a_change_surveys_again(source, change):
    survey_once(source)
    changed = change(source)
    decoded = []
    again = survey_once(changed, progress=lambda done, _: decoded.append(done))
    assert decoded[-1] == len(changed.ids)
    assert again == survey(changed)


def test_odd_depth_is_kept_too(tmp_path, no_decoding):
    for name, value in (("bed/a", -1), ("desk/b", 1)):
        write_image(tmp_path / f"train/depth/{name}.npy", np.full((2, 3), value, np.float32))
    source = FolderSource(tmp_path, "train", (DEPTH,))
    first = survey_once(source)
    assert [file.path for file in first.odd_depth] == [tmp_path / "train/depth/bed/a.npy"]
    no_decoding()
    assert survey_once(source) == first


def test_another_question_surveys_again(source, no_decoding):
    survey_once(source)
    no_decoding()
    with pytest.raises(AssertionError, match="decoded again"):
        survey_once(source, same_view=True)


def test_another_limit_surveys_again(source):
    assert survey_once(source) != survey_once(source, limit=1)
    assert survey_once(source, limit=1) == survey(source, limit=1)


def test_where_nothing_can_be_kept_the_survey_still_works(source):
    # A file where the folder should be stands for a read-only disk, which root can write to.
    (source.root / ".manystream").write_text("in the way")
    assert isinstance(survey_once(source), Survey)
    assert (source.root / ".manystream").read_text() == "in the way"


def test_a_source_without_its_unreadable_files_is_clean(source):
    clean = source.without(survey_once(source).unreadable_paths)
    assert clean.ids == ["bed/a", "bed/b", "desk/c"]
    assert survey(clean) == Survey(survey(source).statistics, ())
