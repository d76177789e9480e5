import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from manystream.data.resampling import blend_together, crop_resize, take_together

LENGTH = st.integers(1, 30)
DTYPES = (torch.uint8, torch.uint16, torch.float32)


@st.composite
def crops(draw):
    """Images (H, W, C) of one size, a frame in each, and the size to reach."""
    height, width = draw(LENGTH), draw(LENGTH)
    frames = []
    for _ in range(draw(st.integers(1, 3))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
        frames.append((top, bottom, left, right, draw(st.integers(0, 1))))
    images = torch.rand(len(frames), height, width, 2, generator=torch.Generator().manual_seed(1))
    # Where the result is one pixel wide, torch (2.11, 2.13) blends only the first rows.
    return images, torch.tensor(frames), (draw(LENGTH), draw(st.integers(2, 30)))


def by_torch(images, frames, size, **how):
    """Cut, resize and flip one image after the other, in float32."""
    found = []
    for image, (top, bottom, left, right, flipped) in zip(images, frames.tolist(), strict=True):
        cut = image[top:bottom, left:right].float().permute(2, 0, 1)[None]
        resized = F.interpolate(cut, size, **how)
        found.append(resized.flip(-1) if flipped else resized)
    return torch.cat(found)


BLENDED = {"mode": "bilinear", "antialias": True}
NEAREST = {"mode": "nearest-exact"}


@given(crops())
def test_a_batch_of_crops_is_blended_as_torch_blends_one(case):
    images, frames, size = case
    expected = by_torch(images, frames, size, **BLENDED)
    torch.testing.assert_close(blend_together(images, frames, size), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(crop_resize(images, frames, size, nearest=False), expected)


@given(crops())
def test_the_nearest_pixels_are_those_torch_takes(case):
    images, frames, size = case
    expected = by_torch(images, frames, size, **NEAREST)
    assert torch.equal(take_together(images, frames, size), expected)
    assert torch.equal(crop_resize(images, frames, size, nearest=True), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(8, 5), (40, 31), (12, 9)])
def test_images_of_several_sizes_in_every_dtype(dtype, size):
    rng = np.random.default_rng(3)
    top = {torch.uint8: 256, torch.uint16: 65536, torch.float32: 9}[dtype]
    shapes = [(12, 9, 3), (30, 41, 3), (9, 12, 3)]
    images = [torch.from_numpy(rng.uniform(0, top, shape)).to(dtype) for shape in shapes]
    frames = torch.tensor([[0, 12, 0, 9, 1], [3, 29, 0, 40, 0], [0, 1, 4, 12, 1]])
    nearest = crop_resize(images, frames, size, nearest=True)
    assert torch.equal(nearest, by_torch(images, frames, size, **NEAREST))
    blended, expected = (
        crop_resize(images, frames, size, nearest=False),
        by_torch(images, frames, size, **BLENDED),
    )
    # Torch's kernel for 8 bits rounds twice, after the rows and after the columns.
    assert (blended - expected).abs().max() <= (1 + 1e-3 if dtype == torch.uint8 else 1e-2)
    assert nearest.dtype == blended.dtype == torch.float32


def test_what_lies_outside_of_the_box_is_not_touched():
    images = torch.full((1, 6, 6, 1), 1e30)
    images[:, :4, :5] = 2.0
    frames = torch.tensor([[0, 4, 0, 5, 1]])
    for found in (
        blend_together(images, frames, (7, 3)),
        crop_resize(images, frames, (7, 3), nearest=False),
    ):
        assert torch.allclose(found, torch.full((1, 1, 7, 3), 2.0))
