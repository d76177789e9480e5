import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manystream.data.loader import StreamDataset
from manystream.data.options import Augmentation
from manystream.data.preprocessing import Preprocessing
from manystream.data.sampler import SampleKey
from manystream.data.statistics import StreamStatistics
from manystream.data.streams import StreamSpec
from manystream.data.transforms import prepare
from tests.data.builders import DEPTH, OTHER, RGB, ArraySource, identity, noise, ramps

VARIED = Augmentation()


def transform_of(preprocessing: Preprocessing, augmentation: Augmentation | None = None):
    """What a sample's images become, by the seed, the epoch and the number of the sample."""

    def transform(images, key=(0, 0, 0)):
        seed, epoch, index = key
        source = ArraySource(preprocessing.streams, [images] * (index + 1))
        data = StreamDataset(source, preprocessing, augmentation, seed)
        raw = data[SampleKey(index, (True,) * len(images), epoch)]
        return [x[0] if len(x) else None for x in prepare(raw, preprocessing).streams]

    return transform


def transform_pair(preprocessing: Preprocessing):
    plain = Augmentation(scale=(1.0, 1.0), flip=0.0, color=0.0)
    return [transform_of(preprocessing), transform_of(preprocessing, plain)]


@pytest.mark.parametrize("transform", transform_pair(identity(RGB, DEPTH, OTHER, size=(6, 9))))
def test_shapes_and_absent_streams(transform):
    found = transform([noise(5, 7), None, ramps(11, 4)], (0, 0, 0))
    assert found[1] is None
    assert [None if x is None else tuple(x.shape) for x in found] == [(3, 6, 9), None, (2, 6, 9)]
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in found if x is not None)


@pytest.mark.parametrize("which", [0, 1])
def test_at_its_own_size_an_image_keeps_its_values(which):
    transform = transform_pair(identity(RGB, DEPTH, OTHER, size=(6, 8)))[which]
    images = [noise(6, 8), noise(6, 8, 1).astype(np.uint16) * 257, ramps(6, 8)]
    found = transform(images, (0, 0, 0))
    for tensor, image in zip(found, images, strict=True):
        np.testing.assert_allclose(tensor.permute(1, 2, 0).numpy(), image, rtol=1e-6)
    np.testing.assert_array_equal(found[1][0].numpy(), images[1][..., 0])


@pytest.mark.parametrize("which", [0, 1])
def test_normalisation(which):
    statistics = (
        StreamStatistics((10.0, 20.0, 30.0), (2.0, 4.0, 8.0)),
        StreamStatistics((1000.0,), (500.0,)),
    )
    transform = transform_pair(Preprocessing(4, (RGB, DEPTH), statistics))[which]
    depth = np.array([0, np.nan, np.inf, -np.inf, -3, 500, 1000, 2000], np.float32)
    images = [noise(4, 4), np.resize(depth, (4, 4, 1))]
    color, ranges = transform(images, (0, 0, 0))
    expected = (images[0] - np.array([10, 20, 30.0])) / np.array([2, 4, 8.0])
    np.testing.assert_allclose(color.permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ranges.flatten()[:8].numpy(), [0, 0, 0, 0, 0, -1, 0, 2])


def test_evaluation_keeps_the_whole_image():
    (found,) = transform_of(identity(OTHER, size=(8, 10)))([ramps(32, 80)])
    # Antialiasing clips its kernel at the border, so only the inside is an exact ramp.
    inside = (slice(None), slice(1, -1), slice(1, -1))
    expected = torch.from_numpy(ramps(8, 10)).permute(2, 0, 1)
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-5)


def test_shrinking_averages_fine_detail_away():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::8] = 200  # Taking one pixel in eight would see none of them.
    (found,) = transform_of(identity(RGB))([stripes])
    np.testing.assert_allclose(found[..., 1:-1], 25, atol=2)


def test_evaluation_needs_no_random_numbers():
    transform = transform_of(identity(RGB))
    assert torch.equal(transform([noise(9, 9)])[0], transform([noise(9, 9)], (1, 2, 3))[0])


@given(seed=st.integers(0, 10_000), factor=st.integers(1, 4), transposed=st.booleans())
def test_the_crop_is_joint_across_resolutions(seed, factor, transposed):
    height, width = (24, 18) if transposed else (18, 24)
    streams = (OTHER, OTHER, StreamSpec("depth", 2, "depth"))
    transform = transform_of(identity(*streams, size=96), Augmentation(scale=(0.2, 1.0)))
    coarse, fine = ramps(height, width), ramps(height * factor, width * factor)
    found = transform([fine, coarse, coarse], (seed, 0, 0))
    # 96 enlarges every crop, where interpolating a ramp is exact but for half a pixel of border.
    fine_inside, coarse_inside, depth_inside = (x[:, 8:-8, 8:-8] for x in found)
    np.testing.assert_allclose(fine_inside, coarse_inside, atol=1e-5)
    off = (fine_inside - depth_inside).abs().amax(dim=(1, 2)) * torch.tensor([height, width])
    assert (off <= 0.5 + 1e-3).all()  # Nearest is at most half a coarse pixel away.


@given(seed=st.integers(0, 10_000), lengths=st.tuples(*[st.integers(1, 40)] * 4))
def test_any_two_resolutions_stay_within_a_pixel(seed, lengths):
    transform = transform_of(
        identity(StreamSpec("a", 2, "depth"), StreamSpec("b", 2, "depth"), size=16), VARIED
    )
    a, b = ramps(*lengths[:2]), ramps(*lengths[2:])
    first, second = transform([a, b], (seed, 0, 0))
    for channel in (0, 1):
        pixel = 1 / lengths[channel] + 1 / lengths[channel + 2]
        assert (first[channel] - second[channel]).abs().max().item() <= pixel + 1e-5


