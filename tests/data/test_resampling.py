import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from manystream.data.resampling import crop_nearest, crop_resize

LENGTH = st.integers(1, 30)


@st.composite
def crops(draw):
    """Images of one size, a box in each, which are flipped, and the size to reach."""
    height, width = draw(LENGTH), draw(LENGTH)
    boxes, flipped = [], []
    for _ in range(draw(st.integers(1, 3))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
        boxes.append((top, bottom, left, right))
        flipped.append(draw(st.booleans()))
    images = torch.rand(len(boxes), 2, height, width, generator=torch.Generator().manual_seed(1))
    # Where the result is one pixel wide, torch (2.11, 2.13) blends only the first rows.
    return images, boxes, flipped, (draw(LENGTH), draw(st.integers(2, 30)))


def by_torch(images, boxes, flipped, size, **how):
    """Cut, resize and flip one image after the other."""
    found = []
    for image, (top, bottom, left, right), flip in zip(images, boxes, flipped, strict=True):
        resized = F.interpolate(image[None, :, top:bottom, left:right], size, **how)
        found.append(resized.flip(-1) if flip else resized)
    return torch.cat(found)


@given(crops())
def test_a_batch_of_crops_is_resized_as_torch_resizes_one(case):
    images, boxes, flipped, size = case
    found = crop_resize(images, torch.tensor(boxes), torch.tensor(flipped), size)
    expected = by_torch(images, boxes, flipped, size, mode="bilinear", antialias=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@given(crops())
def test_the_nearest_pixels_are_those_torch_takes(case):
    images, boxes, flipped, size = case
    channels_last = images.permute(0, 2, 3, 1)
    found = crop_nearest(channels_last, torch.tensor(boxes), torch.tensor(flipped), size)
    expected = by_torch(images, boxes, flipped, size, mode="nearest-exact")
    assert torch.equal(found.permute(0, 3, 1, 2), expected)


def test_what_lies_outside_of_the_box_is_not_touched():
    images = torch.full((1, 1, 6, 6), float("nan"))
    images[..., :4, :5] = 2.0
    found = crop_resize(
        images.nan_to_num(1e30), torch.tensor([[0, 4, 0, 5]]), torch.tensor([True]), (7, 3)
    )
    assert torch.allclose(found, torch.full((1, 1, 7, 3), 2.0))
