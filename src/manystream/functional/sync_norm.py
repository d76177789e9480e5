"""Batch norm whose statistics count the present rows of every process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from manystream.functional._plain_norm import moments


def sync_batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    r"""Normalise the rows of this process with the statistics of all.

    With :math:`n_r`, :math:`\mu_r`, :math:`\sigma_r^2` the values per channel, mean and variance of
    process r:

    .. math::
        \mu = \sum_r \tfrac{n_r}{N} \mu_r, \qquad
        \sigma^2 = \sum_r \tfrac{n_r}{N} \bigl(\sigma_r^2 + (\mu_r - \mu)^2\bigr)

    Every process of the default group calls it, with or without rows. Where there is one value per
    channel in all processes together, or none, the running statistics normalise and stay as they
    are. No step waits for the device. torch's own SyncBatchNorm raises there, and is for GPUs only.

    Args:
        x: shape (B_r, C, H, W); B_r may be 0.
        running_mean: shape (C,), moved.
        running_var: shape (C,), moved.
        num_batches_tracked: shape (), moved.
        weight: shape (C,).
        bias: shape (C,).
        momentum: share of the batch in the running statistics; None takes the mean of all batches.
        eps: added to the variance.

    Returns:
        Shape and dtype of x.

    Raises:
        RuntimeError: if differentiated twice.

    Source:
        Chan et al., "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
        1979, for the joint variance.
    """
    mean, var, count = _joint_statistics(x, weight.dtype)
    enough = count > 1
    with torch.no_grad():
        num_batches_tracked.add_(enough)
        rate = enough.to(mean.dtype)
        rate = rate / num_batches_tracked.clamp(min=1) if momentum is None else momentum * rate
        unbiased = var * count / (count - 1).clamp(min=1)
        running_mean.lerp_(mean.to(running_mean.dtype), rate.to(running_mean.dtype))
        running_var.lerp_(unbiased.to(running_var.dtype), rate.to(running_var.dtype))
    mean = torch.where(enough, mean, running_mean)
    var = torch.where(enough, var, running_var)
    # Each term of the gradient that runs through the statistics has this factor.
    share = enough / count.clamp(min=1)
    y: Tensor = _SyncBatchNorm.apply(x, weight, bias, mean, var, share, eps)
    return y


@torch.no_grad()
def _joint_statistics(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance, shape (C,), and number of values per channel, shape ()."""
    channels = x.shape[1]
    every = torch.zeros(dist.get_world_size(), 2 * channels + 1, dtype=dtype, device=x.device)
    if x.numel() > 0:
        own = every[dist.get_rank()]
        own[:channels], own[channels:-1] = moments(x, dtype)
        own[-1].fill_(x.numel() // channels)
    dist.all_reduce(every)  # the others' rows are zero: a gathering that every backend has
    means, variances, counts = every.split([channels, channels, 1], dim=1)
    count = counts.sum()
    shares = counts / count.clamp(min=1)
    mean = (shares * means).sum(dim=0)
    var = (shares * (variances + (means - mean).square())).sum(dim=0)
    return mean, var, count


class _SyncBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        share: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, share)
        ctx.eps = eps
        with torch.autocast(x.device.type, enabled=False):
            return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, share = ctx.saved_tensors
        inverse_std = (var + ctx.eps).rsqrt()
        if x.numel() == 0:  # the native operation divides by the number of rows
            grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        else:  # it reads the variance on a CPU, the deviation on a GPU
            _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                *(grad, x, weight, mean, var, mean, inverse_std),
                *(False, ctx.eps, [False, True, True]),
            )
        joint = torch.cat([grad_bias, grad_weight])
        dist.all_reduce(joint)
        along_bias, along_weight = (joint * share).chunk(2)
        grad_x = _input_gradient(grad, x, weight, mean, inverse_std, along_bias, along_weight)
        return grad_x, grad_weight, grad_bias, None, None, None, None


def _input_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    along_bias: Tensor,
    along_weight: Tensor,
) -> Tensor:
    """``weight / std · (grad − along_bias − x̂ · along_weight)``, in one pass over the memory."""
    if x.is_cuda and x.numel() > 0:
        one = torch.ones(1, dtype=torch.int32, device=x.device)
        return torch.batch_norm_backward_elemt(
            grad, x, mean, inverse_std, weight, along_bias, along_weight / inverse_std, one
        )
    scale = weight * inverse_std
    slope = -scale * inverse_std * along_weight
    offset = -scale * along_bias - slope * mean
    shape = (1, -1, 1, 1)
    result = grad * scale.view(shape) + x * slope.view(shape) + offset.view(shape)
    return result.to(x.dtype)
