import torch

from manystream.memory import kept_bytes


def test_counts_a_shared_storage_once():
    x = torch.ones(8, requires_grad=True)
    # exp keeps its output; both factors of the product are views of that one storage.
    assert kept_bytes(lambda: (lambda y: y[:4] * y[4:])(x.exp())) == 8 * 4


def test_leaves_out_what_lives_anyway():
    x = torch.ones(8, 4)
    weight = torch.ones(2, 4, requires_grad=True)
    linear = lambda: torch.nn.functional.linear(x, weight)  # noqa: E731
    assert kept_bytes(linear) == 8 * 4 * 4
    assert kept_bytes(linear, exclude=[x]) == 0


def test_nothing_is_kept_without_gradients():
    x = torch.ones(8, requires_grad=True)
    with torch.no_grad():
        assert kept_bytes(lambda: x.exp()) == 0
