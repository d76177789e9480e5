"""Norm, residual, activation and pooling of every stream and of the integrated pathway."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manystream.functional import (
    After,
    Pool,
    Running,
    batch_norm_act,
    batch_statistics,
    group_norm_act,
    lanes,
    remat,
)
from manystream.layers.sync_norm import SyncBatchNorm2d
from manystream.streams import StreamBatch

NormLayer = Callable[[int], nn.Module]
"""Builds a norm from its number of channels, for example ``nn.BatchNorm2d``."""


class StreamNormAct2d(nn.Module):
    r"""``pool(relu(norm(x) + identity))`` of each stream's present rows and the integrated pathway.

    A stream's norm is a stock batch norm on a smaller batch, so its statistics count present
    samples only. Where it would see one value per channel or none, it normalises with its running
    statistics and leaves them as they are.

    Args:
        num_features: channels C.
        num_streams: number of streams M.
        integrated_norm: norm of the integrated pathway, if there is one.
        activation: whether ReLU follows.
        pool: max-pool that follows, if any.
        integrated_only: the streams end here, as in the last block: their running statistics
            still move, their parameters are frozen since nothing depends on them, and only the
            integrated pathway is returned.

    Attributes:
        records: whether the backward pass may rebuild what the layer would keep for it.
        rebuild: whether the backward pass rebuilds the outputs instead of keeping them.

    Raises:
        ValueError: if a batch norm keeps no running statistics.
    """

    def __init__(
        self,
        num_features: int,
        num_streams: int,
        integrated_norm: NormLayer | None = nn.BatchNorm2d,
        *,
        activation: bool = True,
        pool: Pool | None = None,
        integrated_only: bool = False,
    ) -> None:
        super().__init__()
        self.streams = nn.ModuleList(nn.BatchNorm2d(num_features) for _ in range(num_streams))
        self.integrated = None if integrated_norm is None else integrated_norm(num_features)
        if type(self.integrated) is nn.BatchNorm2d:
            _running(self.integrated)
        self.after = After(activation, pool)
        self.integrated_only = integrated_only
        self.records = self.rebuild = False
        if integrated_only:
            self.streams.requires_grad_(False)

    @remat.recorded
    def forward(self, batch: StreamBatch, identity: StreamBatch | None = None) -> StreamBatch:
        """Shapes stay, up to the pool; ``identity`` has the shapes of ``batch``."""
        if self.integrated_only:
            lanes.each(_move_statistics, self.streams, batch.streams)
            streams: tuple[Tensor, ...] = ()
        else:
            residuals = (None,) * len(batch.streams) if identity is None else identity.streams
            streams = tuple(lanes.each(self._norm_act, self.streams, batch.streams, residuals))
        return batch.with_maps(streams, self._integrated(batch, identity))

    def _integrated(self, batch: StreamBatch, identity: StreamBatch | None) -> Tensor | None:
        z = batch.integrated
        if z is None:
            return None
        if self.integrated is None:
            raise ValueError(
                "the batch has an integrated pathway and this layer no norm for it; give it an "
                "integrated_norm, torch.nn.Identity for none"
            )
        if identity is not None and identity.integrated is None:
            raise ValueError(
                "identity has no integrated pathway and the batch has one; expected a residual "
                "for every pathway"
            )
        return self._norm_act(self.integrated, z, None if identity is None else identity.integrated)

    def _norm_act(self, norm: nn.Module, x: Tensor, residual: Tensor | None) -> Tensor:
        if type(norm) is nn.BatchNorm2d:
            return self._batch_norm_act(norm, x, residual)
        if isinstance(norm, nn.GroupNorm):
            return group_norm_act(
                x,
                norm.num_groups,
                *_affine(norm, x),
                residual=residual,
                after=self.after,
                eps=norm.eps,
                rebuild=self.rebuild,
            )
        # Another norm, SyncBatchNorm for one, is called as it is. It may give what it was given, or
        # what it needs itself: only a sum, or what we know, is ours to change.
        y = norm(x) if residual is None else norm(x) + residual
        if self.after.relu:
            ours = residual is not None or type(norm) is SyncBatchNorm2d
            y = F.relu(y, inplace=ours)
        return y if self.after.pool is None else F.max_pool2d(y, *self.after.pool)

    def _batch_norm_act(
        self, norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        return batch_norm_act(
            x,
            _running(norm),
            *_affine(norm, x),
            residual=residual,
            after=self.after,
            training=norm.training and _has_statistics(x),
            momentum=norm.momentum,
            eps=norm.eps,
            rebuild=self.rebuild,
        )


def _move_statistics(norm: nn.Module, x: Tensor) -> None:
    if not norm.training:
        return
    if type(norm) is not nn.BatchNorm2d:
        with torch.no_grad():
            norm(x)
    elif _has_statistics(x):
        batch_statistics(x, _running(norm), norm.momentum)


def _running(norm: nn.BatchNorm2d) -> Running:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise ValueError(
            "a norm keeps no running statistics (track_running_stats=False), with which one value "
            "per channel is normalised; build it with track_running_stats=True"
        )
    return Running(mean, var, norm.num_batches_tracked)


def _affine(norm: nn.BatchNorm2d | nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias; where a norm has none (affine=False), what changes nothing."""
    weight: Tensor | None = norm.weight
    bias: Tensor | None = norm.bias
    if weight is not None and bias is not None:
        return weight, bias
    running = getattr(norm, "running_mean", None)
    like = next(t for t in (weight, bias, running, x) if t is not None)
    channels = x.shape[1]
    return (
        like.new_ones(channels) if weight is None else weight,
        like.new_zeros(channels) if bias is None else bias,
    )


def _has_statistics(x: Tensor) -> bool:
    """Whether there is more than one value per channel."""
    return x.shape[0] * x.shape[2] * x.shape[3] > 1
