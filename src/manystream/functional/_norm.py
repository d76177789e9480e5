"""One norm over some rows, forward and backward: by torch's operations, or by Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from manystream.functional.maps import channels_last, empty_maps, is_channels_last

MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
"""By the number of sides of a map."""


class Pool(NamedTuple):
    """A max-pool: side, step and padding of its window."""

    kernel_size: int
    stride: int
    padding: int


@dataclass(frozen=True)
class After:
    """What follows a norm: ReLU or not, then a max-pool or not."""

    relu: bool = True
    pool: Pool | None = None

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """Return the shape of what comes of a map."""
        if self.pool is None:
            return tuple(x.shape)
        side, step, padding = self.pool
        return (*x.shape[:2], *((s + 2 * padding - side) // step + 1 for s in x.shape[2:]))

    def __call__(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply it to a norm's output, which nobody else reads: it is changed in place."""
        if residual is not None:
            y = y.add_(residual)
        if self.relu:
            y = y.relu_()
        return y if self.pool is None else MAX_POOL[y.dim() - 2](y, *self.pool)


RELU = After()


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Of x, residual, weight and bias."""


@dataclass(frozen=True, eq=False)
class Norm:
    """One norm over some rows: all that it needs but maps and its parameters.

    Attributes:
        rows: the rows.
        eps: added to the variance.
        mean, var: what a batch norm normalises with, shape (C,); a few numbers, and kept.
        from_batch: whether these are the rows' own, so that gradients run through them.
        num_groups: of a group norm, whose statistics are taken anew, since they move nothing.
        fused: whether Triton kernels compute it.
    """

    rows: slice
    eps: float
    mean: Tensor | None = None
    var: Tensor | None = None
    from_batch: bool = False
    num_groups: int | None = None
    fused: bool = False

    def needs_y(self, after: After, residual: Tensor | None) -> bool:
        """Tell whether the backward pass wants the output to see where ReLU cut.

        With a pool it does not tell; the kernels rebuild it from x, unless a residual had its say.
        """
        return after.relu and after.pool is None and not (self.fused and residual is None)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        after: After,
        into: Tensor | None = None,
    ) -> Tensor:
        """Normalise some rows, and write them into a map of theirs if there is one."""
        if not self.fused:
            y = after(self.plainly(x, weight, bias), residual)
            return y if into is None else into.copy_(y)
        from manystream.functional.kernels.norm import norm_relu
        from manystream.functional.kernels.pool import norm_relu_pool

        how = (self.mean, self.var, weight, bias, self.eps, after.relu)
        y = empty_maps(after.shape(x), x) if into is None else into
        if after.pool is None:
            norm_relu(x, residual, *how, y)
        else:
            norm_relu_pool(x, *how, *after.pool, y)
        return y

    def plainly(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalise by torch's own operations: for every device, dtype and layout."""
        if self.num_groups is None:
            return F.batch_norm(x, self.mean, self.var, weight, bias, training=False, eps=self.eps)
        # On a GPU the native operation wants one dtype; it computes in float32 all the same.
        with torch.autocast(x.device.type, enabled=False):
            y = F.group_norm(x, self.num_groups, weight.to(x.dtype), bias.to(x.dtype), self.eps)
        return channels_last(y)

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        residual: Tensor | None,
        y: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        after: After,
        needs: Sequence[bool],
        grad_x: Tensor | None = None,
        cut: Tensor | None = None,
    ) -> Gradients:
        """Return the gradients as far as they are needed; no incoming one is written into.

        ``grad_x`` and ``cut``, if given, are where that of x and that before the norm's sum are to
        be written.
        """
        if self.fused:
            return self._fused_backward(grad, x, y, weight, bias, after, needs, grad_x, cut)
        if after.pool is not None:
            y = After(after.relu)(self.plainly(x, weight, bias), residual)
            grad = _pool_backward(grad, y, after.pool)
        if after.relu:
            assert y is not None
            # What a pool gives back is ours to change; another gradient may have other readers.
            own = grad if after.pool is not None else torch.empty_like(grad)
            grad = torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=own)
        del y
        needs_x, needs_residual, *needs_affine = needs
        found, *grads = self._plain_backward(grad, x, weight, [needs_x, *needs_affine])
        if grad_x is not None and found is not None:
            found = grad_x.copy_(found)
        if cut is not None:
            grad = cut.copy_(grad)
        return found, grad if needs_residual else None, grads[0], grads[1]

    def _plain_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, mask: list[bool]
    ) -> tuple[Tensor | None, ...]:
        if x.numel() == 0:  # the native operations divide by the number of rows
            return torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        if self.num_groups is not None:
            return self._group_backward(grad, x, weight, self.num_groups, mask)
        assert self.var is not None
        statistics = (self.mean, self.var, self.mean, (self.var + self.eps).rsqrt())
        return torch.ops.aten.native_batch_norm_backward(  # type: ignore[no-any-return]
            grad, x, weight, *statistics, self.from_batch, self.eps, mask
        )

    def _group_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, num_groups: int, mask: list[bool]
    ) -> tuple[Tensor | None, ...]:
        # The native operations want one layout in both, and on a GPU know the plain one only.
        if x.device.type == "cpu" and is_channels_last(x):
            x, grad = x, channels_last(grad)
            mask = [True, *mask[1:]]  # without a gradient of x they crash there
        else:
            x, grad = x.contiguous(), grad.contiguous()
        shape = (x.shape[0], x.shape[1], x.shape[2:].numel(), num_groups)
        scale = weight.to(x.dtype)
        _, mean, inverse_std = torch.ops.aten.native_group_norm(x, scale, None, *shape, self.eps)
        grad_x, *grads = torch.ops.aten.native_group_norm_backward(
            grad, x, mean, inverse_std, scale, *shape, mask
        )
        return grad_x, *(None if g is None else g.to(weight.dtype) for g in grads)

    def _fused_backward(
        self,
        grad: Tensor,
        x: Tensor,
        y: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        after: After,
        needs: Sequence[bool],
        grad_x: Tensor | None,
        cut: Tensor | None,
    ) -> Gradients:
        from manystream.functional.kernels.norm import norm_relu_backward
        from manystream.functional.kernels.pool import norm_relu_pool_backward

        how = (self.mean, self.var, weight, bias, self.eps, after.relu, self.from_batch)
        grad_x = empty_maps(x.shape, x) if grad_x is None else grad_x
        if after.pool is not None:
            grads = norm_relu_pool_backward(grad, x, *how, *after.pool, grad_x)
            return grad_x, None, *grads
        if not (after.relu and y is not None):
            cut = None
        elif cut is None:
            cut = empty_maps(x.shape, x)
        grads = norm_relu_backward(grad, x, y, *how, grad_x, cut)
        grad_residual = cut if after.relu else grad
        return grad_x, grad_residual if needs[1] else None, *grads


def _pool_backward(grad: Tensor, y: Tensor, pool: Pool) -> Tensor:
    """Return the gradient of a max-pool, whose index is found again."""
    num_sides = y.dim() - 2
    if num_sides == 1:  # natively there are two sides or three
        return _pool_backward_natively(grad[:, :, None], y[:, :, None], pool, 2, [0])[:, :, 0]
    return _pool_backward_natively(grad, y, pool, num_sides, [])


def _pool_backward_natively(
    grad: Tensor, y: Tensor, pool: Pool, num_sides: int, flat: Sequence[int]
) -> Tensor:
    def sides(value: int, neutral: int) -> list[int]:
        return [neutral if side in flat else value for side in range(num_sides)]

    window = [sides(v, n) for v, n in zip(pool, (1, 1, 0), strict=True)]
    forward = getattr(torch.ops.aten, f"max_pool{num_sides}d_with_indices")
    backward = getattr(torch.ops.aten, f"max_pool{num_sides}d_with_indices_backward")
    _, index = forward(y, *window)
    found: Tensor = backward(grad, y, *window, [1] * num_sides, False, index)
    return found
