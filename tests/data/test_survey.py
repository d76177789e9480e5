import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from manystream.data import folder
from manystream.data.folder import FolderSource
from manystream.data.image import UnreadableImageError
from manystream.data.source import StreamSpec
from manystream.data.statistics import StreamStatistics
from manystream.data.survey import (
    Survey,
    UnreadableFile,
    presence_summary,
    survey,
    survey_folder,
)
from tests.data.builders import DEPTH, OTHER, RGB, ArraySource


def random_samples(seed: int, count: int) -> list[list[np.ndarray | None]]:
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        height, width = rng.integers(1, 9, 2)
        color = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        depth = rng.normal(2000, 900, (width, height, 1)).astype(np.float32)
        depth[rng.random(depth.shape) < 0.3] = rng.choice([0, np.nan, np.inf, -1])
        sonar = rng.normal(-4, 1e-3, (height, 2, 2)).astype(np.float32)
        present = rng.random(3) < 0.7
        row = zip((color, depth, sonar), present, strict=True)
        samples.append([image if keep else None for image, keep in row])
    return samples


def concatenated(samples, stream: int, channel: int) -> np.ndarray:
    images = [row[stream][..., channel].ravel() for row in samples if row[stream] is not None]
    return np.concatenate([*images, np.zeros(0)]).astype(np.float64)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 12))
def test_statistics_equal_numpys_over_all_valid_pixels(seed, count):
    samples = random_samples(seed, count)
    found = survey(ArraySource((RGB, DEPTH, OTHER), samples))
    assert found.unreadable == ()
    for stream, spec in enumerate((RGB, DEPTH, OTHER)):
        for channel in range(spec.channels):
            pixels = concatenated(samples, stream, channel)
            if spec is DEPTH:
                pixels = pixels[np.isfinite(pixels) & (pixels > 0)]
            mean, std = (pixels.mean(), pixels.std()) if pixels.size else (0, 1)
            statistics = found.statistics[stream]
            assert statistics.mean[channel] == pytest.approx(mean, rel=1e-12)
            assert statistics.std[channel] == pytest.approx(std if std > 1e-9 else 1, rel=1e-9)


def test_statistics_of_a_large_offset_keep_twelve_digits():
    rng = np.random.default_rng(1)
    samples = [[rng.integers(60000, 60010, (30, 40, 1), dtype=np.uint16)] for _ in range(50)]
    (found,) = survey(ArraySource((DEPTH,), samples)).statistics
    pixels = concatenated(samples, 0, 0)
    assert found.mean[0] == pytest.approx(pixels.mean(), rel=1e-12)
    assert found.std[0] == pytest.approx(pixels.std(), rel=1e-12)


def test_the_result_repeats_bit_for_bit():
    source = ArraySource((RGB, DEPTH, OTHER), random_samples(3, 40))
    assert survey(source) == survey(source)


@pytest.mark.parametrize("value", [0.0, 0.1, 255.0, 1e-30])
def test_a_constant_channel_has_standard_deviation_1(value):
    samples = [[np.full((7, 11, 2), value, np.float32)] for _ in range(5)]
    (found,) = survey(ArraySource((OTHER,), samples)).statistics
    assert found.std == (1.0, 1.0)
    assert found.mean == pytest.approx([np.float32(value)] * 2, rel=1e-12)


def test_a_stream_without_any_reading():
    samples = [[np.zeros((2, 2, 1), np.uint16), None], [np.zeros((2, 2, 1), np.uint16), None]]
    found = survey(ArraySource((DEPTH, RGB), samples))
    assert found.statistics == (
        StreamStatistics((0.0,), (1.0,)),
        StreamStatistics((0.0,) * 3, (1.0,) * 3),
    )


