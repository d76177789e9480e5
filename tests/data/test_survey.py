import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manystream.data.image import UnreadableImageError
from manystream.data.statistics import StreamStatistics, image_moments, pooled
from manystream.data.survey import look_at, statistics, unusable
from tests.data.builders import DEPTH, OTHER, RGB, table_of


class Surveyed:
    """What a look at a table's images told."""

    def __init__(self, table, same_view=False, **options):
        looks = look_at(table, **options)
        bad = unusable(table, looks, same_view=same_view)
        good = {image: look for image, look in looks.items() if image not in bad}
        self.statistics = statistics(table, good)
        self.unusable = {str(table.path(*image)): reason for image, reason in bad.items()}
        self.doubts = {str(table.path(*i)): x.doubt for i, x in looks.items() if x.doubt}


def survey(streams, samples, **options):
    return Surveyed(table_of(streams, samples), **options)


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
    found = survey((RGB, DEPTH, OTHER), samples)
    assert found.unusable == {}
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
    (found,) = survey((DEPTH,), samples).statistics
    pixels = concatenated(samples, 0, 0)
    assert found.mean[0] == pytest.approx(pixels.mean(), rel=1e-12)
    assert found.std[0] == pytest.approx(pixels.std(), rel=1e-12)


def test_the_result_repeats_bit_for_bit():
    samples = random_samples(3, 40)
    first, again = (survey((RGB, DEPTH, OTHER), samples) for _ in range(2))
    assert vars(first) == vars(again)


@pytest.mark.parametrize("value", [0.0, 0.1, 255.0, 1e-30])
def test_a_constant_channel_has_standard_deviation_1(value):
    samples = [[np.full((7, 11, 2), value, np.float32)] for _ in range(5)]
    (found,) = survey((OTHER,), samples).statistics
    assert found.std == (1.0, 1.0)
    assert found.mean == pytest.approx([np.float32(value)] * 2, rel=1e-12)


def test_a_stream_without_any_reading():
    samples = [[np.zeros((2, 2, 1), np.uint16), None], [np.zeros((2, 2, 1), np.uint16), None]]
    found = survey((DEPTH, RGB), samples)
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
    found = survey((DEPTH,), samples)
    assert found.statistics == (StreamStatistics((5.0,), (5.0**0.5,)),)
    assert found.unusable == {
        "depth/0": "torn",
        "depth/2": "it has 3 channels; expected 1",
        "depth/3": "it has float32 values; expected uint16 as in most of its stream",
    }


def test_nan_outside_depth_is_unreadable():
    bad = np.full((2, 2, 2), np.nan, np.float32)
    found = survey((OTHER,), [[bad], [np.ones((2, 2, 2), np.float32)]])
    assert found.unusable == {"sonar/0": "it has values that are NaN or infinite"}
    assert found.statistics[0].mean == (1.0, 1.0)


def test_depth_that_is_no_depth_is_told_and_counts_as_no_reading():
    odd = np.array([[2, -1, np.nan, np.inf, 0]], np.float32)[..., None]
    good = np.array([[[4]]], np.float32)
    found = survey((DEPTH,), [[odd], [good], [np.array([[[0]]], np.float32)]])
    assert found.unusable == {}
    assert found.statistics == (StreamStatistics((3.0,), (1.0,)),)
    reason = "3 of 5 depth values are NaN, infinite or negative; 0 is no reading"
    assert found.doubts == {"depth/0": reason}


def images_of(*sizes) -> list:
    """One sample with a colour, a depth and a sonar image of these sizes."""
    shapes = zip(sizes, (3, 1, 2), (np.uint8, np.uint16, np.float32), strict=True)
    return [size and np.ones((*size, c), dtype) for size, c, dtype in shapes]


