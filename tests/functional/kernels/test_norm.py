"""Fused norms against plain ones and against float64; without a GPU in Triton's interpreter."""

from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from manystream.functional import (
    After,
    BatchNormRows,
    Pool,
    Running,
    batch_norm_act,
    batch_statistics,
)
from manystream.functional.kernels import dispatch

pytest.importorskip("triton")

from manystream.functional.kernels import norm, pool, statistics, tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POOLS = [Pool(3, 2, 1), Pool(2, 2, 0), Pool(3, 1, 1)]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def operands(dtype, size, seed=0, offset=0.5):
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator)
    channels = size[1]
    x, residual = draw(size) + offset, draw(size)
    maps = [
        t.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last) for t in (x, residual)
    ]
    vectors = [t.to(DEVICE) for t in (draw(channels), draw(channels))]  # scales of either sign
    return [t.requires_grad_() for t in (*maps, *vectors)]


def running(channels, dtype=torch.float32):
    mean = torch.linspace(-1, 1, channels, dtype=dtype, device=DEVICE)
    return Running(mean, mean.abs() + 0.5, torch.tensor(7, device=DEVICE))


def one(running, weight, bias):
    """The same norm for all rows."""
    return [BatchNormRows(slice(None), running, weight, bias)]


def fused(inputs, after, training):
    """Output, gradients and buffers of one pass through the kernels."""
    x, residual, weight, bias = inputs
    buffers = running(x.shape[1])
    with dispatch.launches_are_free():
        assert dispatch.fused(x)
        y = batch_norm_act(
            x, one(buffers, weight, bias), residual=residual, after=after, training=training
        )
        return [y.detach(), *gradients(y, inputs), *buffers]


def exact(inputs, after, training):
    """The same by stock operations in float64, rounded where the kernels store or compare."""
    dtype = inputs[0].dtype
    x, residual, weight, bias = inputs = in_float64(inputs)
    buffers = running(x.shape[1], torch.float64)
    y = F.batch_norm(x, buffers.mean, buffers.var, weight, bias, training, 0.1, 1e-5)
    buffers.num_batches_tracked.add_(int(training))
    y = y if residual is None else y + residual
    if after.pool is None:  # a pool compares before it rounds
        y = y + (stored(y.detach(), dtype) - y).detach()
    y = F.relu(y) if after.relu else y
    y = y if after.pool is None else F.max_pool2d(y, *after.pool)
    return [y.detach(), *gradients(y, inputs), *buffers]


def stored(y, dtype):
    """Rounded to a dtype; on the CPU the interpreter cuts bfloat16 off."""
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        return (y.float().view(torch.int32) & ~0xFFFF).view(torch.float32).double()
    return y.to(dtype).double()


def gradients(y, inputs):
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y)
    return torch.autograd.grad(y, [t for t in inputs if t is not None], upstream)


def in_float64(inputs):
    return [None if t is None else t.detach().double().requires_grad_() for t in inputs]


def assert_close(found, truth, dtype):
    for ours, theirs in zip(found, truth, strict=True):
        scale = theirs.double().abs().max().item() + 1e-6
        error = (ours.double() - theirs.double()).abs().max().item()
        assert error <= TOLERANCE[dtype] * scale, (error, scale)


@dtypes
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize(("relu", "training"), list(product([True, False], repeat=2)))
@pytest.mark.parametrize("size", [(3, 5, 7, 9), (2, 72, 4, 4)], ids=str)
def test_norm_and_relu_agree_with_float64(size, relu, training, with_residual, dtype):
    x, residual, weight, bias = operands(dtype, size)
    inputs = (x, residual if with_residual else None, weight, bias)
    after = After(relu)
    assert_close(fused(inputs, after, training), exact(inputs, after, training), dtype)


