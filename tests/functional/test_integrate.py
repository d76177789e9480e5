from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manystream.functional import linear_integrate, scalar_integrate
from manystream.functional.integrate import LINEAR, Placement, integrate
from manystream.presence import Presence, Run, Views
from tests.builders import mask_of, presences

CHANNELS, OUT_CHANNELS, INTEGRATED_CHANNELS = 3, 4, 2


def run(rows: range, views: range) -> Run:
    return Run(slice(rows.start, rows.stop), slice(views.start, views.stop))


PLACES = {
    "one run each": [[run(range(3), range(3))], [run(range(3), range(1, 4))]],
    "several runs": [
        [run(range(1), range(1)), run(range(1, 2), range(2, 3))],
        [run(range(1), range(3, 4)), run(range(1, 3), range(2))],
    ],
    "rows at several views": [
        [run(range(2), range(2)), run(range(1), range(3, 4)), run(range(1, 2), range(2, 3))],
        [run(range(1), range(3, 4)), run(range(1, 2), range(1)), run(range(1, 2), range(2, 3))],
    ],
    "zero rows": [[run(range(4), range(4))], []],
    "zero rows of the first": [[], [run(range(4), range(4))]],
}


def num_rows(runs: Sequence[Run]) -> int:
    return max((rows.stop for rows, _ in runs), default=0)