@pytest.mark.parametrize(
    "sizes",
    [
        ((480, 640), (240, 320), (120, 160)),
        ((427, 561), (213, 280), (107, 140)),
        ((480, 640), None, (240, 320)),
        ((480, 640), None, None),
    ],
)
def test_one_aspect_ratio_is_one_view(sizes):
    assert survey((RGB, DEPTH, OTHER), [images_of(*sizes)], same_view=True).unusable == {}


@pytest.mark.parametrize("other", [(424, 512), (640, 480), (480, 660)])
def test_a_sample_of_mixed_sizes_is_told_and_does_not_count(other):
    samples = [images_of((480, 640), other, (240, 320)), images_of((4, 4), (4, 4), None)]
    samples[1][1][:] = 9
    found = survey((RGB, DEPTH, OTHER), samples, same_view=True)
    assert list(found.unusable) == ["rgb/0", "depth/0", "sonar/0"]
    assert f"(640x480, {other[1]}x{other[0]}, 320x240)" in found.unusable["depth/0"]
    assert found.statistics[1] == StreamStatistics((9.0,), (1.0,))
    assert survey((RGB, DEPTH, OTHER), samples).unusable == {}


def test_other_errors_are_not_swallowed():
    with pytest.raises(RuntimeError, match="a bug"):
        survey((RGB,), [[RuntimeError("a bug")]])


@pytest.mark.parametrize(("limit", "expected"), [(1, [0]), (3, [0, 2, 4]), (99, [0, 1, 2, 3, 4])])
def test_limit_is_spread_over_the_source(limit, expected):
    samples = [[np.full((1, 1, 1), 10 + 2**index, np.uint16)] for index in range(5)]
    seen = []
    found = survey((DEPTH,), samples, limit=limit, progress=lambda *step: seen.append(step))
    assert found.statistics[0].mean[0] == pytest.approx(np.mean([10 + 2**i for i in expected]))
    assert seen == [(done + 1, len(expected)) for done in range(len(expected))]


def test_limit_below_one():
    with pytest.raises(ValueError, match="limit=0; expected at least 1"):
        survey((RGB,), random_samples(0, 2), limit=0)


def test_statistics_of_some_samples():
    table = table_of((DEPTH,), [[np.full((1, 1, 1), value, np.uint16)] for value in (2, 4, 9)])
    looks = look_at(table)
    assert statistics(table, looks, [0, 1]) == (StreamStatistics((3.0,), (1.0,)),)
    assert statistics(table, looks, [2]) == (StreamStatistics((9.0,), (1.0,)),)


@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 6), max_size=8))
def test_merged_moments_are_those_of_all_pixels(seed, sizes):
    rng = np.random.default_rng(seed)
    images = [rng.normal(1e6, 3, (size, 2, 2)) for size in sizes]
    moments = [image_moments(image, OTHER) for image in images]
    pixels = np.concatenate([np.zeros((0, 2)), *(image.reshape(-1, 2) for image in images)])
    counts = np.sum([np.zeros(2), *(count for count, _, _ in moments)], axis=0)
    assert counts.tolist() == [len(pixels)] * 2
    found = pooled(moments, num_channels=2)
    if len(pixels):
        np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.std, pixels.std(axis=0), rtol=1e-9)
    else:
        assert found == StreamStatistics((0.0, 0.0), (1.0, 1.0))


def test_only_readings_count_in_depth():
    depth = np.array([[0, np.nan, np.inf], [-1, 2, 4]], np.float32)[..., None]
    moments = image_moments(depth, DEPTH)
    assert moments[0].tolist() == [2]
    assert pooled([moments], 1) == StreamStatistics((3.0,), (1.0,))


@pytest.mark.parametrize(
    ("mean", "std"), [((1.0,), (0.0,)), ((1.0,), ()), ((1.0,), (float("nan"),))]
)
def test_statistics_that_cannot_normalise(mean, std):
    with pytest.raises(ValueError, match="one positive standard deviation per channel"):
        StreamStatistics(mean, std)
