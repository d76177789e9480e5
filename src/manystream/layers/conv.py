"""Convolution of every stream, and its integration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from manystream.functional import lanes, remat
from manystream.functional.conv import conv2d
from manystream.layers.integration import IntegrationRule, LinearIntegration
from manystream.streams import StreamBatch


class RawConv2d(nn.Conv2d):
    """A stream's convolution; it gives the raw output, to which no bias is added yet.

    Attributes:
        rebuild: whether the backward pass rebuilds the output instead of keeping it.
    """

    rebuild = False

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B_m, C_m, H, W) to (B_m, C, H', W')."""
        stride, padding = self.stride[0], int(self.padding[0])
        return conv2d(x, self.weight, stride, padding, rebuild=self.rebuild)


class StreamConv2d(nn.Module):
    r"""Convolve each stream's present rows, and mix the raw outputs into the integrated pathway.

    .. math::
        \mathrm{raw}_m = K_m * x_m, \quad y_m = \mathrm{raw}_m + b_m, \quad
        z' = \mathrm{integrate}(\mathrm{raw}, z)

    Args:
        in_channels: channels of each stream.
        out_channels: channels of every stream's output and of the integrated output.
        kernel_size: side of the streams' kernels.
        stride: stride of the streams' kernels and of the integrated input.
        padding: zero padding of the streams.
        integrated_channels: channels of the integrated input; None in the first layer.
        integration: the rule that mixes raw outputs; without one, streams stay by themselves.
        bias: whether the streams and the integrated output have a bias.

    Attributes:
        records: whether the backward pass may rebuild what the layer would keep for it.
        rebuild_integrated: whether the backward pass rebuilds the integrated output.

    Example:
        >>> import torch
        >>> from manystream.presence import Presence
        >>> conv = StreamConv2d([3, 1], 8, kernel_size=3, padding=1)
        >>> presence = Presence.from_mask(torch.tensor([[True, True], [True, False]]))
        >>> batch = StreamBatch((torch.zeros(2, 3, 5, 5), torch.zeros(1, 1, 5, 5)), presence)
        >>> out = conv(batch)
        >>> [tuple(y.shape) for y in out.streams], tuple(out.integrated.shape)
        ([(2, 8, 5, 5), (1, 8, 5, 5)], (2, 8, 5, 5))
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        integrated_channels: int | None = None,
        integration: IntegrationRule | None = LinearIntegration,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.streams = nn.ModuleList(
            RawConv2d(c, out_channels, kernel_size, stride, padding, bias=bias) for c in in_channels
        )
        self.records = self.rebuild_integrated = False
        self.integration = (
            None
            if integration is None
            else integration(len(in_channels), integrated_channels, out_channels, stride, bias)
        )

    @remat.recorded
    def forward(self, batch: StreamBatch) -> StreamBatch:
        """Shapes (B_m, C_m, H, W) and (B, C_z, H, W) to (B_m, C, H', W') and (B, C, H', W')."""
        raw = lanes.each(lambda conv, x: conv(x), self.streams, batch.streams)
        if self.integration is None:
            integrated, handed_on = None, raw
        else:
            lanes.meet(raw)
            integrated, handed_on = self.integration(raw, batch, rebuild=self.rebuild_integrated)
        streams = tuple(lanes.each(_biased, self.streams, raw, handed_on))
        return replace(batch, streams=streams, integrated=integrated)


def _biased(conv: RawConv2d, raw: Tensor, handed_on: Tensor) -> Tensor:
    """Add the bias; a sum shares its gradient, so it is made of what is not handed on."""
    return handed_on if conv.bias is None else raw + conv.bias.to(raw.dtype).view(-1, 1, 1)
