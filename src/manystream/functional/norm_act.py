r"""Norm, residual, ReLU and max-pool as one operation that keeps its input and little else.

.. math:: y = \mathrm{pool}(\mathrm{relu}(\mathrm{norm}(x) + \mathrm{residual}))

Different rows may have norms of their own. The backward pass needs x, which the norm keeps anyway,
and y where a ReLU but no pool follows. What lies between a ReLU and a pool is never kept: it is
rebuilt from x, and so is the pool's index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from manystream.functional import remat
from manystream.functional._norm import RELU, After, Gradients, Norm
from manystream.functional.kernels import dispatch
from manystream.functional.maps import empty_maps


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


class BatchNormRows(NamedTuple):
    """A batch norm, and the rows that it normalises.

    Attributes:
        rows: the rows.
        running: its running statistics.
        weight: shape (C,).
        bias: shape (C,).
    """

    rows: slice
    running: Running
    weight: Tensor
    bias: Tensor


def batch_norm_act(
    x: Tensor,
    norms: Sequence[BatchNormRows],
    *,
    residual: Tensor | None = None,
    after: After = RELU,
    training: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    rebuild: bool = False,
) -> Tensor:
    """Batch norm, residual, ReLU and max-pool.

    Args:
        x: shape (N, C, ...).
        norms: norms whose rows are all of x, in order; one may have none, and zero gradients.
        residual: shape of x.
        after: what follows the norm.
        training: whether to normalise rows with their own statistics, which are taken once and
            kept, and to move the running ones. Rows with one value per channel are normalised with
            the running statistics, which stay as they are.
        momentum: share of the batch in the running statistics; None takes the mean of all batches.
        eps: added to the variance.
        rebuild: whether y may be rebuilt from x and the residual instead of kept, see
            :mod:`manystream.functional.remat`.

    Returns:
        Shape (N, C, ...), or the pooled one; dtype of x.

    Raises:
        ValueError: if the residual, or what is per channel, does not fit x.
        RuntimeError: if differentiated twice, unless the norm was left to torch.

    Source:
        Ioffe and Szegedy, "Batch Normalization", 2015.

    Example:
        >>> x = torch.tensor([[[-1.0, 1.0]], [[-1.0, 1.0]]])
        >>> one = Running(torch.zeros(1), torch.ones(1)), torch.ones(1), torch.zeros(1)
        >>> batch_norm_act(x, [BatchNormRows(slice(0, 2), *one)], eps=0.0).flatten()
        tensor([0., 1., 0., 1.])
    """
    _check(x, norms, residual)
    keeps_y = training and momentum is not None and after.pool is None and not rebuild
    if dispatch.is_traced() or (keeps_y and dispatch.leave_to_torch(x)):
        return _batch_norm_by_torch(x, norms, residual, after, training, momentum, eps)
    parts = [_with_statistics(x, norm, training, momentum, eps, after, residual) for norm in norms]
    weights, biases = [n.weight for n in norms], [n.bias for n in norms]
    y: Tensor = _NormAct.apply(parts, after, rebuild, x, residual, *weights, *biases)
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
    """Group norm, residual, ReLU and max-pool; each row has statistics of its own.

    Args:
        x: shape (N, C, ...).
        num_groups: groups that the channels form.
        weight: shape (C,).
        bias: shape (C,).
        residual: shape of x.
        after: what follows the norm.
        eps: added to the variance.
        rebuild: as in :func:`batch_norm_act`.

    Returns:
        Shape (N, C, ...), or the pooled one; dtype of x.

    Raises:
        ValueError: if the residual, or what is per channel, does not fit x.
        RuntimeError: if differentiated twice.

    Source:
        Wu and He, "Group Normalization", 2018.
    """
    _check_channels(x, weight=weight, bias=bias)
    _check_residual(x, residual)
    part = Norm(slice(0, len(x)), eps, num_groups=num_groups)
    if dispatch.is_traced():
        return after(part.plainly(x, weight, bias), residual)
    y: Tensor = _NormAct.apply([part], after, rebuild, x, residual, weight, bias)
    return y


@torch.no_grad()
def batch_statistics(
    x: Tensor, running: Running, momentum: float | None = 0.1
) -> tuple[Tensor, Tensor]:
    """Take the statistics of a batch, and move the running ones.

    Args:
        x: shape (N, C, ...).
        running: running statistics.
        momentum: share of the batch in the running statistics; None takes the mean of all batches,
            which must be counted.

    Returns:
        Mean and biased variance, each of shape (C,). Those of one value per channel, or of none,
        say nothing: the running ones are given instead, and stay as they are.

    Raises:
        ValueError: if the running statistics are of another number of channels, or count no
            batches that a mean is to be taken of.
    """
    _check_channels(x, running_mean=running.mean, running_var=running.var)
    return _statistics(x, running, momentum)


def _statistics(x: Tensor, running: Running, momentum: float | None) -> tuple[Tensor, Tensor]:
    count = x.numel() // x.shape[1]
    if count <= 1:
        return running.mean.clone(), running.var.clone()  # they may move before the backward pass
    if dispatch.fused(x) and momentum is not None:
        from manystream.functional.kernels import statistics

        mean, var = statistics.batch_statistics(x, *running, momentum)
        return mean, var
    if running.num_batches_tracked is not None:
        running.num_batches_tracked.add_(1)
    # The native operation does not tell a tracer that it moves what it is given.
    if momentum is not None and not dispatch.is_traced():
        return torch.batch_norm_update_stats(x, running.mean, running.var, momentum)
    mean, var = moments(x, running.mean.dtype)
    share = _share_of_mean(running) if momentum is None else momentum
    running.mean.lerp_(mean, share)
    running.var.lerp_(var * (count / (count - 1)), share)
    return mean, var


def moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the mean and biased variance of every channel, each (C,), as precisely as a dtype."""
    unused = torch.zeros(x.shape[1], dtype=dtype, device=x.device)
    # The dtype of what it is to move decides, even if it moves nothing.
    return torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)