def test_unreadable_images_are_listed_and_do_not_count():
    good = np.array([[[2], [4]]], np.uint16)
    samples = [
        [UnreadableImageError("x.png", "torn")],
        [good],
        [np.ones((2, 2, 3), np.uint16)],
        [good.astype(np.float32) / 1000],
        [good + 4],
    ]
    found = survey(ArraySource((DEPTH,), samples))
    assert found.statistics == (StreamStatistics((5.0,), (5.0**0.5,)),)
    assert found.unreadable == (
        UnreadableFile(Path("depth/0"), "torn"),
        UnreadableFile(Path("depth/2"), "expected 1 channels for stream 'depth', found 3"),
        UnreadableFile(
            Path("depth/3"), "expected uint16 values as in most of its stream, found float32"
        ),
    )
    assert found.unreadable_paths == {Path("depth/0"), Path("depth/2"), Path("depth/3")}


def test_nan_outside_depth_is_unreadable():
    bad = np.full((2, 2, 2), np.nan, np.float32)
    found = survey(ArraySource((OTHER,), [[bad], [np.ones((2, 2, 2), np.float32)]]))
    assert [file.reason for file in found.unreadable] == [
        "expected finite values for stream 'sonar', found NaN or infinity"
    ]
    assert found.statistics[0].mean == (1.0, 1.0)


def test_other_errors_are_not_swallowed():
    with pytest.raises(RuntimeError, match="a bug"):
        survey(ArraySource((RGB,), [[RuntimeError("a bug")]]))


@pytest.mark.parametrize(("limit", "expected"), [(1, [0]), (3, [0, 2, 4]), (99, [0, 1, 2, 3, 4])])
def test_limit_is_spread_over_the_source(limit, expected):
    samples = [[np.full((1, 1, 1), 10 + 2**index, np.uint16)] for index in range(5)]
    seen = []
    found = survey(
        ArraySource((DEPTH,), samples), limit=limit, progress=lambda *step: seen.append(step)
    )
    assert found.statistics[0].mean[0] == pytest.approx(np.mean([10 + 2**i for i in expected]))
    assert seen == [(done + 1, len(expected)) for done in range(len(expected))]


def test_limit_below_one():
    with pytest.raises(ValueError, match="limit=0; expected at least 1"):
        survey(ArraySource((RGB,), random_samples(0, 2)), limit=0)


def test_presence_summary():
    samples = [[None, 1, 1], [1, None, 1], [None, 1, 1]]
    source = ArraySource((RGB, DEPTH, OTHER), samples)
    assert presence_summary(source) == {"rgb": 2, "depth": 1, "sonar": 0}


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
    def refuse(path):
        raise AssertionError(f"{path} was decoded again")

    return lambda: monkeypatch.setattr(folder, "read_image", refuse)


def test_a_survey_is_kept(source, no_decoding):
    first = survey_folder(source)
    assert first == survey(source)
    assert first.unreadable_paths == {source.root / "train/rgb/desk/torn.png"}
    no_decoding()
    assert survey_folder(FolderSource(source.root, "train", (RGB,))) == first
    json.loads((source.root / ".manystream/survey-train.json").read_text())
    assert len(list((source.root / ".manystream").iterdir())) == 1


def test_a_kept_survey_moves_with_its_folder(source, no_decoding, tmp_path):
    first = survey_folder(source)
    moved = source.root.with_name("moved")
    source.root.rename(moved)
    no_decoding()
    again = survey_folder(FolderSource(moved, "train", (RGB,)))
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
    survey_folder(source)
    changed = change(source)
    decoded = []
    again = survey_folder(changed, progress=lambda done, _: decoded.append(done))
    assert decoded[-1] == len(changed.ids)
    assert again == survey(changed)


def test_another_limit_surveys_again(source):
    assert survey_folder(source) != survey_folder(source, limit=1)
    assert survey_folder(source, limit=1) == survey(source, limit=1)


def test_where_nothing_can_be_kept_the_survey_still_works(source):
    # A file where the folder should be stands for a read-only disk, which root can write to.
    (source.root / ".manystream").write_text("in the way")
    assert isinstance(survey_folder(source), Survey)
    assert (source.root / ".manystream").read_text() == "in the way"


def test_a_source_without_its_unreadable_files_is_clean(source):
    clean = source.without(survey_folder(source).unreadable_paths)
    assert clean.ids == ["bed/a", "bed/b", "desk/c"]
    assert survey(clean) == Survey(survey(source).statistics, ())
