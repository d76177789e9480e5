import gc
import weakref

import torch

from manystream.functional import remat


class Doubling:
    """`exp(2x)` as an operation that registers how to rebuild its output, and counts that."""

    def __init__(self):
        self.rebuilt = 0

    def __call__(self, x):
        y = (2 * x).detach().requires_grad_()
        remat.register(y, self._rebuild, x)
        return y

    def _rebuild(self, x):
        self.rebuilt += 1
        return 2 * x


def test_what_autograd_saves_is_rebuilt_and_the_same():
    x, double = torch.arange(4.0), Doubling()
    with remat.recording():
        y = double(x)
        z = y.square()  # saves y
    z.sum().backward()
    assert double.rebuilt == 1
    assert torch.equal(y.grad, 4 * x)


def test_a_view_of_it_is_rebuilt_as_that_view():
    x, double = torch.arange(6.0).view(2, 3), Doubling()
    with remat.recording():
        y = double(x)
        z = y.t()[1:].square()
    z.sum().backward()
    expected = torch.zeros(2, 3)
    expected[:, 1:] = 4 * x[:, 1:]
    assert torch.equal(y.grad, expected)
    assert double.rebuilt == 1


def test_built_once_for_all_that_ask_and_then_let_go():
    x, double = torch.arange(4.0), Doubling()
    with remat.recording():
        y = double(x)
        z = y.square() + y.pow(3) + y.pow(4)
    z.sum().backward()
    assert double.rebuilt == 1


def test_a_chain_starts_from_what_is_kept():
    x, double = torch.arange(4.0), Doubling()
    with remat.recording():
        middle = double(x)
        y = double(middle)
        z = y.square()
    alive = weakref.ref(middle.untyped_storage())
    del middle
    gc.collect()
    assert alive() is None, "the middle of a chain must not be held"
    z.sum().backward()
    assert torch.equal(y.grad, 2 * 4 * x)
    assert double.rebuilt == 2


def test_a_second_backward_pass_rebuilds_again():
    x, double = torch.arange(4.0), Doubling()
    with remat.recording():
        y = double(x)
        z = y.square().sum()
    first = torch.autograd.grad(z, y, retain_graph=True)
    second = torch.autograd.grad(z, y)
    assert torch.equal(first[0], second[0])
    assert double.rebuilt == 2


def test_two_forward_passes_before_one_backward_pass():
    xs, double = [torch.arange(4.0), torch.arange(4.0) + 1], Doubling()
    ys, total = [], torch.zeros(())
    for x in xs:
        with remat.recording():
            ys.append(double(x))
            total = total + ys[-1].square().sum()
    total.backward()
    for x, y in zip(xs, ys, strict=True):
        assert torch.equal(y.grad, 4 * x)


def test_nothing_is_recorded_without_gradients_or_outside():
    x, double = torch.arange(4.0), Doubling()
    with torch.no_grad(), remat.recording():
        double(x)
    y = double(x)
    y.square().sum().backward()
    assert double.rebuilt == 0


def test_a_recipe_runs_without_autocast_and_gradients():
    seen = []

    def rebuild(x):
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return x + 1

    x = torch.arange(4.0)
    with remat.recording():
        y = (x + 1).requires_grad_()
        remat.register(y, rebuild, x)
        z = y.square().sum()
    with torch.autocast("cpu"):
        torch.autograd.grad(z, y, create_graph=True)
    assert seen == [(False, False)]
