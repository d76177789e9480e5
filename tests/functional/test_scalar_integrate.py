from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from manystream.functional import scalar_integrate
from manystream.functional.integrate import Placement
from manystream.memory import kept_bytes, peak_bytes
from manystream.presence import Presence, Views
from tests.builders import mask_of, presences
from tests.functional.test_integrate import PLACES, num_rows

CHANNELS, INTEGRATED_CHANNELS = 4, 3

Operands = tuple[
    list[Tensor], list[Tensor], Tensor | None, Tensor | None, Tensor | None, Tensor | None
]
"""raw, scalars, integrated, integrated_weight, integrated_scalar, bias"""


def operands(
    placement: Placement,
    num_samples: int = 4,
    *,
    integrated: bool = True,
    bias: bool = False,
    size: tuple[int, int] = (5, 7),
    stride: int = 1,
    dtype: torch.dtype = torch.float64,
) -> Operands:
    """Leaves that want a gradient; images and kernels channels-last."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        x = torch.randn(shape, dtype=dtype, generator=generator)
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        return x.requires_grad_()

    out_size = [-(-side // stride) for side in size]
    count = list(map(num_rows, placement))
    raw = [noise(n, CHANNELS, *out_size) for n in count]
    scalars = [noise(1) for _ in placement]
    z = noise(num_samples, INTEGRATED_CHANNELS, *size)
    kernel, gamma = noise(CHANNELS, INTEGRATED_CHANNELS, 1, 1), noise()
    b = noise(CHANNELS) if bias else None
    return (
        (raw, scalars, z, kernel, gamma, b) if integrated else (raw, scalars, None, None, None, b)
    )


def leaves_of(given: Operands) -> list[Tensor]:
    raw, scalars, *others = given
    return [*raw, *scalars, *(x for x in others if x is not None)]


def integrate(
    given: Operands, placement: Placement, num_samples: int = 4, stride: int = 1
) -> Tensor:
    raw, scalars, *others = given
    return scalar_integrate(raw, scalars, placement, num_samples, *others, stride=stride)


def naive(given: Operands, placement: Placement, num_samples: int = 4, stride: int = 1) -> Tensor:
    """A sum of products, each placed at its samples by an index."""
    raw, scalars, z, kernel, gamma, bias = given
    out = raw[0].new_zeros(num_samples, *raw[0].shape[1:])
    for x, scalar, runs in zip(raw, scalars, placement, strict=True):
        out = out + 0 * (x.sum() + scalar.sum())  # one without rows has zero gradients
        for rows, views in runs:
            index = torch.arange(views.start, views.stop)
            out = out.index_add(0, index, (x * scalar)[rows])
    if z is not None:
        out = out + gamma * F.conv2d(z, kernel, stride=stride)
    return out if bias is None else out + bias.view(-1, 1, 1)


@pytest.mark.parametrize("placement", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("integrated", "size", "stride"), [(False, (2, 3), 1), (True, (2, 3), 1), (True, (5, 3), 2)]
)
def test_gradcheck(
    placement: Placement, bias: bool, integrated: bool, size: tuple[int, int], stride: int
) -> None:
    given = operands(placement, integrated=integrated, bias=bias, size=size, stride=stride)
    assert torch.autograd.gradcheck(
        lambda *_: integrate(given, placement, stride=stride), leaves_of(given)
    )


@given(words=presences(), integrated=st.booleans(), bias=st.booleans(), stride=st.integers(1, 3))
@example(words="110 101 011", integrated=True, bias=True, stride=2)
@example(words="10 10", integrated=False, bias=False, stride=1)
@pytest.mark.parametrize("build", [Views.full_only, Views.with_subsets])
def test_equals_products_placed_by_index(
    build: Callable[[Presence], Views], words: str, integrated: bool, bias: bool, stride: int
) -> None:
    views = build(Presence.from_mask(mask_of(words)))
    given = operands(views.runs, views.num_views, integrated=integrated, bias=bias, stride=stride)
    out = integrate(given, views.runs, views.num_views, stride)
    expected = naive(given, views.runs, views.num_views, stride)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    gradients, due = (torch.autograd.grad(y, leaves_of(given), cotangent) for y in (out, expected))
    for gradient, same in zip(gradients, due, strict=True):
        torch.testing.assert_close(gradient, same, rtol=1e-12, atol=1e-11)


def test_gradients_keep_the_shape_of_each_scalar() -> None:
    """A checkpoint's α has shape (1,), its γ shape (); either shape does for both."""
    placement = PLACES["several runs"]
    raw, scalars, z, kernel, gamma, _ = operands(placement)
    swapped = [scalars[0].detach().view(()).requires_grad_(), scalars[1]]
    wide = gamma.detach().view(1).requires_grad_()
    out = integrate((raw, swapped, z, kernel, wide, None), placement)
    assert torch.equal(out, integrate((raw, scalars, z, kernel, gamma, None), placement))
    out.sum().backward()
    assert [x.grad.shape for x in (*swapped, wide)] == [(), (1,), (1,)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("integrated", [False, True])
def test_memory_layouts(integrated: bool, bias: bool) -> None:
    """The output is channels-last whatever comes in, and operands are left as they were."""
    placement = PLACES["several runs"]
    given = operands(placement, integrated=integrated, bias=bias)
    raw, scalars, z, kernel, gamma, b = given
    expected = integrate(given, placement)
    cotangent = torch.randn(expected.shape, dtype=torch.float64)
    due = torch.autograd.grad(expected, leaves_of(given), cotangent)
    plain = [x.detach().clone().contiguous().requires_grad_() for x in raw]
    plain_z = None if z is None else z.detach().clone().contiguous().requires_grad_()
    other: Operands = (plain, scalars, plain_z, kernel, gamma, b)
    copies = [x.detach().clone() for x in leaves_of(other)]
    out = integrate(other, placement)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected)
    for gradient, same in zip(
        torch.autograd.grad(out, leaves_of(other), cotangent), due, strict=True
    ):
        torch.testing.assert_close(gradient, same)
    assert all(torch.equal(x, copy) for x, copy in zip(leaves_of(other), copies, strict=True))


