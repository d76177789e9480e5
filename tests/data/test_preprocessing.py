import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from manystream.data.preprocessing import (
    Preprocessing,
    blend_together,
    crop_resize,
    normalise,
    resize,
    take_together,
)
from manystream.data.statistics import StreamStatistics
from tests.data.builders import DEPTH, OTHER, RGB, noise, ramps


def test_preprocessing_survives_json():
    statistics = (
        StreamStatistics((1.0, 0.1, 3.0), (2.0, 1 / 3, 1.0)),
        StreamStatistics((5.0,), (2.0,)),
    )
    for size in (224, (240, 320)):
        preprocessing = Preprocessing(size, (RGB, DEPTH), statistics)
        text = json.dumps(preprocessing.to_dict())
        assert Preprocessing.from_dict(json.loads(text)) == preprocessing


def test_preprocessing_is_checked():
    one = StreamStatistics((0.0,), (1.0,))
    with pytest.raises(ValueError, match="image_size=0"):
        Preprocessing(0, (DEPTH,), (one,))
    with pytest.raises(ValueError, match=r"have \[1\] channels; expected \[3\]"):
        Preprocessing(8, (RGB,), (one,))
    with pytest.raises(ValueError, match=r"have \[1\] channels; expected \[1, 1\]"):
        Preprocessing(8, (DEPTH, DEPTH), (one,))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("spec", [OTHER, DEPTH])
def test_at_its_own_size_an_image_is_copied(dtype, spec):
    image = (ramps(2, 3) * 200).astype(dtype)
    found = resize(image, spec, (2, 3))
    assert found.dtype == dtype
    assert found.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(found, image)
    assert not np.shares_memory(found, image)


def test_depth_takes_the_nearest_pixel_and_the_rest_is_blended():
    steps = np.array([[0, 0, 1000, 1000]], np.uint16)[..., None]
    assert resize(steps, DEPTH, (1, 2)).flatten().tolist() == [0, 1000]
    assert resize(steps[:, 1:3], DEPTH, (1, 4)).flatten().tolist() == [0, 0, 1000, 1000]
    assert resize(steps[:, 1:3], OTHER, (1, 4)).flatten().tolist() == [0, 250, 750, 1000]
    narrow = (steps[:, 1:3] // 10).astype(np.uint8)
    assert resize(narrow, OTHER, (1, 4)).flatten().tolist() == [0, 25, 75, 100]


# Of a float image whose result is one pixel wide, torch (2.11, 2.13) blends only the first rows.
@given(lengths=st.tuples(*[st.integers(1, 60)] * 3, st.integers(2, 60)))
def test_resizing_is_what_torch_does_rounded_to_the_dtype(lengths):
    height, width, *size = lengths
    image = noise(height, width, 2).astype(np.uint16) * 7
    full = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    nearest = F.interpolate(full, size, mode="nearest-exact")[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(resize(image, DEPTH, tuple(size)), nearest)
    blended = F.interpolate(full, size, mode="bilinear", antialias=True)[0]
    blended = blended.permute(1, 2, 0).numpy()
    floats = resize(image.astype(np.float32), OTHER, tuple(size))
    np.testing.assert_allclose(floats, blended, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(resize(image, OTHER, tuple(size)), floats.round())
    narrow = resize((image // 7).astype(np.uint8), OTHER, tuple(size))
    assert narrow.dtype == np.uint8
    assert np.abs(narrow - blended / 7).max() <= 1 + 1e-3


def test_depth_without_a_reading_is_zero_after_normalisation():
    statistics = StreamStatistics((1000.0,), (500.0,))
    depth = torch.tensor([[[0.0, float("nan"), float("inf"), -3.0, 500.0, 2000.0]]])
    assert normalise(depth, DEPTH, statistics).flatten().tolist() == [0, 0, 0, 0, -1, 2]
    zeros = torch.zeros(1, 1, 1)
    assert normalise(zeros, OTHER, statistics).flatten().tolist() == [-2]


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
