"""The rewritten convolution against the stock one."""

import pytest
import torch
import torch.nn.functional as F

from manystream.functional import remat
from manystream.functional.few_channels import few_channels_conv2d, has_few_channels

CASES = [
    # channels, kernel, padding, height, width
    (3, 7, 3, 32, 20),
    (1, 7, 3, 8, 8),
    (1, 7, 3, 2, 2),
    (2, 5, 2, 12, 10),
    (3, 3, 1, 6, 6),
    (3, 4, 1, 6, 8),
    (4, 7, 2, 14, 14),
    (2, 6, 0, 10, 8),
]


def operands(channels, kernel_size, height, width):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, height, width, dtype=torch.float64, generator=generator)
    weight = torch.randn(
        6, channels, kernel_size, kernel_size, dtype=torch.float64, generator=generator
    )
    return x, weight.requires_grad_()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_same_convolution(case):
    channels, kernel_size, padding, height, width = case
    x, weight = operands(channels, kernel_size, height, width)
    expected = F.conv2d(x, weight, stride=2, padding=padding)
    found = few_channels_conv2d(x, weight, padding, torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    (due,) = torch.autograd.grad(expected, weight, upstream)
    (came,) = torch.autograd.grad(found, weight, upstream)
    torch.testing.assert_close(came, due, rtol=0, atol=1e-11)


def test_what_is_rearranged_is_not_kept_while_recording():
    x, weight = operands(3, 7, 16, 16)
    kept = []
    with remat.recording(), remat.observing(kept.append):
        y = few_channels_conv2d(x, weight, 3, torch.float64)
    maps = {t.untyped_storage().data_ptr() for t in kept if t.dim() == 4 and len(t) == len(x)}
    assert maps == {x.untyped_storage().data_ptr()}
    (grad,) = torch.autograd.grad(y.sum(), weight)
    (due,) = torch.autograd.grad(F.conv2d(x, weight, stride=2, padding=3).sum(), weight)
    torch.testing.assert_close(grad, due, rtol=0, atol=1e-11)


def test_a_cpu_keeps_the_stock_convolution():
    x, weight = operands(3, 7, 16, 16)
    assert not has_few_channels(x, weight, 2, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("change", "applies"),
    [({}, True), ({"stride": 1}, False), ({"height": 15}, False), ({"channels": 5}, False)],
    ids=str,
)
def test_where_it_applies(change, applies):
    sizes = {"channels": 3, "height": 16, "stride": 2} | change
    x, weight = operands(sizes["channels"], 7, sizes["height"], 16)
    assert has_few_channels(x.cuda(), weight.cuda(), sizes["stride"], 3) == applies