@pytest.mark.parametrize("after", [After(), After(pool=POOLS[0])], ids=str)
def test_many_programs_add_up_what_one_would(after, monkeypatch):
    inputs = operands(torch.float32, (7, 20, 6, 6))
    inputs[1] = None
    whole = fused(inputs, after, True)
    monkeypatch.setattr(tiles, "_TILE", 16)
    monkeypatch.setattr(tiles, "_WIDEST", 8)
    monkeypatch.setattr(pool, "_FORWARD", 128)
    monkeypatch.setattr(pool, "_BACKWARD", 64)
    assert tiles.Tiles.of(7 * 36, 20).share()[0] > 50
    assert_close(fused(inputs, after, True), whole, torch.float32)


@dtypes
@pytest.mark.parametrize("window", POOLS, ids=str)
@pytest.mark.parametrize(("relu", "training"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("size", [(2, 5, 7, 9)], ids=str)
def test_pools_agree_with_float64(size, relu, training, window, dtype):
    x, _, weight, bias = operands(dtype, size)
    inputs = (x, None, weight, bias)
    after = After(relu, window)
    assert_close(fused(inputs, after, training), exact(inputs, after, training), dtype)


@dtypes
@pytest.mark.parametrize("after", [After(), After(False), After(pool=POOLS[0])], ids=str)
@pytest.mark.parametrize("with_residual", [True, False])
def test_norms_side_by_side_are_each_by_itself(with_residual, after, dtype):
    """One of them has no rows; all write into one output."""
    x, residual, *_ = operands(dtype, (5, 6, 4, 4))
    if not with_residual or after.pool is not None:
        residual = None
    affine = [operands(torch.float32, (1, 6, 1, 1), seed)[2:] for seed in (1, 2, 3)]
    slices = [slice(0, 2), slice(2, 2), slice(2, 5)]
    buffers = [running(6) for _ in slices]
    norms = [
        BatchNormRows(*of) for of in zip(slices, buffers, *zip(*affine, strict=True), strict=True)
    ]
    maps = [t for t in (x, residual) if t is not None]
    with dispatch.launches_are_free():
        y = batch_norm_act(x, norms, residual=residual, after=after)
        found = gradients(y, [*maps, *(t for pair in affine for t in pair)])
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y)
    for number, rows in enumerate(slices):
        of_affine = found[len(maps) + 2 * number :][:2]
        if rows.start == rows.stop:
            assert not any(grad.any() for grad in of_affine)
            continue
        part = [t.detach()[rows].requires_grad_() for t in maps]
        own = running(6)
        with dispatch.launches_are_free():
            alone = batch_norm_act(
                part[0],
                one(own, *affine[number]),
                residual=part[1] if len(part) > 1 else None,
                after=after,
            )
            expected = torch.autograd.grad(alone, [*part, *affine[number]], upstream[rows])
        of_maps = [grad[rows] for grad in found[: len(maps)]]
        for ours, theirs in zip([y[rows], *of_maps, *of_affine], [alone, *expected], strict=True):
            assert torch.equal(ours, theirs)
        assert all(map(torch.equal, buffers[number], own))


def test_of_equal_values_the_first_gets_the_gradient():
    x = torch.ones(1, 1, 3, 3, device=DEVICE).requires_grad_()
    still = Running(torch.zeros(1, device=DEVICE), torch.ones(1, device=DEVICE))
    scale = torch.ones(1, device=DEVICE)
    with dispatch.launches_are_free():
        y = batch_norm_act(
            x, one(still, scale, scale), after=After(pool=Pool(3, 3, 0)), training=False, eps=0.0
        )
        y.backward()
    expected = torch.zeros(1, 1, 3, 3)
    expected[0, 0, 0, 0] = 1
    assert torch.equal(x.grad.cpu(), expected)


def test_a_pool_of_nothing_but_negative_values_passes_no_gradient():
    x = -torch.ones(1, 2, 2, 2, device=DEVICE).requires_grad_()
    still = Running(torch.zeros(2, device=DEVICE), torch.ones(2, device=DEVICE))
    with dispatch.launches_are_free():
        y = batch_norm_act(
            -x.abs(),
            one(still, torch.ones(2, device=DEVICE), torch.zeros(2, device=DEVICE)),
            after=After(pool=Pool(2, 2, 0)),
            training=False,
        )
        (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, torch.zeros_like(y))
    assert torch.equal(grad, torch.zeros_like(grad))


def test_statistics_keep_their_digits_far_from_zero():
    generator = torch.Generator().manual_seed(0)
    x = 1e4 + torch.randn(8, 3, 16, 16, generator=generator)
    ours = running(3)
    with dispatch.launches_are_free():
        mean, var = batch_statistics(x.to(DEVICE), ours)
    torch.testing.assert_close(mean.cpu().double(), x.double().mean((0, 2, 3)), rtol=1e-6, atol=0)
    exact = x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(var.cpu().double(), exact, rtol=1e-4, atol=0)


def test_statistics_move_as_stock_ones_do():
    x = operands(torch.float32, (4, 6, 3, 5))[0].detach()
    ours, theirs = running(6), running(6)
    with dispatch.launches_are_free():
        batch_statistics(x, ours, momentum=0.3)
    F.batch_norm(x, theirs.mean, theirs.var, training=True, momentum=0.3)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.var, theirs.var)
    assert ours.num_batches_tracked.item() == 8


