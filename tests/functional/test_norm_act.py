from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from manystream.functional import (
    After,
    Pool,
    Running,
    batch_norm_act,
    batch_statistics,
    group_norm_act,
)
from manystream.functional.kernels import choice

POOL = Pool(kernel_size=3, stride=2, padding=1)
AFTERS = [After(relu=False), After(), After(pool=POOL)]


def operands(dtype=torch.float64, size=(3, 4, 5, 6)):
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=dtype)
    x, residual = draw(size), draw(size)
    weight, bias = 1 + draw(4).abs(), draw(4)
    return [t.requires_grad_() for t in (x, residual, weight, bias)]


def statistics(dtype=torch.float64):
    return torch.linspace(-1, 1, 4, dtype=dtype), torch.linspace(0.5, 2, 4, dtype=dtype)


def stock(norm, x, residual, after):
    y = norm(x) if residual is None else norm(x) + residual
    y = F.relu(y) if after.relu else y
    return F.max_pool2d(y, *after.pool) if after.pool else y


@pytest.mark.parametrize("after", AFTERS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_batch_norm_gradients(after, training, with_residual):
    x, residual, weight, bias = operands()

    def function(x, weight, bias, residual=None):
        return batch_norm_act(
            x,
            Running(*statistics()),
            weight,
            bias,
            residual=residual,
            after=after,
            training=training,
        )

    inputs = (x, weight, bias, residual) if with_residual else (x, weight, bias)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("after", AFTERS)
@pytest.mark.parametrize("with_residual", [True, False])
def test_group_norm_gradients(after, with_residual):
    x, residual, weight, bias = operands()

    def function(x, weight, bias, residual=None):
        return group_norm_act(x, 1, weight, bias, residual=residual, after=after)

    inputs = (x, weight, bias, residual) if with_residual else (x, weight, bias)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("after", AFTERS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("left_to_torch", [True, False])
def test_batch_norm_agrees_with_stock_operations(after, training, left_to_torch, monkeypatch):
    monkeypatch.setattr(choice, "leave_to_torch", lambda x: left_to_torch)
    x, residual, weight, bias = operands()
    ours, theirs = statistics(), statistics()
    y = batch_norm_act(
        x,
        Running(*ours),
        weight,
        bias,
        residual=residual,
        after=after,
        training=training,
        momentum=0.3,
    )
    norm = partial(
        F.batch_norm,
        running_mean=theirs[0],
        running_var=theirs[1],
        weight=weight,
        bias=bias,
        training=training,
        momentum=0.3,
    )
    torch.testing.assert_close(y, stock(norm, x, residual, after), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("after", AFTERS)
def test_group_norm_agrees_with_stock_operations(after):
    x, residual, weight, bias = operands()
    y = group_norm_act(x, 2, weight, bias, residual=residual, after=after)
    norm = partial(F.group_norm, num_groups=2, weight=weight, bias=bias)
    torch.testing.assert_close(y, stock(norm, x, residual, after), rtol=1e-12, atol=1e-12)


def test_what_is_left_to_torch_gives_the_same_gradients_and_counts(monkeypatch):
    found = []
    for left_to_torch in (True, False):
        monkeypatch.setattr(choice, "leave_to_torch", lambda x, left=left_to_torch: left)
        inputs = operands()
        x, residual, weight, bias = inputs
        buffers = Running(*statistics(), torch.tensor(3))
        y = batch_norm_act(x, buffers, weight, bias, residual=residual)
        assert ("NormAct" in type(y.grad_fn).__name__) != left_to_torch
        found.append([*torch.autograd.grad(y.square().sum(), inputs), *buffers])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


def test_no_rows_give_zero_gradients():
    x, _, weight, bias = operands(size=(0, 4, 5, 6))
    before = statistics()
    batch_norm_act(x, Running(*before), weight, bias, training=False).sum().backward()
    assert torch.equal(weight.grad, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(before, statistics(), rtol=0, atol=0)


def test_statistics_that_move_later_do_not_change_the_backward_pass():
    gradients = []
    for moves in (False, True):
        x, _, weight, bias = operands()
        mean, var = statistics()
        y = batch_norm_act(x, Running(mean, var), weight, bias, training=False)
        if moves:
            mean.add_(1)
            var.mul_(3)
        y.sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_differentiating_twice_is_refused():
    x, _, weight, bias = operands()
    y = batch_norm_act(x, Running(*statistics()), weight, bias)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("wanted", list(product([True, False], repeat=4))[:-1])
def test_gradients_of_some_inputs_only(layout, wanted):
    """What needs none gets none, and the others are what they are beside it."""
    group = partial(group_norm_act, num_groups=2)
    batch = partial(batch_norm_act, running=Running(*statistics()))
    for norm in (group, batch):
        found = []
        for needs in ((True,) * 4, wanted):
            inputs = [t.detach().requires_grad_(n) for t, n in zip(operands(), needs, strict=True)]
            x, residual, weight, bias = inputs
            x = x.contiguous(memory_format=layout)
            y = norm(x=x, weight=weight, bias=bias, residual=residual)
            y.sin().sum().backward()
            found.append([t.grad for t in inputs])
        for due, came, needed in zip(*found, wanted, strict=True):
            assert (came is not None) is needed
            assert came is None or torch.equal(came, due)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("left_to_torch", [True, False])
def test_another_number_of_channels_is_refused(training, left_to_torch, monkeypatch):
    monkeypatch.setattr(choice, "leave_to_torch", lambda x: left_to_torch)
    x, _, weight, bias = operands()
    mean, var = statistics()
    two = torch.ones(2, dtype=torch.float64)
    for running, scale, shift, name in [
        (Running(two, two), weight, bias, "running_mean"),
        (Running(mean, two), weight, bias, "running_var"),
        (Running(mean, var), two, bias, "weight"),
        (Running(mean, var), weight, two, "bias"),
    ]:
        with pytest.raises(ValueError, match=rf"{name} has shape \(2,\) .* for 4 channels"):
            batch_norm_act(x, running, scale, shift, training=training)
    assert torch.equal(two, torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"running_mean has shape \(2,\) .* for 4 channels"):
        batch_statistics(x, Running(two, two))


def test_a_residual_of_another_shape_is_refused():
    x, residual, weight, bias = operands()
    with pytest.raises(ValueError, match=r"residual has shape \(1, 4, 5, 6\); expected .*\(3, 4,"):
        batch_norm_act(x, Running(*statistics()), weight, bias, residual=residual[:1])
    with pytest.raises(ValueError, match=r"residual has shape \(3, 1, 5, 6\)"):
        group_norm_act(x, 2, weight, bias, residual=residual[:, :1])


def test_the_mean_of_all_batches_wants_them_counted():
    x, _, weight, bias = operands()
    with pytest.raises(ValueError, match=r"momentum is None, .* num_batches_tracked is None too"):
        batch_norm_act(x, Running(*statistics()), weight, bias, momentum=None)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_half_maps_give_precise_statistics(momentum):
    x = operands(torch.float32)[0].detach().bfloat16()
    ours, theirs = (Running(*statistics(torch.float32), torch.tensor(3)) for _ in range(2))
    found, due = batch_statistics(x, ours, momentum), batch_statistics(x.float(), theirs, momentum)
    torch.testing.assert_close([*found, *ours], [*due, *theirs], rtol=1e-5, atol=1e-5)
