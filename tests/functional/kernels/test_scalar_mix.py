"""Fused scalar mixing against float64; without a GPU in Triton's interpreter."""

import pytest
import torch

from manystream.functional import scalar_integrate
from manystream.functional.kernels import dispatch
from manystream.presence import Run

pytest.importorskip("triton")

from manystream.functional.kernels import scalar_mix

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

PLACES = {
    "one run each": [[(0, 3, 0)], [(0, 4, 1)]],
    "everyone": [[(0, 5, 0)], [(0, 5, 0)]],
    "no rows": [[(0, 5, 0)], []],
    "five streams": [[(0, 5 - m, m)] for m in range(5)],
    "rows at several views": [[(0, 3, 0), (1, 3, 3)], [(0, 2, 2), (0, 2, 0)]],
}
"""For each stream its runs: first and last row, and first view."""


def placement_of(places):
    return [[Run(slice(a, b), slice(v, v + b - a)) for a, b, v in runs] for runs in places]


def operands(places, dtype):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        x = torch.randn(shape, generator=generator).to(DEVICE, dtype)
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        return x.requires_grad_()

    raw = [noise(max((b for _, b, _ in runs), default=0), 6, 3, 5) for runs in places]
    scalars = [noise(1) for _ in places]
    return raw, scalars, noise(5, 4, 3, 5), noise(6, 4, 1, 1)


def run(raw, scalars, z, kernel, places):
    out = scalar_integrate(raw, scalars, placement_of(places), 5, z, kernel)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    upstream = upstream.bfloat16().to(out)  # exact in every dtype here
    inputs = [*raw, *scalars, z, kernel]
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_it_agrees_with_float64(places, dtype, tolerance):
    raw, scalars, z, kernel = operands(places, dtype)
    with dispatch.launches_are_free():
        assert dispatch.fused(z)
        found = run(raw, scalars, z, kernel, places)
    in_64 = [[t.detach().double().requires_grad_() for t in group] for group in (raw, scalars)]
    truth = run(*in_64, *(t.detach().double().requires_grad_() for t in (z, kernel)), places)
    for ours, exact in zip(found, truth, strict=True):
        scale = exact.abs().max().item() if exact.numel() else 0.0
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=tolerance * scale + 1e-7)


def test_a_gradient_from_elsewhere_is_added():
    (raw, _), (scalar, _), *_ = operands(PLACES["one run each"], torch.float32)
    raw, scalar = raw.detach(), scalar.detach()
    grad, other = torch.ones_like(raw), torch.full_like(raw, 2.0)
    grad_raw, grad_scalar = scalar_mix.scaled_backward(grad, raw, scalar, other)
    torch.testing.assert_close(grad_raw, scalar + other)
    torch.testing.assert_close(grad_scalar, raw.sum().view(1))


def test_torch_knows_the_operations():
    raw, scalars, *_ = operands(PLACES["one run each"], torch.float32)
    raw, scalars = [t.detach() for t in raw], [t.detach() for t in scalars]
    out = torch.zeros(5, 6, 3, 5, device=DEVICE).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(scalar_mix.add_scaled, (out, raw, scalars, [0, 1]))
    torch.library.opcheck(scalar_mix.scaled_backward, (raw[0], raw[0], scalars[0], raw[0]))
