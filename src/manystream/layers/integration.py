"""Integration rules as modules: the parameters that mix the streams into the integrated pathway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from manystream.functional import linear_integrate
from manystream.streams import StreamBatch


class IntegrationRule(Protocol):
    """Builds the mixing of one layer, for example the class :class:`LinearIntegration`."""

    def __call__(
        self,
        num_streams: int,
        integrated_channels: int | None,
        out_channels: int,
        stride: int,
        bias: bool,
    ) -> nn.Module: ...


class LinearIntegration(nn.Module):
    """One 1×1 convolution per stream and one for the integrated input.

    Args:
        num_streams: number of streams M.
        integrated_channels: channels of the integrated input; None in the first layer.
        out_channels: channels of the streams' raw outputs and of the integrated output.
        stride: stride of the layer.
        bias: whether the integrated output has a bias.
    """

    def __init__(
        self,
        num_streams: int,
        integrated_channels: int | None,
        out_channels: int,
        stride: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.stream_weights = nn.ParameterList(
            torch.empty(out_channels, out_channels, 1, 1) for _ in range(num_streams)
        )
        self.integrated_weight = (
            None
            if integrated_channels is None
            else nn.Parameter(torch.empty(out_channels, integrated_channels, 1, 1))
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Streams enter with equal weight; the integrated input keeps its norm where it can."""
        for weight in self.stream_weights:
            nn.init.constant_(weight, 1 / len(self.stream_weights))
        if self.integrated_weight is not None:
            init_integrated_(self.integrated_weight)

    def forward(self, raw: Sequence[Tensor], batch: StreamBatch) -> Tensor:
        """Mix raw outputs, shape (B_m, C, H, W), into the next integrated map, (B, C, H, W)."""
        return linear_integrate(
            raw,
            list(self.stream_weights),
            batch.presence.rows,
            len(batch),
            batch.integrated,
            self.integrated_weight,
            self.bias,
            self.stride,
        )


@torch.no_grad()
def init_integrated_(weight: Tensor) -> None:
    """Orthogonal where square, else Kaiming uniform times 0.1 (the original's choice)."""
    if weight.shape[0] == weight.shape[1]:
        nn.init.orthogonal_(weight)
    else:
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        weight.mul_(0.1)