@pytest.mark.parametrize("placement", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("half_raw", [False, True], ids=["float32 raw", "bfloat16 raw"])
def test_autocast_to_bfloat16(
    placement: Placement, integrated: bool, bias: bool, half_raw: bool
) -> None:
    given = operands(placement, integrated=integrated, bias=bias, dtype=torch.float32)
    raw, scalars, *others = given
    expected = naive(given, placement)
    sizes = [None if x is None else x.abs() for x in others]
    largest = naive(([x.abs() for x in raw], [a.abs() for a in scalars], *sizes), placement)
    due = torch.autograd.grad(expected.sum(), leaves_of(given))
    if half_raw:  # as convolutions give them under autocast; parameters stay float32
        raw = [x.detach().bfloat16().requires_grad_() for x in raw]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = integrate((raw, scalars, *others), placement)
    assert out.dtype == torch.bfloat16
    # Both factors of each product are rounded, and each of the few sums: half a unit of 2^-7 each.
    assert ((out.float() - expected).abs() <= 5 * 2**-8 * largest).all()
    out.float().sum().backward()
    for x, same in zip(leaves_of((raw, scalars, *others)), due, strict=True):
        assert x.grad.dtype == x.dtype
        scale = 1.0 if not same.numel() else max(1.0, same.abs().max().item())
        torch.testing.assert_close(x.grad.float(), same, rtol=0.02, atol=0.02 * scale)


@pytest.mark.parametrize("integrated", [False, True])
def test_doubles_stay_doubles_under_autocast(integrated: bool) -> None:
    placement = PLACES["one run each"]
    given = operands(placement, integrated=integrated)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = integrate(given, placement)
    assert torch.equal(out, integrate(given, placement))
    assert out.dtype == torch.float64


def test_twice_differentiated() -> None:
    placement = PLACES["several runs"]
    given = operands(placement)
    out = integrate(given, placement).square().sum()
    (gradient,) = torch.autograd.grad(out, given[0][0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def nbytes(*tensors: Tensor | None) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("integrated", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_forward_allocates_its_output_and_the_folded_kernel(
    integrated: bool, bias: bool, dtype: torch.dtype, gradients: bool
) -> None:
    placement = PLACES["one run each"]
    given = operands(placement, integrated=integrated, bias=bias, dtype=dtype)
    outputs = []
    with torch.set_grad_enabled(gradients):
        peak = peak_bytes(lambda: outputs.append(integrate(given, placement)))
    assert peak == nbytes(outputs[0], given[3])


@pytest.mark.parametrize("placement", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("integrated", [True, False])
def test_nothing_is_kept_but_what_is_kept_anyway(placement: Placement, integrated: bool) -> None:
    given = operands(placement, integrated=integrated, bias=True)
    raw, scalars, z, kernel, gamma, _ = given
    assert kept_bytes(lambda: integrate(given, placement), exclude=leaves_of(given)) == nbytes(
        kernel
    )
    # And of the operands themselves: not the bias.
    everything = nbytes(*raw, *scalars, z, kernel, gamma, kernel)
    assert kept_bytes(lambda: integrate(given, placement)) == everything


@pytest.mark.parametrize("integrated", [True, False])
def test_backward_holds_no_product(integrated: bool) -> None:
    """Beside the gradients that it returns, only numbers and kernels."""
    placement = PLACES["one run each"]
    given = operands(placement, integrated=integrated, size=(16, 16))
    out = integrate(given, placement)
    cotangent = torch.ones_like(out)
    peak = peak_bytes(lambda: torch.autograd.grad(out, leaves_of(given), cotangent))
    returned = nbytes(*leaves_of(given))
    assert returned <= peak <= returned + 4 * nbytes(given[3])
