"""Residual blocks; every pathway, the integrated one included, has its own residual.

Source: He et al., "Deep Residual Learning for Image Recognition", 2016; the bottleneck strides in
its 3×3 convolution (v1.5).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from manystream.layers.conv import StreamConv2d
from manystream.layers.conv_norm import ConvNorm, conv_norm_act
from manystream.layers.integration import IntegrationRule, LinearIntegration
from manystream.layers.norm_act import NormLayer, StreamNormAct2d
from manystream.streams import StreamBatch


class BasicBlock(nn.Module):
    """Two 3×3 convolutions.

    Args:
        num_streams: number of streams M.
        in_channels: channels of every pathway at the input.
        width: channels of the stage.
        stride: stride of the first convolution and of the shortcut.
        integration: the rule that mixes raw outputs; without one, streams stay by themselves.
        integrated_norm: norm of the integrated pathway, if there is one.
        last: whether this is the network's last block, after which only the integrated pathway
            goes on.
    """

    expansion = 1

    def __init__(
        self,
        num_streams: int,
        in_channels: int,
        width: int,
        stride: int = 1,
        *,
        integration: IntegrationRule | None = LinearIntegration,
        integrated_norm: NormLayer | None = nn.BatchNorm2d,
        last: bool = False,
    ) -> None:
        super().__init__()
        conv = partial(_conv, num_streams, integration)
        norm = partial(StreamNormAct2d, num_streams=num_streams, integrated_norm=integrated_norm)
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = norm(width, integrated_only=last)
        self.downsample = _shortcut(conv, norm, in_channels, width, stride, last)

    @property
    def output_norm(self) -> StreamNormAct2d:
        """The norm whose output is the block's."""
        return self.bn2

    def forward(self, batch: StreamBatch) -> StreamBatch:
        """Shapes (·, C_in, H, W) to (·, width, H', W') on every pathway."""
        out = conv_norm_act(self.conv1, self.bn1, batch)
        identity = batch if self.downsample is None else self.downsample(batch)
        return conv_norm_act(self.conv2, self.bn2, out, identity)


class Bottleneck(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution, the last with four times the width.

    Args: as :class:`BasicBlock`.
    """

    expansion = 4

    def __init__(
        self,
        num_streams: int,
        in_channels: int,
        width: int,
        stride: int = 1,
        *,
        integration: IntegrationRule | None = LinearIntegration,
        integrated_norm: NormLayer | None = nn.BatchNorm2d,
        last: bool = False,
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        conv = partial(_conv, num_streams, integration)
        norm = partial(StreamNormAct2d, num_streams=num_streams, integrated_norm=integrated_norm)
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = norm(width)
        self.conv3 = conv(width, out_channels, 1)
        self.bn3 = norm(out_channels, integrated_only=last)
        self.downsample = _shortcut(conv, norm, in_channels, out_channels, stride, last)

    @property
    def output_norm(self) -> StreamNormAct2d:
        """The norm whose output is the block's."""
        return self.bn3

    def forward(self, batch: StreamBatch) -> StreamBatch:
        """Shapes (·, C_in, H, W) to (·, 4·width, H', W') on every pathway."""
        out = conv_norm_act(self.conv1, self.bn1, batch)
        out = conv_norm_act(self.conv2, self.bn2, out)
        identity = batch if self.downsample is None else self.downsample(batch)
        return conv_norm_act(self.conv3, self.bn3, out, identity)


def _conv(
    num_streams: int,
    integration: IntegrationRule | None,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
) -> StreamConv2d:
    return StreamConv2d(
        [in_channels] * num_streams,
        out_channels,
        kernel_size,
        stride,
        kernel_size // 2,
        integrated_channels=in_channels,
        integration=integration,
    )


def _shortcut(
    conv: Callable[..., StreamConv2d],
    norm: Callable[..., StreamNormAct2d],
    in_channels: int,
    out_channels: int,
    stride: int,
    last: bool,
) -> ConvNorm | None:
    """A projection where the block changes size, with an integration of its own."""
    if stride == 1 and in_channels == out_channels:
        return None
    return ConvNorm(
        conv(in_channels, out_channels, 1, stride),
        norm(out_channels, activation=False, integrated_only=last),
    )
