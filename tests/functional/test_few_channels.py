"""The convolution for few channels against the stock one; without a GPU in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F

from manystream.functional import remat
from manystream.functional.conv import conv2d
from manystream.functional.kernels import dispatch

pytest.importorskip("triton")

from manystream.functional.few_channels import few_channels_conv2d, has_few_channels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    # channels, kernel, stride, padding, height, width
    (3, 7, 2, 3, 32, 20),
    (1, 7, 2, 3, 9, 8),
    (1, 7, 2, 3, 2, 2),
    (2, 5, 1, 2, 12, 10),
    (3, 3, 2, 1, 6, 7),
    (4, 7, 2, 2, 14, 14),
    (2, 6, 3, 0, 10, 8),
    (3, 1, 1, 0, 4, 5),
]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def _exact_products():
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def operands(channels, kernel_size, height, width, *, out_channels=6, batch=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(out_channels, channels, kernel_size, kernel_size, generator=generator)
    return x.to(DEVICE), weight.to(DEVICE).requires_grad_()


def assert_the_same_convolution(x, weight, stride, padding, dtype):
    x = x.to(dtype).to(x.dtype)  # the interpreter cuts where a GPU rounds
    with dispatch.launches_are_free():
        assert has_few_channels(x, weight)
        found = few_channels_conv2d(x, weight, stride, padding, dtype)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    rounded = weight.detach().to(dtype).double().requires_grad_()
    expected = F.conv2d(x.double(), rounded, stride=stride, padding=padding)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE[dtype] * scale)
    upstream = torch.randn_like(found)
    (due,) = torch.autograd.grad(expected, rounded, upstream.double())
    (came,) = torch.autograd.grad(found, weight, upstream)
    assert came.dtype == weight.dtype
    scale = due.abs().max().item()
    torch.testing.assert_close(came.double(), due, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_same_convolution(case, dtype):
    channels, kernel_size, stride, padding, height, width = case
    x, weight = operands(channels, kernel_size, height, width)
    assert_the_same_convolution(x, weight, stride, padding, dtype)


@pytest.mark.parametrize("out_channels", [64, 70, 144])
def test_many_output_channels(out_channels):
    x, weight = operands(3, 7, 12, 12, out_channels=out_channels)
    assert_the_same_convolution(x, weight, 2, 3, torch.float32)


def test_pixels_for_more_than_one_program():
    x, weight = operands(1, 3, 96, 96, batch=2)
    assert_the_same_convolution(x, weight, 1, 1, torch.float32)


def test_images_of_every_layout():
    x, weight = operands(3, 7, 12, 10)
    with dispatch.launches_are_free():
        plain = few_channels_conv2d(x, weight, 2, 3, torch.float32)
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(few_channels_conv2d(last, weight, 2, 3, torch.float32), plain)


def test_its_output_may_be_changed_in_place():
    x, weight = operands(3, 7, 12, 12)
    with dispatch.launches_are_free():
        y = few_channels_conv2d(x, weight, 2, 3, torch.float32)
    (due,) = torch.autograd.grad(2 * F.conv2d(x, weight, stride=2, padding=3).sum(), weight)
    (came,) = torch.autograd.grad(y.mul_(2).sum(), weight)
    torch.testing.assert_close(came, due, rtol=1e-4, atol=1e-3)


def test_nothing_but_the_images_is_kept():
    x, weight = operands(3, 7, 16, 16)
    kept = []
    with dispatch.launches_are_free(), remat.recording(), remat.observing(kept.append):
        y = few_channels_conv2d(x, weight, 2, 3, torch.float32)
    lives_anyway = weight.data_ptr()
    assert {t.data_ptr() for t in kept} - {lives_anyway} == {x.data_ptr()}
    del y


def test_a_convolution_goes_there_under_autocast():
    x, weight = operands(3, 7, 16, 16)
    expected = F.conv2d(x, weight, stride=2, padding=3)
    with dispatch.launches_are_free(), torch.autocast(DEVICE, torch.bfloat16):
        y = conv2d(x, weight, 2, 3)
    assert "FewChannels" in type(y.grad_fn).__name__
    assert y.dtype == torch.bfloat16
    atol = 0.02 * expected.abs().max().item()
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("channels", "kernel_size", "wants_gradient", "applies"),
    [(4, 8, False, True), (5, 7, False, False), (3, 9, False, False), (3, 7, True, False)],
)
def test_where_it_applies(channels, kernel_size, wants_gradient, applies):
    x, weight = operands(channels, kernel_size, 16, 16)
    with dispatch.launches_are_free():
        assert has_few_channels(x.requires_grad_(wants_gradient), weight) == applies


def test_without_kernels_the_stock_convolution_stays():
    x, weight = operands(3, 7, 16, 16)
    assert not has_few_channels(x.cpu(), weight)


def test_the_operations_pass_torchs_checks():
    x, weight = operands(3, 7, 16, 16)
    grad = torch.randn(3, 6, 8, 8, device=DEVICE)
    ops = torch.ops.manystream
    torch.library.opcheck(ops.few_channels_conv.default, (x, weight.detach(), 2, 3))
    torch.library.opcheck(ops.few_channels_conv_backward.default, (grad, x, 7, 2, 3))