@pytest.mark.parametrize("area", [0.25, 0.6, 1.0])
def test_the_crop_has_the_area_asked_for(area):
    transform = transform_of(identity(OTHER, size=64), Augmentation(scale=(area, area), flip=0.0))
    spans = []
    for seed in range(50):
        (found,) = transform([ramps(200, 300)], (seed, 0, 0))
        rows, columns = found[0, :, 0], found[1, 0, :]
        spans.append([(rows[-1] - rows[0]).item(), (columns[-1] - columns[0]).item()])
    height, width = np.array(spans).T * 64 / 63
    np.testing.assert_allclose(height * width, area, rtol=0.05)
    assert ((width / height) < 4 / 3 + 0.05).all()
    assert ((width / height) > 3 / 4 - 0.05).all()
    assert area == 1.0 or np.ptp(width / height) > 0.2


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_the_flip_is_joint_and_as_often_as_asked(flip):
    preprocessing = identity(OTHER, StreamSpec("depth", 2, "depth"))
    transform = transform_of(preprocessing, Augmentation(flip=flip))
    flipped = []
    for seed in range(200):
        found = transform([ramps(16, 16), ramps(8, 8)], (seed, 0, 0))
        rightward = [(x[1, 0, -1] > x[1, 0, 0]).item() for x in found]
        downward = [(x[0, -1, 0] > x[0, 0, 0]).item() for x in found]
        assert downward == [True, True]
        assert rightward[0] == rightward[1]
        flipped.append(not rightward[0])
    assert np.mean(flipped) == pytest.approx(flip, abs=0.1 if 0 < flip < 1 else 0)


@given(seed=st.integers(0, 10_000), size=st.integers(1, 40))
def test_depth_is_never_blended(seed, size):
    rng = np.random.default_rng(seed)
    depth = rng.choice(np.array([0, 1000, 60000], np.uint16), (13, 17, 1))
    preprocessing = identity(DEPTH, size=size)
    for transform in (transform_of(preprocessing), transform_of(preprocessing, VARIED)):
        (found,) = transform([depth], (seed, 0, 0))
        assert set(found.unique().tolist()) <= {0.0, 1000.0, 60000.0}


def test_jitter_changes_color_only():
    streams = (RGB, StreamSpec("second", 3, "color"), DEPTH, OTHER)
    images = [noise(9, 9), noise(9, 9), noise(9, 9, 1).astype(np.uint16), ramps(9, 9)]
    preprocessing = identity(*streams)
    for seed in range(20):
        plain = transform_of(preprocessing, Augmentation(color=0.0))(images, (seed, 0, 0))
        jittered = transform_of(preprocessing, Augmentation(color=0.4))(images, (seed, 0, 0))
        assert not torch.allclose(plain[0], jittered[0])
        assert torch.equal(jittered[0], jittered[1])
        assert torch.equal(plain[2], jittered[2])
        assert torch.equal(plain[3], jittered[3])
        assert jittered[0].min() >= 0
        assert jittered[0].max() <= 255


def test_jitter_of_a_uniform_grey_image_is_brightness_alone():
    """Contrast and saturation blend with what such an image already is."""
    transform = transform_of(identity(RGB, size=4), Augmentation(color=0.4))
    factors = []
    for seed in range(200):
        (found,) = transform([np.full((4, 4, 3), 100, np.uint8)], (seed, 0, 0))
        assert torch.allclose(found, found.mean(), rtol=1e-5)
        factors.append(found.mean().item() / 100)
    assert 0.6 <= min(factors) < 0.65
    assert 1.35 < max(factors) <= 1.4


@pytest.mark.parametrize("channels", [1, 4])
def test_jitter_of_other_channel_counts(channels):
    transform = transform_of(
        identity(StreamSpec("grey", channels, "color")), Augmentation(color=1.0)
    )
    (found,) = transform([noise(9, 9, channels)], (0, 0, 0))
    assert found.isfinite().all()


def test_a_sample_is_reproducible_and_epochs_differ():
    transform = transform_of(identity(RGB), VARIED)
    image = noise(20, 20)

    def draw(*key):
        return transform([image], key)[0]

    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))
    others = [draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0), draw(2, 1, 3)]
    assert not any(torch.equal(draw(1, 2, 3), other) for other in others)


def test_an_absent_stream_does_not_change_the_draw():
    transform = transform_of(identity(RGB, DEPTH), VARIED)
    depth = noise(20, 20, 1).astype(np.uint16)
    both = transform([noise(20, 20), depth], (0, 0, 0))
    alone = transform([noise(20, 20), None], (0, 0, 0))
    assert torch.equal(both[0], alone[0])


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_the_source_image_is_neither_changed_nor_shared(writable, order):
    image = ramps(8, 8)[order]
    image.setflags(write=writable)
    before = image.copy()
    for transform in transform_pair(identity(OTHER)):
        transform([image])[0].zero_()
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([None, None], "samples without any stream: 0"),
        ([noise(4, 4, 1), None], r"'rgb' has shape \(4, 4, 1\); expected \(H, W, 3\)"),
        ([None, noise(4, 4)[..., 0]], r"'depth' has shape \(4, 4\); expected \(H, W, 1\)"),
    ],
)
def test_images_that_do_not_fit(images, message):
    for transform in transform_pair(identity(RGB, DEPTH)):
        with pytest.raises(ValueError, match=message):
            transform(images, (0, 0, 0))
