import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from manystream.functional import BatchNormRows, Running, batch_statistics
from manystream.functional.sync_norm import sync_batch_norm
from manystream.layers import SyncBatchNorm2d, separate_norms, synchronise_norms
from tests.builders import small_resnet

DEVICES = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append("cuda")


@pytest.fixture
def alone(tmp_path):
    """A group of one process, whose joint statistics are its own."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def arguments(device, dtype=torch.float64):
    """Running mean, variance and counter, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(4, 5, generator=generator, dtype=dtype) + 0.5
    mean, var, weight, bias = numbers.to(device)
    counter = torch.tensor(3, device=device)
    return mean, var, counter, weight.requires_grad_(), bias.requires_grad_()


def one(running, weight, bias):
    """The same norm for all rows."""
    return [BatchNormRows(slice(None), running, weight, bias)]


def images(rows, device, size=(3, 4), dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 5, *size, generator=generator, dtype=dtype) * 2 + 1
    return x.to(device).to(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_process_is_plain_batch_norm(alone, device, dtype):
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype is torch.float64 else {}
    x, direction = images(6, device, dtype=dtype), images(6, device, dtype=dtype).detach().flip(0)
    mean, var, counter, weight, bias = arguments(device, dtype)
    y = sync_batch_norm(x, one(Running(mean, var, counter), weight, bias), momentum=0.2, eps=1e-3)
    found = torch.autograd.grad(y, [x, weight, bias], direction)
    other_mean, other_var, _, weight, bias = arguments(device, dtype)
    other = F.batch_norm(x, other_mean, other_var, weight, bias, True, 0.2, 1e-3)
    expected = torch.autograd.grad(other, [x, weight, bias], direction)
    torch.testing.assert_close(y, other, **tolerance)
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close([mean, var], [other_mean, other_var], **tolerance)
    assert counter.item() == 4


def test_each_norm_counts_its_own_rows(alone):
    """One without rows stays as it is, and its gradients are zero."""
    x, direction = images(6, "cpu"), images(6, "cpu").detach().flip(0)
    norms = [
        BatchNormRows(slice(*rows), Running(*given[:3]), *given[3:])
        for rows in ((0, 4), (4, 4), (4, 6))
        for given in [arguments("cpu")]
    ]
    affine = [t for norm in norms for t in (norm.weight, norm.bias)]
    y = sync_batch_norm(x, norms)
    grad_x, *grads = torch.autograd.grad(y, [x, *affine], direction)
    for norm, found in zip(norms, zip(grads[::2], grads[1::2], strict=True), strict=True):
        mean, var, counter, weight, bias = arguments("cpu")
        rows = norm.rows
        if rows.start == rows.stop:
            assert not any(grad.any() for grad in found)
        else:
            counter += 1
            part = x[rows]
            other = F.batch_norm(part, mean, var, weight, bias, training=True)
            torch.testing.assert_close(y[rows], other)
            expected = torch.autograd.grad(other, [x, weight, bias], direction[rows])
            torch.testing.assert_close([grad_x[rows], *found], [expected[0][rows], *expected[1:]])
        torch.testing.assert_close([*norm.running], [mean, var, counter])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "size"), [(0, (3, 4)), (1, (1, 1))])
def test_too_few_values_are_normalised_with_the_running_statistics(alone, device, rows, size):
    x = images(rows, device, size)
    mean, var, counter, weight, bias = arguments(device)
    before = mean.clone(), var.clone()
    y = sync_batch_norm(x, one(Running(mean, var, counter), weight, bias))
    found = torch.autograd.grad(y, [x, weight, bias], torch.ones_like(y))
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])
    assert counter.item() == 3
    other = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    other = other * weight[:, None, None] + bias[:, None, None]
    expected = torch.autograd.grad(other, [x, weight, bias], torch.ones_like(y))
    torch.testing.assert_close(y, other)
    torch.testing.assert_close(found, expected)


def test_gradcheck(alone):
    mean, var, counter, weight, bias = arguments("cpu")

    def norm(x, weight, bias):
        running = Running(mean.clone(), var.clone(), counter.clone())
        return sync_batch_norm(x, one(running, weight, bias))

    assert torch.autograd.gradcheck(norm, (images(3, "cpu", (2, 2)), weight, bias))


def test_it_is_not_differentiated_twice(alone):
    x = images(2, "cpu")
    mean, var, counter, weight, bias = arguments("cpu")
    y = sync_batch_norm(x, one(Running(mean, var, counter), weight, bias))
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_norms_are_joined_and_separated_in_place(alone):
    network = small_resnet()
    state, parameters = network.state_dict(), list(network.parameters())
    names = list(state)
    synchronise_norms(network)
    joined = [m for m in network.modules() if type(m) is SyncBatchNorm2d]
    assert len(joined) > 10
    assert not [m for m in network.modules() if type(m) is nn.BatchNorm2d]
    assert list(network.state_dict()) == names
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    separate_norms(network)
    assert not [m for m in network.modules() if type(m) is SyncBatchNorm2d]
    assert len([m for m in network.modules() if type(m) is nn.BatchNorm2d]) == len(joined)


def test_in_evaluation_nobody_is_asked():
    norm = SyncBatchNorm2d(5, dtype=torch.float64).eval()  # there is no group here
    x = images(2, "cpu")
    plain = nn.BatchNorm2d(5, dtype=torch.float64).eval()
    torch.testing.assert_close(norm(x), plain(x))


def test_without_a_group_it_says_what_to_do():
    with pytest.raises(ValueError, match=r"no process group is set up; call torch\.distributed"):
        synchronise_norms(small_resnet())


def test_momentum_none_takes_the_mean_of_all_batches(alone):
    mean, var, counter, weight, bias = arguments("cpu")
    stock = nn.BatchNorm2d(5, momentum=None).double()
    stock.running_mean, stock.running_var = mean.clone(), var.clone()
    stock.num_batches_tracked.fill_(3)
    for rows in (6, 4, 5):
        counted = Running(mean, var, counter)
        sync_batch_norm(images(rows, "cpu"), one(counted, weight, bias), momentum=None)
        stock(images(rows, "cpu"))
    torch.testing.assert_close([mean, var], [stock.running_mean, stock.running_var])
    assert counter == stock.num_batches_tracked == 6


def test_half_precision_keeps_the_statistics_precise(alone):
    x = images(6, "cpu", dtype=torch.float32).detach().bfloat16()
    mean, var, counter, weight, bias = arguments("cpu", torch.float32)
    expected = Running(mean.clone(), var.clone())
    batch_statistics(x, expected)
    sync_batch_norm(x, one(Running(mean, var, counter), weight, bias))
    torch.testing.assert_close(mean, expected.mean)
    torch.testing.assert_close(var, expected.var)


def test_norms_without_parameters_are_synchronised(alone):
    norm = nn.BatchNorm2d(5, affine=False).double()
    stock = nn.BatchNorm2d(5, affine=False).double()
    synchronise_norms(norm)
    x = images(6, "cpu")
    torch.testing.assert_close(norm(x), stock(x))
    torch.testing.assert_close(norm.running_var, stock.running_var)


def test_norms_without_running_statistics_are_refused(alone):
    network = nn.Sequential(nn.BatchNorm2d(5), nn.BatchNorm2d(5, track_running_stats=False))
    with pytest.raises(ValueError, match=r"1 keeps no running statistics"):
        synchronise_norms(network)
    assert type(network[0]) is nn.BatchNorm2d