def operands(
    placement: Placement,
    num_samples: int = 4,
    *,
    integrated: bool = True,
    bias: bool = False,
    size: tuple[int, int] = (5, 7),
    stride: int = 1,
    dtype: torch.dtype = torch.float64,
) -> tuple[list[Tensor], list[Tensor], Tensor | None, Tensor | None, Tensor | None]:
    """raw, weights, integrated, integrated_weight, bias; all leaves that want a gradient."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        x = torch.randn(shape, dtype=dtype, generator=generator)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    out_size = [-(-side // stride) for side in size]
    count = list(map(num_rows, placement))
    raw = [noise(n, CHANNELS, *out_size).requires_grad_() for n in count]
    weights = [noise(OUT_CHANNELS, CHANNELS, 1, 1).requires_grad_() for _ in placement]
    z = noise(num_samples, INTEGRATED_CHANNELS, *size).requires_grad_()
    kernel = noise(OUT_CHANNELS, INTEGRATED_CHANNELS, 1, 1).requires_grad_()
    return (
        raw,
        weights,
        z if integrated else None,
        kernel if integrated else None,
        noise(OUT_CHANNELS).requires_grad_() if bias else None,
    )


def naive(
    raw: Sequence[Tensor],
    weights: Sequence[Tensor],
    placement: Placement,
    num_samples: int,
    integrated: Tensor | None = None,
    integrated_weight: Tensor | None = None,
    bias: Tensor | None = None,
    stride: int = 1,
) -> Tensor:
    """A sum of ordinary convolutions, each placed at its samples by an index."""
    size = raw[0].shape[2:]
    out = raw[0].new_zeros(num_samples, weights[0].shape[0], *size)
    for x, weight, runs in zip(raw, weights, placement, strict=True):
        out = out + 0 * (x.sum() + weight.sum())  # one without rows has zero gradients
        for rows, views in runs:
            index = torch.arange(views.start, views.stop)
            out = out.index_add(0, index, F.conv2d(x, weight)[rows])
    if integrated is not None:
        out = out + F.conv2d(integrated, integrated_weight, stride=stride)
    return out if bias is None else out + bias.view(-1, 1, 1)


@pytest.mark.parametrize("placement", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("integrated", "size", "stride"), [(False, (2, 3), 1), (True, (2, 3), 1), (True, (5, 3), 2)]
)
def test_gradcheck(
    placement: Placement, bias: bool, integrated: bool, size: tuple[int, int], stride: int
) -> None:
    raw, weights, z, kernel, b = operands(
        placement, integrated=integrated, bias=bias, size=size, stride=stride
    )
    leaves = [x for x in (*raw, *weights, z, kernel, b) if x is not None]

    def function(*_: Tensor) -> Tensor:
        return linear_integrate(raw, weights, placement, 4, z, kernel, b, stride)

    assert torch.autograd.gradcheck(function, leaves)


@given(words=presences(), integrated=st.booleans(), bias=st.booleans(), stride=st.integers(1, 3))
@example(words="110 101 011", integrated=True, bias=True, stride=2)
@example(words="10 10", integrated=False, bias=False, stride=1)
@pytest.mark.parametrize("build", [Views.full_only, Views.with_subsets])
def test_equals_convolutions_placed_by_index(
    build: Callable[[Presence], Views], words: str, integrated: bool, bias: bool, stride: int
) -> None:
    views = build(Presence.from_mask(mask_of(words)))
    raw, weights, z, kernel, b = operands(
        views.runs, views.num_views, integrated=integrated, bias=bias, stride=stride
    )
    leaves = [x for x in (*raw, *weights, z, kernel, b) if x is not None]
    arguments = (raw, weights, views.runs, views.num_views, z, kernel, b, stride)
    out, expected = linear_integrate(*arguments), naive(*arguments)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    gradients = torch.autograd.grad(out, leaves, cotangent)
    for gradient, due in zip(
        gradients, torch.autograd.grad(expected, leaves, cotangent), strict=True
    ):
        torch.testing.assert_close(gradient, due, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("integrated", [False, True])
def test_memory_layouts(integrated: bool, bias: bool) -> None:
    """The output is channels-last whatever comes in, and operands are left as they were."""
    placement = PLACES["several runs"]
    raw, weights, z, kernel, b = operands(placement, integrated=integrated, bias=bias)
    expected = linear_integrate(raw, weights, placement, 4, z, kernel, b)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    plain = [None if x is None else x.detach().clone().contiguous() for x in (*raw, z, b)]
    copies = [None if x is None else x.clone() for x in plain]
    out = linear_integrate(plain[:2], weights, placement, 4, plain[2], kernel, plain[3])
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected)
    for x, copy in zip(plain, copies, strict=True):
        assert x is copy is None or torch.equal(x, copy)


@pytest.mark.parametrize("placement", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("integrated", [False, True])
def test_autocast_to_bfloat16(placement: Placement, integrated: bool, bias: bool) -> None:
    raw, weights, z, kernel, b = operands(
        placement, integrated=integrated, bias=bias, dtype=torch.float32
    )
    expected = naive(raw, weights, placement, 4, z, kernel, b)
    sizes = [None if x is None else x.abs() for x in (z, kernel, b)]
    largest = naive([x.abs() for x in raw], [w.abs() for w in weights], placement, 4, *sizes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Convolutions give bfloat16 here; their weights stay float32.
        half = [x.detach().bfloat16().requires_grad_() for x in raw]
        out = linear_integrate(half, weights, placement, 4, z, kernel, b)
    assert out.dtype == torch.bfloat16
    # Both factors of each product are rounded, and each of the few sums: half a unit of 2^-7 each.
    assert ((out.float() - expected).abs() <= 5 * 2**-8 * largest).all()
    out.float().sum().backward()
    assert {x.grad.dtype for x in half} == {torch.bfloat16}
    leaves = [x for x in (*weights, z, kernel, b) if x is not None]
    for x, due in zip(leaves, torch.autograd.grad(expected.sum(), leaves), strict=True):
        assert x.grad.dtype == torch.float32
        torch.testing.assert_close(x.grad, due, rtol=0.02, atol=0.02 * due.abs().max().item())


@pytest.mark.parametrize("placement", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("integrated", [False, True])
def test_autocast_takes_float32_operands_as_a_convolution_does(
    placement: Placement, integrated: bool
) -> None:
    raw, weights, z, kernel, _ = operands(placement, integrated=integrated, dtype=torch.float32)
    expected = naive(raw, weights, placement, 4, z, kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear_integrate(raw, weights, placement, 4, z, kernel)
    scale = expected.abs().max().item()
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02 * scale)


def test_twice_differentiated() -> None:
    placement = PLACES["several runs"]
    raw, weights, z, kernel, _ = operands(placement)
    out = linear_integrate(raw, weights, placement, 4, z, kernel).square().sum()
    (gradient,) = torch.autograd.grad(out, raw[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class AllocatedBytes(TorchDispatchMode):
    """Sums the storages that operations return and were not given."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        # Kept alive so that no address is used twice.
        self.seen: dict[int, Tensor] = {}

    def note(self, tensors: Any) -> int:
        new = 0
        for x in tree_leaves(tensors):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.seen:
                self.seen[x.untyped_storage().data_ptr()] = x
                new += x.untyped_storage().nbytes()
        return new

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note((args, kwargs))
        result = func(*args, **(kwargs or {}))
        self.total += self.note(result)
        return result


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("integrated", [True, False])
def test_forward_allocates_its_output_and_nothing_else(integrated: bool, bias: bool) -> None:
    placement = PLACES["one run each"]
    raw, weights, z, kernel, b = operands(placement, integrated=integrated, bias=bias)
    with AllocatedBytes() as allocated:
        out = linear_integrate(raw, weights, placement, 4, z, kernel, b)
    assert allocated.total == out.numel() * out.element_size()