@pytest.mark.parametrize("name", ["batch_statistics", "norm_relu", "norm_relu_backward"])
def test_torch_knows_the_operations(name):
    x, residual, weight, bias = (t.detach() for t in operands(torch.float32, (2, 4, 3, 3)))
    mean, var, out = torch.zeros_like(weight), torch.ones_like(weight), torch.empty_like(x)
    affine, outs = (mean, var, weight, bias, 1e-5, True), (out, torch.empty_like(x))
    arguments = {
        "batch_statistics": (x, mean, var, torch.tensor(0, device=DEVICE), 0.1),
        "norm_relu": (x, residual, *affine, out),
        "norm_relu_backward": (residual, x, x, *affine, True, *outs),
    }[name]
    module = statistics if name == "batch_statistics" else norm
    torch.library.opcheck(getattr(module, name), arguments)


@pytest.mark.parametrize("name", ["norm_relu_pool", "norm_relu_pool_backward"])
def test_torch_knows_the_pools(name):
    x, _, weight, bias = (t.detach() for t in operands(torch.float32, (2, 4, 4, 4)))
    mean, var = torch.zeros_like(weight), torch.ones_like(weight)
    grad = torch.ones(2, 4, 2, 2, device=DEVICE).contiguous(memory_format=torch.channels_last)
    affine, window = (mean, var, weight, bias, 1e-5, True), (3, 2, 1)
    arguments = {
        "norm_relu_pool": (x, *affine, *window, torch.empty_like(grad)),
        "norm_relu_pool_backward": (grad, x, *affine, True, *window, torch.empty_like(x)),
    }[name]
    torch.library.opcheck(getattr(pool, name), arguments)


def test_a_compiled_function_may_hold_an_operation():
    x, residual, weight, bias = (t.detach() for t in operands(torch.float32, (2, 4, 3, 3)))
    mean, var = torch.zeros_like(weight), torch.ones_like(weight)

    def function(x, residual):
        y = torch.empty_like(x)
        norm.norm_relu(x + 1, residual, mean, var, weight, bias, 1e-5, True, y)
        return 2 * y

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, residual), function(x, residual))


def test_autocast_leaves_an_operation_its_type():
    x, residual, weight, bias = (t.detach() for t in operands(torch.float32, (2, 4, 3, 3)))
    arguments = (x, residual, bias, weight.abs(), weight, bias, 1e-5, True)
    inside, outside = torch.empty_like(x), torch.empty_like(x)
    with torch.autocast(DEVICE, torch.bfloat16):
        norm.norm_relu(*arguments, inside)
    norm.norm_relu(*arguments, outside)
    assert torch.equal(inside, outside)
