"""Norms of :mod:`.norm_act` by torch's own operations: for every device, dtype and layout."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from manystream.functional._after import After, Gradients, Pool


class _PlainNorm:
    """What follows a norm, and its backward; subclasses are the norm."""

    @abstractmethod
    def norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor: ...

    @abstractmethod
    def norm_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, mask: list[bool]
    ) -> tuple[Tensor | None, ...]: ...

    def needs_y(self, after: After, residual: Tensor | None) -> bool:
        """With a pool, y does not tell where ReLU cut; x and the residual do."""
        return after.relu and after.pool is None

    def forward(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, after: After
    ) -> Tensor:
        y = self.norm(x, weight, bias)
        if residual is not None:
            y.add_(residual)
        if after.relu:
            y.relu_()
        return y if after.pool is None else F.max_pool2d(y, *after.pool)

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        residual: Tensor | None,
        y: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        after: After,
        needs: list[bool],
    ) -> Gradients:
        if after.pool is not None:
            y = self.forward(x, residual, weight, bias, After(after.relu))
            grad = _pool_backward(grad, y, after.pool)
        if after.relu:
            assert y is not None
            # What a pool gives back is ours to change; another gradient may have other readers.
            own = grad if after.pool is not None else torch.empty_like(grad)
            grad = torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=own)
        del y
        needs_x, needs_residual, needs_weight, needs_bias = needs
        grad_x, grad_weight, grad_bias = self.norm_backward(
            grad, x, weight, [needs_x, needs_weight, needs_bias]
        )
        return grad_x, grad if needs_residual else None, grad_weight, grad_bias


@dataclass(frozen=True)
class PlainBatchNorm(_PlainNorm):
    """Batch norm with statistics already taken; they are a few numbers, and kept."""

    mean: Tensor
    var: Tensor
    eps: float
    training: bool

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, weight, bias, training=False, eps=self.eps)

    def norm_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, mask: list[bool]
    ) -> tuple[Tensor | None, ...]:
        if x.numel() == 0:  # the native operation divides by the number of rows
            return torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        inverse_std = (self.var + self.eps).rsqrt()
        return torch.ops.aten.native_batch_norm_backward(  # type: ignore[no-any-return]
            grad,
            x,
            weight,
            self.mean,
            self.var,
            self.mean,
            inverse_std,
            self.training,
            self.eps,
            mask,
        )


@dataclass(frozen=True)
class PlainGroupNorm(_PlainNorm):
    """Group norm; its statistics are taken anew, since they move nothing."""

    num_groups: int
    eps: float

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # On a GPU the native operation wants one dtype; it computes in float32 all the same.
        with torch.autocast(x.device.type, enabled=False):
            y = F.group_norm(x, self.num_groups, weight.to(x.dtype), bias.to(x.dtype), self.eps)
        return y.contiguous(memory_format=torch.channels_last)

    def norm_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, mask: list[bool]
    ) -> tuple[Tensor | None, ...]:
        # The native operations want one layout in both, and on a GPU know the plain one only.
        channels_last = x.device.type == "cpu" and x.is_contiguous(
            memory_format=torch.channels_last
        )
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, grad = x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)
        shape = (x.shape[0], x.shape[1], x.shape[2] * x.shape[3], self.num_groups)
        scale = weight.to(x.dtype)
        _, mean, inverse_std = torch.ops.aten.native_group_norm(x, scale, None, *shape, self.eps)
        # In channels-last the native operation reads x's gradient even where it was not asked for
        # one, and ends the process.
        grad_x, *grads = torch.ops.aten.native_group_norm_backward(
            grad, x, mean, inverse_std, scale, *shape, [mask[0] or channels_last, *mask[1:]]
        )
        return grad_x if mask[0] else None, *(
            None if g is None else g.to(weight.dtype) for g in grads
        )


def moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, each (C,), in a dtype that half maps need."""
    unused = torch.zeros(x.shape[1], dtype=dtype, device=x.device)
    # The dtype of what it is to move decides, even if it moves nothing.
    return torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)


def _pool_backward(grad: Tensor, y: Tensor, pool: Pool) -> Tensor:
    kernel_size, stride, padding = pool
    sides = [kernel_size] * 2, [stride] * 2, [padding] * 2
    _, index = torch.ops.aten.max_pool2d_with_indices(y, *sides)
    return torch.ops.aten.max_pool2d_with_indices_backward(  # type: ignore[no-any-return]
        grad, y, *sides, [1, 1], False, index
    )
