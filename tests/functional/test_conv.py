import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from manystream.functional import remat
from manystream.functional.conv import conv2d

HAMMER = """
import torch
from manystream.layers import RawConv2d
torch.set_num_threads(2)
for i in range(150):
    channels = (3, 8, 13)[i % 3]
    conv = RawConv2d(channels, 16, 1, stride=2, bias=False)
    x = torch.randn(5, channels, 16, 16).contiguous(memory_format=torch.channels_last)
    conv(x.requires_grad_()).sum().backward()
    others = [torch.randn(n) for n in (5, 17, 50, 500)]
"""


def test_small_strided_convolutions_do_not_end_the_process():
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    run = [sys.executable, "-X", "faulthandler", "-c", HAMMER]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("channels", "stride", "padding", "size", "batch"),
    [(8, 2, 0, (7, 10), 3), (15, 3, 1, (9, 8), 2), (1, 2, 0, (5, 5), 1), (3, 2, 2, (4, 6), 0)],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_their_gradients_are_those_of_torch(channels, stride, padding, size, batch, recorded):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, *size, dtype=torch.float64, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(6, channels, 1, 1, dtype=torch.float64, generator=generator)
    weight.requires_grad_()
    expected = F.conv2d(x, weight, None, stride, padding)
    upstream = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    if recorded:
        with remat.recording():
            y = conv2d(x, weight, stride, padding, rebuild=True)
    else:
        y = conv2d(x, weight, stride, padding)
    assert torch.equal(y, expected)
    ours = torch.autograd.grad(y, (x, weight), upstream)
    theirs = torch.autograd.grad(expected, (x, weight), upstream)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-12, atol=1e-12)
    assert ours[0].is_contiguous(memory_format=torch.channels_last) or batch == 0
    assert ours[1].stride() == weight.stride()


def test_their_gradients_under_autocast_are_of_the_parameters_type():
    x, weight = torch.randn(3, 8, 6, 6, requires_grad=True), torch.randn(4, 8, 1, 1)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = conv2d(x, weight, 2)
    assert y.dtype == torch.bfloat16
    grads = torch.autograd.grad(y.float().square().sum(), (x, weight))
    assert [g.dtype for g in grads] == [torch.float32, torch.float32]
    exact = F.conv2d(x, weight, None, 2).square().sum()
    for ours, theirs in zip(grads, torch.autograd.grad(exact, (x, weight)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * theirs.abs().max().item())


@pytest.mark.parametrize(("channels", "kernel_size", "stride"), [(16, 1, 2), (8, 3, 2), (8, 1, 1)])
def test_all_others_are_left_to_torch(channels, kernel_size, stride):
    x = torch.randn(3, channels, 8, 8)
    weight = torch.randn(4, channels, kernel_size, kernel_size, requires_grad=True)
    assert type(conv2d(x, weight, stride).grad_fn).__name__ == "ConvolutionBackward0"
