"""Norm, residual, ReLU and max-pool as one operation that keeps its input and little else."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from manystream.functional import remat
from manystream.functional._after import RELU, After, Gradients, Pool
from manystream.functional._plain_norm import PlainBatchNorm, PlainGroupNorm, moments
from manystream.functional.kernels import choice

__all__ = ["After", "Pool", "Running", "batch_norm_act", "batch_statistics", "group_norm_act"]


class Running(NamedTuple):
    """Running statistics of a batch norm, changed in place.

    Attributes:
        mean: shape (C,).
        var: shape (C,).
        num_batches_tracked: how many batches moved them, shape (), int64; None does not count.
    """

    mean: Tensor
    var: Tensor
    num_batches_tracked: Tensor | None = None


@torch.no_grad()
def batch_statistics(
    x: Tensor, running: Running, momentum: float | None = 0.1
) -> tuple[Tensor, Tensor]:
    """Statistics of a batch, which move the running ones.

    Args:
        x: shape (B, C, H, W), with more than one value per channel.
        running: running statistics.
        momentum: share of the batch in the running statistics; None takes the mean of all batches,
            which must be counted.

    Returns:
        Mean and biased variance, each of shape (C,).

    Raises:
        ValueError: if the running statistics are of another number of channels, or count no
            batches that a mean is to be taken of.
    """
    _check_channels(x, running_mean=running.mean, running_var=running.var)
    if choice.fused(x) and momentum is not None:
        from manystream.functional.kernels import statistics

        mean, var = statistics.batch_statistics(x, *running, momentum)
        return mean, var
    if running.num_batches_tracked is not None:
        running.num_batches_tracked.add_(1)
    # The native operation does not tell torch that it moves what it is given: what is compiled
    # would leave it out where nobody reads its results.
    if momentum is not None and not torch.compiler.is_compiling():
        return torch.batch_norm_update_stats(x, running.mean, running.var, momentum)
    mean, var = moments(x, running.mean.dtype)
    count = x.numel() // x.shape[1]
    share = _share_of_mean(running) if momentum is None else momentum
    running.mean.lerp_(mean, share)
    running.var.lerp_(var * (count / (count - 1)), share)
    return mean, var


def _share_of_mean(running: Running) -> Tensor:
    """The last batch's share in the mean of all that were counted."""
    if running.num_batches_tracked is None:
        raise ValueError(
            "momentum is None, which takes the mean of all batches, but num_batches_tracked is "
            "None too; count them, or give a momentum"
        )
    return running.num_batches_tracked.to(running.mean.dtype).reciprocal()


def batch_norm_act(
    x: Tensor,
    running: Running,
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    after: After = RELU,
    training: bool = True,
    momentum: float | None = 0.1,
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
        running: running statistics, moved in training.
        weight: shape (C,).
        bias: shape (C,).
        residual: shape of x.
        after: what follows the norm.
        training: whether to normalise with the batch's statistics; taken once, and kept.
        momentum: share of the batch in the running statistics, see :func:`batch_statistics`.
        eps: added to the variance.
        rebuild: whether y may be rebuilt from x and the residual instead of kept, see
            :mod:`manystream.functional.remat`.

    Returns:
        Shape (B, C, H, W), or the pooled one; dtype of x.

    Raises:
        ValueError: if the residual, or what is per channel, does not fit x.
        RuntimeError: if differentiated twice, unless the norm was left to torch.

    Source:
        Ioffe and Szegedy, "Batch Normalization", 2015.
    """
    _check_residual(x, residual)
    _check_channels(x, running_mean=running.mean, running_var=running.var, weight=weight, bias=bias)
    left_to_torch = after.pool is None and not rebuild and choice.leave_to_torch(x)
    if training and left_to_torch and momentum is not None:
        return _batch_norm_act_by_torch(x, running, weight, bias, residual, after, momentum, eps)
    pools_sum = after.pool is not None and residual is not None
    norm = _batch_norm(x, running, training, momentum, eps, pools_sum)
    y: Tensor = _NormAct.apply(x, residual, weight, bias, norm, after, rebuild)
    return y


def group_norm_act(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    after: After = RELU,
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
        ValueError: if the residual does not fit x.
        RuntimeError: if differentiated twice.

    Source:
        Wu and He, "Group Normalization", 2018.
    """
    _check_residual(x, residual)
    norm = PlainGroupNorm(num_groups, eps)
    y: Tensor = _NormAct.apply(x, residual, weight, bias, norm, after, rebuild)
    return y


def _batch_norm_act_by_torch(
    x: Tensor,
    running: Running,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    after: After,
    momentum: float,
    eps: float,
) -> Tensor:
    """Torch's own autograd keeps x and y too."""
    if running.num_batches_tracked is not None:
        running.num_batches_tracked.add_(1)
    y = F.batch_norm(x, running.mean, running.var, weight, bias, True, momentum, eps)
    if residual is not None:
        y.add_(residual)
    return y.relu_() if after.relu else y


class Norm(Protocol):
    """A norm with its statistics, and what follows it."""

    def needs_y(self, after: After, residual: Tensor | None) -> bool:
        """Whether the backward pass wants the output."""

    def forward(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, after: After
    ) -> Tensor:
        """The output y."""

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
        """Gradients of x, residual, weight and bias, as far as they are needed."""


def _check_channels(x: Tensor, **per_channel: Tensor) -> None:
    """Refuse what kernels would read or write past; they check nothing."""
    channels = x.shape[1]
    for name, tensor in per_channel.items():
        if tensor.shape != (channels,):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and x {tuple(x.shape)}; expected "
                f"({channels},), one value for each channel: build the norm for {channels} channels"
            )


def _check_residual(x: Tensor, residual: Tensor | None) -> None:
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"residual has shape {tuple(residual.shape)}; expected that of x, {tuple(x.shape)}: "
            "project it to the same size first"
        )


@torch.no_grad()
def _batch_norm(
    x: Tensor,
    running: Running,
    training: bool,
    momentum: float | None,
    eps: float,
    pools_sum: bool,
) -> Norm:
    """Take the statistics, or the running ones, and choose who computes with them."""
    if training:
        mean, var = batch_statistics(x, running, momentum)
    else:
        mean, var = running.mean.clone(), running.var.clone()  # they may move before backward
    if choice.fused(x) and not pools_sum:
        from manystream.functional._fused_norm import FusedBatchNorm

        return FusedBatchNorm(mean, var, eps, training)
    return PlainBatchNorm(mean, var, eps, training)


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        norm: Norm,
        after: After,
        rebuild: bool,
    ) -> Tensor:
        scale, shift = weight.detach(), bias.detach()

        def compute(x: Tensor, residual: Tensor | None = None) -> Tensor:
            return norm.forward(x, residual, scale, shift, after)

        y = compute(x, residual)
        if rebuild and any(ctx.needs_input_grad):
            sources = [x] if residual is None else [x, residual]
            remat.register(y, compute, *sources, reads=(scale, shift))
        ctx.norm, ctx.after = norm, after
        kept_y = y if norm.needs_y(after, residual) else None
        kept_residual = residual if after.pool is not None else None
        ctx.save_for_backward(x, weight, bias, kept_y, kept_residual)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, y, residual = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:4])
        grads = ctx.norm.backward(grad, x, residual, y, weight, bias, ctx.after, needs)
        return (*grads, None, None, None)