def _share_of_mean(running: Running) -> Tensor:
    """Return the last batch's share in the mean of all that were counted."""
    if running.num_batches_tracked is None:
        raise ValueError(
            "momentum is None, which takes the mean of all batches, but num_batches_tracked is "
            "None too; count them, or give a momentum"
        )
    return running.num_batches_tracked.to(running.mean.dtype).reciprocal()


def _batch_norm_by_torch(
    x: Tensor,
    norms: Sequence[BatchNormRows],
    residual: Tensor | None,
    after: After,
    training: bool,
    momentum: float | None,
    eps: float,
) -> Tensor:
    """Compute it by ordinary operations and torch's own autograd, which keeps x and y too."""
    normalised = []
    for rows, running, weight, bias in norms:
        part = x if len(norms) == 1 else x[rows]
        own = training and part.numel() > part.shape[1]
        if own and momentum is None:
            batch_statistics(part.detach(), running, None)
        elif own and running.num_batches_tracked is not None:
            running.num_batches_tracked.add_(1)
        affine = weight, bias
        if len(part) == 0:  # torch's own backward pass divides by the number of rows
            shape = (-1, *[1] * (x.dim() - 2))
            normalised.append((part * weight.view(shape) + bias.view(shape)).to(x.dtype))
            continue
        normalised.append(
            F.batch_norm(part, running.mean, running.var, *affine, own, momentum or 0.0, eps)
        )
    return after(normalised[0] if len(norms) == 1 else torch.cat(normalised), residual)


@torch.no_grad()
def _with_statistics(
    x: Tensor,
    norm: BatchNormRows,
    training: bool,
    momentum: float | None,
    eps: float,
    after: After,
    residual: Tensor | None,
) -> Norm:
    """Take the statistics of a norm's rows, or the running ones, and choose who computes."""
    part = x[norm.rows]
    own = training and part.numel() > part.shape[1]
    if own:
        mean, var = _statistics(part, norm.running, momentum)
    else:
        mean, var = norm.running.mean.clone(), norm.running.var.clone()
    pools_sum = after.pool is not None and residual is not None
    fused = dispatch.fused(part) and not pools_sum
    return Norm(norm.rows, eps, mean, var, own, fused=fused)