@pytest.mark.parametrize("integrated", [True, False])
def test_its_output_may_be_changed_in_place(integrated: bool) -> None:
    placement = PLACES["one run each"]
    raw, weights, z, kernel, b = operands(placement, integrated=integrated, bias=True)
    leaves = [x for x in (*raw, *weights, z, kernel, b) if x is not None]
    out = linear_integrate(raw, weights, placement, 4, z, kernel, b)
    due = torch.autograd.grad(out.square().sum(), leaves)
    out = linear_integrate(raw, weights, placement, 4, z, kernel, b)
    came = torch.autograd.grad(out.square_().sum(), leaves)
    for ours, theirs in zip(came, due, strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_handed_on_brings_its_gradient_back() -> None:
    placement = PLACES["one run each"]
    raw, weights, z, kernel, _ = operands(placement)
    assert z is not None
    assert kernel is not None
    out, handed_on = integrate(LINEAR, raw, weights, placement, 4, z, kernel)
    loss = out.square().sum() + sum((3 * x).square().sum() for x in handed_on)
    came = torch.autograd.grad(loss, [*raw, *weights])
    out = linear_integrate(raw, weights, placement, 4, z, kernel)
    loss = out.square().sum() + sum((3 * x).square().sum() for x in raw)
    due = torch.autograd.grad(loss, [*raw, *weights])
    for ours, theirs in zip(came, due, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_shapes_that_would_be_broadcast_are_refused() -> None:
    placement = PLACES["several runs"]
    raw, weights, z, kernel, _ = operands(placement)
    one = torch.ones(1, dtype=torch.float64)
    for other in (raw[1][:1], raw[1][:, :1], raw[1][..., :1], raw[1].mT):
        for function, parameters in ((linear_integrate, weights), (scalar_integrate, [one, one])):
            with pytest.raises(ValueError, match=r"raw\[1\] has shape .*; expected 3 rows"):
                function([raw[0], other], parameters, placement, 4)
    for other in (z[:1], z[..., :1], z.mT):
        with pytest.raises(
            ValueError, match=r"integrated input has shape .*; expected 4 of \(5, 7\)"
        ):
            linear_integrate(raw, weights, placement, 4, other, kernel)
    with pytest.raises(ValueError, match=r"stride \(2, 2\), which gives 4 views of \(3, 4\)"):
        linear_integrate(raw, weights, placement, 4, z, kernel, stride=2)


@pytest.mark.parametrize("stride", [(2, 1), (1, 3)])
def test_different_steps_down_and_across(stride: tuple[int, int]) -> None:
    placement = PLACES["several runs"]
    raw, weights, _, kernel, _ = operands(placement, size=(2, 3))
    size = (raw[0].shape[2] * stride[0], raw[0].shape[3] * stride[1])
    z = operands(placement, size=size)[2]

    def function(*_: Tensor) -> Tensor:
        return linear_integrate(raw, weights, placement, 4, z, kernel, stride=stride)

    torch.testing.assert_close(
        function(), naive(raw, weights, placement, 4, z, kernel, stride=stride)
    )
    assert torch.autograd.gradcheck(function, [z, kernel])


@pytest.mark.parametrize("integrate", [linear_integrate, scalar_integrate])
def test_views_that_no_stream_enters_are_zero(integrate):
    raw = [torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)]
    ones = [torch.ones(1, 1, 1, 1) if integrate is linear_integrate else torch.ones(1)] * 2
    placement = [[Run(slice(0, 1), slice(1, 2))], [Run(slice(0, 1), slice(3, 4))]]
    torch.empty(5, 1, 2, 2).fill_(float("nan"))  # what is allocated next may hold anything
    out = integrate(raw, ones, placement, 5)
    assert out.flatten(1)[:, 0].tolist() == [0, 1, 0, 1, 0]
