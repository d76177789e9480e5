import pytest
import torch
from torch import Tensor

from manystream.layers import StreamMaxPool2d
from tests.builders import compact_batch, mask_of


def maxima(x: Tensor) -> Tensor:
    """3×3 windows, two apart, over a rim of minus infinity, one by one."""
    rim = torch.full((*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2), -torch.inf, dtype=x.dtype)
    rim[:, :, 1:-1, 1:-1] = x
    rows = range(0, rim.shape[2] - 2, 2)
    columns = range(0, rim.shape[3] - 2, 2)
    windows = [[rim[:, :, i : i + 3, j : j + 3].amax(dim=(2, 3)) for j in columns] for i in rows]
    return torch.stack([torch.stack(row, dim=-1) for row in windows], dim=-2)


@pytest.mark.parametrize("words", ["11 11", "11 01 10", "10 10"])
@pytest.mark.parametrize("size", [(5, 7), (4, 6), (1, 1)])
def test_every_pathway_is_pooled(words: str, size: tuple[int, int]) -> None:
    pool = StreamMaxPool2d(kernel_size=3, stride=2, padding=1)
    batch = compact_batch(mask_of(words), size=size, integrated_channels=2)
    # Below zero, where padding by zeros would show.
    batch = batch.map(lambda x: x - 10)
    out = pool(batch)
    pathways = zip((*batch.streams, batch.integrated), (*out.streams, out.integrated), strict=True)
    for x, y in pathways:
        assert torch.equal(y, maxima(x))
    assert out.presence is batch.presence


def test_the_gradient_goes_to_the_largest() -> None:
    pool = StreamMaxPool2d(kernel_size=2, stride=2)
    batch = compact_batch(mask_of("1"), [1], size=(2, 2), integrated_channels=1)
    images = torch.tensor([[[[1.0, 4.0], [3.0, 2.0]]]], requires_grad=True)
    pool(batch.map(lambda _: images)).integrated.sum().backward()
    assert torch.equal(images.grad, torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]))
