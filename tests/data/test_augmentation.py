import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manystream.data.augmentation import (
    WHOLE,
    DepthDraw,
    Draw,
    Span,
    disturb_depth,
    draw,
    jitter_color,
    normal_noise,
    pixels,
)
from manystream.data.options import Augmentation

DEPTH = {"depth_scale": 0.2, "depth_noise": 0.05, "depth_holes": 4}


def drawn(seed=0, sizes=((24, 32),), **settings) -> Draw:
    return draw(Augmentation(**settings), sizes, np.random.default_rng(seed))


def test_nothing_is_the_default_of_a_draw():
    assert Draw() == Draw(rows=WHOLE, columns=WHOLE, flipped=False, color=None, depth=None)
    assert drawn(scale=(1, 1), flip=0, color=0) == Draw()


def test_what_is_done_to_depth_changes_nothing_before_it():
    plain, disturbed = drawn(seed=3), drawn(seed=3, **DEPTH)
    assert plain.depth is None
    assert disturbed.depth is not None
    assert (plain.rows, plain.columns, plain.color) == (
        disturbed.rows,
        disturbed.columns,
        disturbed.color,
    )


def test_depth_draws_stay_in_their_ranges():
    draws = [drawn(seed, **DEPTH).depth for seed in range(200)]
    scales = [depth.scale for depth in draws]
    assert 0.8 <= min(scales) < 0.82
    assert 1.18 < max(scales) <= 1.2
    assert {len(depth.holes) for depth in draws} == {0, 1, 2, 3, 4}
    assert len({depth.seed for depth in draws}) > 190
    sides = [span.stop - span.start for depth in draws for hole in depth.holes for span in hole]
    assert 0.05 <= min(sides) < 0.06
    assert 0.24 < max(sides) <= 0.25 + 1e-9
    assert all(0 <= s.start < s.stop <= 1 for d in draws for hole in d.holes for s in hole)


def test_the_box_lies_on_the_coarsest_grid():
    for seed in range(50):
        found = drawn(seed, sizes=((48, 64), (12, 16)))
        assert found.rows.start * 12 == pytest.approx(round(found.rows.start * 12))
        assert found.columns.stop * 16 == pytest.approx(round(found.columns.stop * 16))
        first, last = pixels(found.rows, 12)
        assert pixels(found.rows, 48) == (4 * first, 4 * last)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", (0.0, 1.0)),
        ("scale", (0.9, 0.5)),
        ("scale", (0.5, 1.1)),
        ("flip", 1.5),
        ("color", -1),
        ("depth_scale", 1.0),
        ("depth_noise", -0.1),
        ("depth_holes", -1),
        ("depth_holes", 65),
    ],
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        Augmentation(**{name: value})


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
