import pytest
import torch
from torch import Tensor

from manystream.memory import kept_bytes, peak_bytes

FLOAT = 4


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, requires_grad=True)


def test_counts_a_shared_storage_once():
    x = torch.ones(8, requires_grad=True)
    # exp keeps its output; both factors of the product are views of that one storage.
    assert kept_bytes(lambda: (lambda y: y[:4] * y[4:])(x.exp())) == 8 * FLOAT


def test_leaves_out_what_lives_anyway():
    x = torch.ones(8, 4)
    weight = torch.ones(2, 4, requires_grad=True)
    linear = lambda: torch.nn.functional.linear(x, weight)  # noqa: E731
    assert kept_bytes(linear) == 8 * 4 * FLOAT
    assert kept_bytes(linear, exclude=[x]) == 0


def test_nothing_is_kept_without_gradients():
    x = torch.ones(8, requires_grad=True)
    with torch.no_grad():
        assert kept_bytes(lambda: x.exp()) == 0


def test_peak_of_what_is_alive_at_once() -> None:
    x = torch.ones(10)
    # Both factors and the sum; the first factor is let go only after that.
    assert peak_bytes(lambda: (x + 1) + (x + 2)) == 3 * 10 * FLOAT
    assert peak_bytes(lambda: [x + 1, x + 2, x + 3, x + 4]) == 4 * 10 * FLOAT


def test_peak_forgets_freed_temporaries() -> None:
    x = torch.ones(10)

    def one_after_another() -> None:
        for _ in range(5):
            x.exp()

    def chain() -> Tensor:
        return x.exp().exp().exp().exp()

    def small_after_large() -> Tensor:
        large = torch.zeros(1000)
        total = large.sum()
        del large
        return total + torch.zeros(10)

    assert peak_bytes(one_after_another) == 10 * FLOAT
    assert peak_bytes(chain) == 2 * 10 * FLOAT
    assert peak_bytes(small_after_large) == 1000 * FLOAT + FLOAT


def test_peak_does_not_count_views() -> None:
    x = torch.ones(4, 6)
    assert peak_bytes(lambda: [x.t(), x[1:], x.view(-1), x.flatten(), x.detach()]) == 0
    assert peak_bytes(lambda: [x.t().contiguous().view(3, 8)[1:]]) == 24 * FLOAT


def test_peak_keeps_the_whole_storage_of_a_view() -> None:
    x = torch.ones(100)
    # The first line leaves one element of a hundred, whose storage stays whole.
    assert peak_bytes(lambda: [(x + 1)[:1], x + 2]) == 200 * FLOAT


def test_peak_does_not_count_what_happens_in_place() -> None:
    x, y = torch.ones(10), torch.ones(10)

    def in_place() -> None:
        x.add_(1).mul_(y).relu_()
        x[2:5] = 7
        x.addcmul_(y, y)

    assert peak_bytes(in_place) == 0
    assert peak_bytes(lambda: torch.zeros(10).add_(x).exp_()) == 10 * FLOAT


def test_peak_does_not_count_an_output_that_was_given() -> None:
    x, out = torch.ones(10), torch.empty(10)
    assert peak_bytes(lambda: torch.add(x, x, out=out)) == 0


def test_peak_does_not_count_what_lived_before() -> None:
    x = torch.ones(10)
    assert peak_bytes(lambda: x) == 0
    assert peak_bytes(lambda: x.sum()) == FLOAT


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool])
def test_peak_in_the_size_of_the_dtype(dtype: torch.dtype) -> None:
    assert peak_bytes(lambda: torch.zeros(10, dtype=dtype)) == 10 * dtype.itemsize


def test_peak_of_a_forward_with_and_without_gradients() -> None:
    x = ones(10)
    # Each exp keeps its output for backward.
    assert peak_bytes(lambda: x.exp().exp().exp()) == 3 * 10 * FLOAT
    with torch.no_grad():
        assert peak_bytes(lambda: x.exp().exp().exp()) == 2 * 10 * FLOAT


def test_peak_of_a_backward() -> None:
    x = ones(10)
    y = x.exp()
    cotangent = torch.ones(10)
    assert peak_bytes(lambda: y.backward(cotangent)) == 10 * FLOAT  # x.grad
    assert x.grad is not None


def test_peak_of_a_step() -> None:
    x = ones(10)
    cotangent = torch.ones(10)
    # The caller holds z = exp(y) to the end, its node holds y; and the gradients of y and of x.
    assert peak_bytes(lambda: x.exp().exp().backward(cotangent)) == 4 * 10 * FLOAT


def test_peak_of_one_call_after_another() -> None:
    """What an earlier call made and left alive is not counted by the next."""
    left = []
    x = torch.ones(10)
    for _ in range(3):
        assert peak_bytes(lambda: left.append(x + 1)) == 10 * FLOAT
    assert peak_bytes(lambda: left.clear()) == 0


def test_an_error_inside_comes_out_and_counting_ends() -> None:
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda: torch.zeros(1 // 0))
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