class _NormAct(torch.autograd.Function):
    """The operation with gradients; weights and biases come last, one each per norm."""

    @staticmethod
    def forward(
        ctx: Any,
        norms: Sequence[Norm],
        after: After,
        rebuild: bool,
        x: Tensor,
        residual: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        affine = [p.detach() for p in parameters]

        def compute(x: Tensor, residual: Tensor | None = None) -> Tensor:
            y = empty_maps(after.shape(x), x) if len(norms) > 1 else None
            for norm, pair in zip(norms, _pairs(affine), strict=True):
                if not _is_idle(norm, norms):
                    part, added, into = (_rows(t, norm, norms) for t in (x, residual, y))
                    of_rows = norm.forward(part, added, *pair, after, into)
            return of_rows if y is None else y

        y = compute(x, residual)
        if rebuild and any(ctx.needs_input_grad):
            sources = [x] if residual is None else [x, residual]
            remat.register(y, compute, *sources, reads=tuple(affine))
        ctx.norms, ctx.after = norms, after
        used = [norm for norm in norms if not _is_idle(norm, norms)]
        kept_y = y if any(norm.needs_y(after, residual) for norm in used) else None
        kept_residual = residual if after.pool is not None else None
        ctx.save_for_backward(x, kept_y, kept_residual, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        norms, after, needs = ctx.norms, ctx.after, ctx.needs_input_grad[3:]
        x, y, residual, *parameters = ctx.saved_tensors
        whole, cut, of_parameters = None, None, list[tuple[Tensor | None, ...]]()
        if len(norms) > 1:
            whole = empty_maps(x.shape, x)
            keeps_cut = y is not None or (needs[1] and after.pool is not None)
            cut = empty_maps(x.shape, x) if keeps_cut else None
        found: Gradients = (None, None, None, None)
        affine, needs_affine = _pairs(parameters), _pairs(needs[2:])
        for norm, pair, needed in zip(norms, affine, needs_affine, strict=True):
            if _is_idle(norm, norms):
                of_parameters.append(tuple(map(torch.zeros_like, pair)))
                continue
            upstream, *given = (_rows(t, norm, norms) for t in (grad, x, residual, y))
            into = (_rows(t, norm, norms) for t in (whole, cut))
            found = norm.backward(upstream, *given, *pair, after, [*needs[:2], *needed], *into)
            of_parameters.append(found[2:])
        grad_x, grad_residual = found[:2]
        if whole is not None:
            grad_x, grad_residual = whole, grad if cut is None else cut
        of_weights, of_biases = zip(*of_parameters, strict=True)
        of_maps = grad_x, grad_residual if needs[1] else None
        return None, None, None, *of_maps, *of_weights, *of_biases


def _pairs(values: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Return a norm's weight and bias from all weights followed by all biases."""
    half = len(values) // 2
    return list(zip(values[:half], values[half:], strict=True))


def _is_idle(norm: Norm, norms: Sequence[Norm]) -> bool:
    """Tell whether a norm beside others has no rows."""
    return len(norms) > 1 and norm.rows.start == norm.rows.stop


def _rows(x: Any, norm: Norm, norms: Sequence[Norm]) -> Any:
    """Return a norm's rows of a map, if there is one; the rows of an only norm are the whole."""
    return x if x is None or len(norms) == 1 else x[norm.rows]


def _check(x: Tensor, norms: Sequence[BatchNormRows], residual: Tensor | None) -> None:
    for norm in norms:
        _check_channels(
            x,
            running_mean=norm.running.mean,
            running_var=norm.running.var,
            weight=norm.weight,
            bias=norm.bias,
        )
    _check_residual(x, residual)


def _check_channels(x: Tensor, **per_channel: Tensor) -> None:
    """Refuse what native operations would read or write past; they check nothing."""
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
