"""Batch norm whose statistics count the present rows of every process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from manystream.functional.norm_act import BatchNormRows, Running, moments


def sync_batch_norm(
    x: Tensor,
    norms: Sequence[BatchNormRows],
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

    Every process of the default group calls it, with as many norms, with or without rows. Where
    there is one value per channel in all processes together, or none, the running statistics
    normalise and stay as they are. All norms travel together, and no step waits for the device.
    torch's own SyncBatchNorm raises where rows are missing, and is for GPUs only.

    Args:
        x: shape (B_r, C, H, W); B_r may be 0.
        norms: norms whose rows are all of x, in order; their running statistics are moved, and
            must count batches.
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
    slices = [norm.rows for norm in norms]
    mean, var, count = _joint_statistics([x[rows] for rows in slices], norms[0].weight.dtype)
    enough = count > 1
    for g, norm in enumerate(norms):
        _move(norm.running, mean[g], var[g], count[g], enough[g], momentum)
    mean = torch.where(enough[:, None], mean, torch.stack([n.running.mean for n in norms]))
    var = torch.where(enough[:, None], var, torch.stack([n.running.var for n in norms]))
    # Each term of the gradient that runs through the statistics has this factor.
    share = enough / count.clamp(min=1)
    affine = *(n.weight for n in norms), *(n.bias for n in norms)
    y: Tensor = _SyncBatchNorm.apply(x, slices, mean, var, share, eps, *affine)
    return y


@torch.no_grad()
def _move(
    running: Running,
    mean: Tensor,
    var: Tensor,
    count: Tensor,
    enough: Tensor,
    momentum: float | None,
) -> None:
    assert running.num_batches_tracked is not None
    running.num_batches_tracked.add_(enough)
    share_of_mean = 1 / running.num_batches_tracked.clamp(min=1)
    rate = enough.to(running.mean.dtype) * (share_of_mean if momentum is None else momentum)
    unbiased = var * count / (count - 1).clamp(min=1)
    running.mean.lerp_(mean.to(running.mean.dtype), rate)
    running.var.lerp_(unbiased.to(running.var.dtype), rate)


@torch.no_grad()
def _joint_statistics(parts: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Means and biased variances, shape (G, C), and numbers of values per channel, shape (G,)."""
    channels = parts[0].shape[1]
    size = dist.get_world_size(), len(parts), 2 * channels + 1
    every = torch.zeros(size, dtype=dtype, device=parts[0].device)
    for own, x in zip(every[dist.get_rank()], parts, strict=True):
        if x.numel() > 0:
            own[:channels], own[channels:-1] = moments(x, dtype)
            own[-1].fill_(x.numel() // channels)
    dist.all_reduce(every)  # the others' rows are zero: a gathering that every backend has
    means, variances, counts = every.split([channels, channels, 1], dim=2)
    count = counts.sum(dim=0)
    shares = counts / count.clamp(min=1)
    mean = (shares * means).sum(dim=0)
    var = (shares * (variances + (means - mean).square())).sum(dim=0)
    return mean, var, count.squeeze(1)


class _SyncBatchNorm(torch.autograd.Function):
    """The normalisation with gradients; weights and biases come last, one each per norm."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        slices: Sequence[slice],
        mean: Tensor,
        var: Tensor,
        share: Tensor,
        eps: float,
        *affine: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, var, share, *affine)
        ctx.slices, ctx.eps = slices, eps
        y = torch.empty_like(x)
        weights, biases = affine[: len(slices)], affine[len(slices) :]
        with torch.autocast(x.device.type, enabled=False):
            for g, rows in enumerate(slices):
                y[rows] = F.batch_norm(
                    x[rows], mean[g], var[g], weights[g], biases[g], training=False, eps=eps
                )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, share, *affine = ctx.saved_tensors
        inverse_std = (var + ctx.eps).rsqrt()
        weights = affine[: len(ctx.slices)]
        own = torch.zeros(len(mean), 2, mean.shape[1], dtype=mean.dtype, device=mean.device)
        for g, rows in enumerate(ctx.slices):
            if x[rows].numel() > 0:  # the native operation divides by the number of rows
                _, own[g, 1], own[g, 0] = torch.ops.aten.native_batch_norm_backward(
                    *(grad[rows], x[rows], weights[g], mean[g], var[g], mean[g], inverse_std[g]),
                    *(False, ctx.eps, [False, True, True]),  # a CPU reads var, a GPU the deviation
                )
        joint = own.clone()
        dist.all_reduce(joint)
        along = joint * share[:, None, None]
        grad_x = torch.empty_like(x)
        for g, rows in enumerate(ctx.slices):
            grad_x[rows] = _input_gradient(
                grad[rows], x[rows], weights[g], mean[g], inverse_std[g], *along[g]
            )
        return grad_x, *[None] * 5, *own[:, 1], *own[:, 0]


def _input_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    along_bias: Tensor,
    along_weight: Tensor,
) -> Tensor:
    """Return ``weight / std · (grad − along_bias − x̂ · along_weight)``, in one pass."""
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
