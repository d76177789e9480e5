import numpy as np
import pytest
import torch

from manystream.batch import StreamBatch
from manystream.data.preprocessing import Preprocessing, normalise
from manystream.data.statistics import StreamStatistics
from manystream.data.streams import StreamSpec
from manystream.evaluation.conditions import EvaluationOptions, corruptions_of
from manystream.evaluation.corruptions import Corruption
from manystream.presence import Presence

COLOR = StreamSpec("rgb", 3, "color")
DEPTH = StreamSpec("depth", 1, "depth")
PREPROCESSING = Preprocessing(
    8,
    (COLOR, DEPTH),
    (
        StreamStatistics((100.0, 120.0, 90.0), (50.0, 40.0, 60.0)),
        StreamStatistics((2000.0,), (700.0,)),
    ),
)


def raw_images(count=4):
    """Colour from 0 to 255, and depth in millimetres of which a quarter has no reading."""
    rng = np.random.default_rng(0)
    color = torch.from_numpy(rng.integers(0, 256, (count, 3, 8, 8))).float()
    depth = torch.from_numpy(rng.integers(500, 4000, (count, 1, 8, 8))).float()
    return color, depth.masked_fill(torch.from_numpy(rng.random((count, 1, 8, 8)) < 0.25), 0)


def batch_of(color, depth):
    images = [
        torch.stack([normalise(image, spec, statistics) for image in stream])
        for stream, spec, statistics in zip(
            (color, depth), PREPROCESSING.streams, PREPROCESSING.statistics, strict=True
        )
    ]
    return StreamBatch(tuple(images), Presence.all_present(len(color), 2))


def corrupted(batch, kind, stream, level, seed=0):
    options = EvaluationOptions(
        **{"noise_levels": [], "darkness_levels": [], f"{kind}_levels": [level]}
    )
    corruption = corruptions_of(options, 2, PREPROCESSING)[stream]
    assert (corruption.kind, corruption.stream) == (kind, stream)
    return corruption.apply(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("level", [0.0, 0.25, 1.0])
def test_a_dark_image_is_the_raw_one_with_less_light(level):
    color, depth = raw_images()
    dark = corrupted(batch_of(color, depth), "darkness", 0, level)
    expected = batch_of(color * (1 - level), depth)
    torch.testing.assert_close(dark.streams[0], expected.streams[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(dark.streams[1], expected.streams[1])


def test_depth_in_the_dark_loses_readings_and_changes_none():
    batch = batch_of(*raw_images(64))
    dark = corrupted(batch, "darkness", 1, 0.3).streams[1]
    before = batch.streams[1]
    had = before != 0
    left = dark != 0
    assert not (left & ~had).any()
    assert torch.equal(dark[left], before[left])
    assert left.sum() / had.sum() == pytest.approx(0.7, abs=0.03)
    assert not corrupted(batch, "darkness", 1, 1.0).streams[1].any()


def test_noise_is_measured_in_standard_deviations():
    batch = batch_of(*raw_images(64))
    noisy = corrupted(batch, "noise", 0, 0.5)
    added = noisy.streams[0] - batch.streams[0]
    assert added.std() == pytest.approx(0.5, rel=0.05)
    assert added.mean() == pytest.approx(0, abs=0.02)
    assert torch.equal(noisy.streams[1], batch.streams[1])


def test_noise_on_depth_leaves_what_has_no_reading():
    batch = batch_of(*raw_images(64))
    before, noisy = batch.streams[1], corrupted(batch, "noise", 1, 2.0).streams[1]
    assert torch.equal(noisy == 0, before == 0)
    assert (noisy - before)[before != 0].std() == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("kind", ["noise", "darkness"])
def test_the_seed_decides(kind):
    batch = batch_of(*raw_images())
    first, again, other = (corrupted(batch, kind, 1, 0.5, seed).streams[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_stream_that_no_sample_has():
    mask = torch.tensor([[True, False]])
    batch = StreamBatch((torch.ones(1, 3, 8, 8), torch.ones(0, 1, 8, 8)), Presence.from_mask(mask))
    for kind in ("noise", "darkness"):
        changed = Corruption(kind, 1, 0.5, "depth").apply(batch, torch.Generator())
        assert changed.streams[1].shape == (0, 1, 8, 8)
        assert torch.equal(changed.streams[0], batch.streams[0])
