"""Norm, residual, ReLU and max-pool as one operation that keeps its input and little else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from manystream.functional import remat


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


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    after: After = After(),
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    rebuild: bool = False,
) -> Tensor:
    r"""Batch norm, residual, ReLU and max-pool.

    .. math:: y = \mathrm{pool}(\mathrm{relu}(\mathrm{norm}(x) + \mathrm{residual}))

    The backward pass needs x, which the norm keeps anyway, and y where a ReLU but no pool follows.
    What lies between a ReLU and a pool is never kept: it is rebuilt from x, and so is the pool's
    index.

    Args:
        x: shape (B, C, H, W).
        running_mean: shape (C,), moved in training.
        running_var: shape (C,), moved in training.
        weight: shape (C,).
        bias: shape (C,).
        residual: shape of x.
        after: what follows the norm.
        training: whether to normalise with the batch's statistics; taken once, and kept.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.
        rebuild: whether y may be rebuilt from x and the residual instead of kept, see
            :mod:`manystream.functional.remat`.

    Returns:
        Shape (B, C, H, W), or the pooled one; dtype of x.

    Raises:
        RuntimeError: if differentiated twice.

    Source:
        Ioffe and Szegedy, "Batch Normalization", 2015.
    """
    if training:
        with torch.no_grad():
            mean, var = torch.batch_norm_update_stats(x, running_mean, running_var, momentum)
    else:
        mean, var = running_mean.clone(), running_var.clone()  # they may move before backward
    norm = _BatchNorm(mean, var, eps, training)
    y: Tensor = _NormAct.apply(x, residual, weight, bias, norm, after, rebuild)
    return y


def group_norm_act(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    after: After = After(),
    eps: float = 1e-5,
    rebuild: bool = False,
) -> Tensor:
    r"""Group norm, residual, ReLU and max-pool.

    Args:
        x: shape (B, C, H, W).
        num_groups: groups that the channels form.
        weight: shape (C,).
        bias: shape (C,).
        residual: shape of x.
        after: what follows the norm.
        eps: added to the variance.
        rebuild: as in :func:`batch_norm_act`.

    Returns:
        Shape (B, C, H, W), or the pooled one; dtype of x.

    Raises:
        RuntimeError: if differentiated twice.

    Source:
        Wu and He, "Group Normalization", 2018.
    """
    y: Tensor = _NormAct.apply(
        x, residual, weight, bias, _GroupNorm(num_groups, eps), after, rebuild
    )
    return y


@dataclass(frozen=True)
class _BatchNorm:
    """Batch norm with statistics already taken; they are a few numbers, and kept."""

    mean: Tensor
    var: Tensor
    eps: float
    training: bool

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, weight, bias, training=False, eps=self.eps)

    def backward(
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
class _GroupNorm:
    """Group norm; its statistics are taken anew, since they move nothing."""

    num_groups: int
    eps: float

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # On a GPU the native operation wants one dtype; it computes in float32 all the same.
        y = F.group_norm(x, self.num_groups, weight.to(x.dtype), bias.to(x.dtype), self.eps)
        return y.contiguous(memory_format=torch.channels_last)

    def backward(
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
        grad_x, *grads = torch.ops.aten.native_group_norm_backward(
            grad, x, mean, inverse_std, scale, *shape, mask
        )
        return grad_x, *(None if g is None else g.to(weight.dtype) for g in grads)


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        norm: _BatchNorm | _GroupNorm,
        after: After,
        rebuild: bool,
    ) -> Tensor:
        compute = _forward(norm, after, weight.detach(), bias.detach())
        with torch.autocast(x.device.type, enabled=False):
            y = compute(x, residual)
        if rebuild:
            sources = [x] if residual is None else [x, residual]
            remat.register(y, compute, *sources)
        ctx.norm, ctx.after = norm, after
        # With a pool, y does not tell where ReLU cut; x and the residual do.
        needs_y = after.relu and after.pool is None
        needs_inputs = after.pool is not None
        ctx.save_for_backward(
            x, weight, bias, y if needs_y else None, residual if needs_inputs else None
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, y, residual = ctx.saved_tensors
        norm, after = ctx.norm, ctx.after
        needs_x, needs_residual, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        if after.pool is not None:
            y = _forward(norm, After(after.relu), weight, bias)(x, residual)
            grad = _pool_backward(grad, y, after.pool)
        if after.relu:
            # What a pool gives back is ours to change; another gradient may have other readers.
            own = grad if after.pool is not None else torch.empty_like(grad)
            grad = torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=own)
        del y
        mask = [needs_x, needs_weight, needs_bias]
        grad_x, grad_weight, grad_bias = norm.backward(grad, x, weight, mask)
        grad_residual = grad if needs_residual else None
        return (grad_x, grad_residual, grad_weight, grad_bias, None, None, None)


def _forward(
    norm: _BatchNorm | _GroupNorm, after: After, weight: Tensor, bias: Tensor
) -> Callable[..., Tensor]:
    def compute(x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = norm.forward(x, weight, bias)
        if residual is not None:
            y.add_(residual)
        if after.relu:
            y.relu_()
        return y if after.pool is None else F.max_pool2d(y, *after.pool)

    return compute


def _pool_backward(grad: Tensor, y: Tensor, pool: Pool) -> Tensor:
    kernel_size, stride, padding = pool
    sides = [kernel_size] * 2, [stride] * 2, [padding] * 2
    _, index = torch.ops.aten.max_pool2d_with_indices(y, *sides)
    return torch.ops.aten.max_pool2d_with_indices_backward(  # type: ignore[no-any-return]
        grad, y, *sides, [1, 1], False, index
    )
