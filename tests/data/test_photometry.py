import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manystream.data.augmentation import DepthDraw, Span
from manystream.data.photometry import disturb_depth, jitter_color, normal_noise

IMAGES = torch.zeros(3, 1, 60, 80)


def uniform(value: float, size=(20, 40)) -> torch.Tensor:
    return torch.full((1, 1, *size), value)


def test_noise_is_nearly_normal():
    noise = normal_noise([1, 2, 3], 0, IMAGES).flatten(1)
    assert noise.mean(dim=1).abs().max() < 0.05
    assert (noise.std(dim=1) - 1).abs().max() < 0.03
    within = [(noise.abs() < bound).float().mean().item() for bound in (1, 2, 3)]
    assert within == pytest.approx([0.683, 0.954, 0.997], abs=0.02)


def test_noise_of_pixels_seeds_and_streams_is_unrelated():
    a, b, c = normal_noise([1, 2, 3], 0, IMAGES).flatten(1)
    other = normal_noise([1], 1, IMAGES[:1]).flatten()
    pairs = [(a, b), (b, c), (a, other), (a[1:], a[:-1]), (a[80:], a[:-80])]
    for x, y in pairs:
        assert torch.corrcoef(torch.stack([x, y]))[0, 1].abs() < 0.06


@given(seed=st.integers(0, 2**24 - 1), others=st.lists(st.integers(0, 2**24 - 1), max_size=3))
def test_noise_of_a_sample_does_not_depend_on_its_batch(seed, others):
    alone = normal_noise([seed], 2, torch.zeros(1, 1, 4, 5))
    together = normal_noise([*others, seed], 2, torch.zeros(len(others) + 1, 1, 4, 5))
    assert torch.equal(alone[0], together[-1])


def test_noise_is_what_splitmix64_gives():
    """The first numbers of its published generator, seeded with 0 and 1."""
    mask = 2**64 - 1

    def splitmix(state):
        z = state * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return z ^ z >> 31

    found = normal_noise([7], 1, torch.zeros(1, 1, 1, 3, dtype=torch.float64)).flatten()
    for pixel in range(3):
        bits = splitmix((1 << 56) + (7 << 32) + pixel)
        total = sum(bits >> shift & 0xFFFF for shift in (0, 16, 32, 48))
        expected = (total - 2 * 65535) / (4 * (65536**2 - 1) / 12) ** 0.5
        assert found[pixel].item() == pytest.approx(expected, abs=1e-12)


def test_depth_is_scaled_and_noisy_about_its_reading():
    scaled = disturb_depth(uniform(2000.0), [DepthDraw(scale=1.25)], 0)
    assert torch.equal(scaled, uniform(2500.0))
    noisy = disturb_depth(uniform(2000.0), [DepthDraw(noise=0.1, seed=4)], 0).log()
    assert noisy.mean().item() == pytest.approx(torch.tensor(2000.0).log().item(), abs=0.02)
    assert noisy.std().item() == pytest.approx(0.1, abs=0.01)


def test_what_is_no_reading_stays_none():
    depth = torch.tensor([0.0, float("nan"), float("inf"), -5.0]).view(1, 1, 1, 4)
    found = disturb_depth(depth, [DepthDraw(scale=1.5, noise=0.3, seed=1)], 0).flatten()
    assert found[0] == 0
    assert found[1].isnan()
    assert found[2].isinf()
    assert found[3] < 0


def test_holes_have_no_reading_and_the_rest_is_kept():
    hole = (Span(0.25, 0.5), Span(0.5, 0.75))
    found = disturb_depth(uniform(3.0).expand(2, 1, 20, 40), [DepthDraw(holes=(hole,)), None], 0)
    assert (found[0, 0, 5:10, 20:30] == 0).all()
    assert (found[0] == 0).sum() == 50
    assert (found[1] == 3).all()


def test_jitter_of_a_batch_is_that_of_each_image():
    images = torch.rand(3, 3, 5, 6) * 255
    factors = torch.rand(3, 3) + 0.5
    together = jitter_color(images, factors)
    for b in range(3):
        assert torch.allclose(
            together[b : b + 1], jitter_color(images[b : b + 1], factors[b : b + 1])
        )


def test_jitter_by_hand():
    """Brightness 2, contrast 0.5 about the mean grey, saturation 0 leaves each pixel's grey."""
    image = torch.tensor([[10.0, 50.0], [20.0, 60.0], [30.0, 70.0]]).view(1, 3, 1, 2)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1)
    bright = 2 * image.view(3, 2)
    grey = (bright * luma).sum(dim=0)
    flat = 0.5 * bright + 0.5 * grey.mean()
    found = jitter_color(image, torch.tensor([[2.0, 0.5, 0.0]])).view(3, 2)
    assert torch.allclose(found, (flat * luma).sum(dim=0).expand(3, 2))
    identity = jitter_color(image, torch.ones(1, 3))
    assert torch.allclose(identity, image)
