"""Norm, residual and activation of every stream and of the integrated pathway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manystream.streams import StreamBatch

NormLayer = Callable[[int], nn.Module]
"""Builds a norm from its number of channels, for example ``nn.BatchNorm2d``."""


class StreamNormAct2d(nn.Module):
    r"""``relu(norm(x) + identity)`` on each stream's present rows and on the integrated pathway.

    A stream's norm is a stock batch norm on a smaller batch, so its statistics count present
    samples only. Where it would see one value per channel or none, it normalises with its running
    statistics and leaves them as they are.

    Args:
        num_features: channels C.
        num_streams: number of streams M.
        integrated_norm: norm of the integrated pathway, if there is one.
        activation: whether ReLU follows.
        integrated_only: the streams end here, as in the last block: their running statistics
            still move, their parameters are frozen since nothing depends on them, and only the
            integrated pathway is returned.
    """

    def __init__(
        self,
        num_features: int,
        num_streams: int,
        integrated_norm: NormLayer | None = nn.BatchNorm2d,
        *,
        activation: bool = True,
        integrated_only: bool = False,
    ) -> None:
        super().__init__()
        self.streams = nn.ModuleList(nn.BatchNorm2d(num_features) for _ in range(num_streams))
        self.integrated = None if integrated_norm is None else integrated_norm(num_features)
        self.activation = activation
        self.integrated_only = integrated_only
        if integrated_only:
            self.streams.requires_grad_(False)

    def forward(self, batch: StreamBatch, identity: StreamBatch | None = None) -> StreamBatch:
        """Shapes stay; ``identity`` has the shapes of ``batch``."""
        if self.integrated_only:
            self._move_statistics(batch)
            streams: tuple[Tensor, ...] = ()
        else:
            residuals = (None,) * len(batch.streams) if identity is None else identity.streams
            streams = tuple(map(self._norm_act, self.streams, batch.streams, residuals))
        integrated = batch.integrated
        if self.integrated is not None and integrated is not None:
            residual = None if identity is None else identity.integrated
            integrated = self._norm_act(self.integrated, integrated, residual)
        return replace(batch, streams=streams, integrated=integrated)

    def _norm_act(self, norm: nn.Module, x: Tensor, residual: Tensor | None) -> Tensor:
        y = _normalise(norm, x)
        if residual is not None:
            y.add_(residual)
        return F.relu_(y) if self.activation else y

    @torch.no_grad()
    def _move_statistics(self, batch: StreamBatch) -> None:
        if self.training:
            for norm, x in zip(self.streams, batch.streams, strict=True):
                _normalise(norm, x)


def _normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm, with running statistics where the batch gives it none."""
    too_few = x.shape[0] * x.shape[2] * x.shape[3] < 2
    if type(norm) is nn.BatchNorm2d and norm.training and too_few:
        mean, var = norm.running_mean, norm.running_var
        return F.batch_norm(x, mean, var, norm.weight, norm.bias, training=False, eps=norm.eps)
    y: Tensor = norm(x)
    return y
