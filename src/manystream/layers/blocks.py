"""Residual blocks; every pathway, the integrated one included, has its own residual.

Source: He et al., "Deep Residual Learning for Image Recognition", 2016; the bottleneck strides in
its 3×3 convolution (v1.5).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from manystream.batch import StreamBatch
from manystream.layers.conv import StreamConv2d
from manystream.layers.integration import IntegrationRule, LinearIntegration, SumIntegration
from manystream.layers.norm_act import ActLayer, NormLayer, StreamNormAct2d, SyncBatchNorm2d


class BasicBlock(nn.Module):
    """Two 3×3 convolutions.

    Args:
        num_streams: number of streams M.
        in_channels: channels of every pathway at the input.
        width: channels of the stage.
        stride: stride of the first convolution and of the shortcut.
        integration: the rule that mixes raw outputs; without one, streams stay by themselves.
        integrated_norm: norm of the integrated pathway, if there is one.
        norm_layer: norm of a stream.
        act_layer: the activation.
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
        norm_layer: NormLayer = nn.BatchNorm2d,
        act_layer: ActLayer = nn.ReLU,
        last: bool = False,
    ) -> None:
        super().__init__()
        conv = partial(_conv, num_streams, integration)
        norm = _norm(num_streams, integrated_norm, norm_layer, act_layer)
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = norm(width, integrated_only=last)
        self.downsample = _shortcut(conv, norm, in_channels, width, stride, last)

    def keep_output(self) -> None:
        """Keep what the block gives in every memory mode."""
        self.bn2.rebuild = False

    def forward(self, batch: StreamBatch) -> StreamBatch:
        """Map (·, C_in, H, W) to (·, width, H', W') on every pathway."""
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
        norm_layer: NormLayer = nn.BatchNorm2d,
        act_layer: ActLayer = nn.ReLU,
        last: bool = False,
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        conv = partial(_conv, num_streams, integration)
        norm = _norm(num_streams, integrated_norm, norm_layer, act_layer)
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = norm(width)
        self.conv3 = conv(width, out_channels, 1)
        self.bn3 = norm(out_channels, integrated_only=last)
        self.downsample = _shortcut(conv, norm, in_channels, out_channels, stride, last)

    def keep_output(self) -> None:
        """Keep what the block gives in every memory mode."""
        self.bn3.rebuild = False

    def forward(self, batch: StreamBatch) -> StreamBatch:
        """Map (·, C_in, H, W) to (·, 4·width, H', W') on every pathway."""
        out = conv_norm_act(self.conv1, self.bn1, batch)
        out = conv_norm_act(self.conv2, self.bn2, out)
        identity = batch if self.downsample is None else self.downsample(batch)
        return conv_norm_act(self.conv3, self.bn3, out, identity)


def conv_norm_act(
    conv: nn.Module,
    norm: nn.Module,
    batch: StreamBatch,
    identity: StreamBatch | None = None,
) -> StreamBatch:
    """Return ``norm(conv(batch), identity)``, in one map less per stream where that is safe.

    The gradient that a norm gives its input is a new tensor, to which the integration may add its
    own in place if nobody else holds it. That is known here alone, and only of our own modules,
    whose hooks would see the raw outputs or their gradients.

    Args:
        conv: a :class:`StreamConv2d`, or what a user put in its place.
        norm: a :class:`StreamNormAct2d`, or what a user put in its place.
        batch: as the convolution takes it.
        identity: the residual, as the norm takes it.
    """
    if _norm_alone(conv, norm):
        out: StreamBatch = norm(conv(batch, _norm_alone=True), identity)
        return out
    out = conv(batch)
    out = norm(out) if identity is None else norm(out, identity)
    return out  # noqa: RET504 -- typed


class ConvNorm(nn.Sequential):
    """A convolution and its norm as one module, with the names that a Sequential gives them."""

    def __init__(self, conv: StreamConv2d, norm: StreamNormAct2d) -> None:
        super().__init__(conv, norm)

    def forward(self, batch: StreamBatch) -> StreamBatch:
        """Map shapes as the two modules'."""
        conv, norm = self
        return conv_norm_act(conv, norm, batch)


def _norm_alone(conv: nn.Module, norm: nn.Module) -> bool:
    """Tell whether the norm alone sees the raw outputs, and gives each a gradient of its own."""
    return (
        type(conv) is StreamConv2d
        and type(norm) is StreamNormAct2d
        and isinstance(conv.integration, SumIntegration)
        and not any(map(_shows_output, (conv, conv.integration, norm)))
        and not norm._forward_pre_hooks
        and all(map(_gives_own_gradient, norm.streams))
        and not _has_any_global_hook()
    )


def _gives_own_gradient(norm: nn.Module) -> bool:
    # An identity, for one, passes on the gradient that it gets.
    return type(norm) is nn.BatchNorm2d or (
        type(norm) is SyncBatchNorm2d and not norm._forward_pre_hooks and not _shows_output(norm)
    )


def _shows_output(module: nn.Module) -> bool:
    """Tell whether hooks see what a module gives (and takes), or gradients of that."""
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)


def _norm(
    num_streams: int,
    integrated_norm: NormLayer | None,
    norm_layer: NormLayer,
    act_layer: ActLayer,
) -> Callable[..., StreamNormAct2d]:
    return partial(
        StreamNormAct2d,
        num_streams=num_streams,
        integrated_norm=integrated_norm,
        norm_layer=norm_layer,
        act_layer=act_layer,
    )


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
    """Build a projection where the block changes size, with an integration of its own."""
    if stride == 1 and in_channels == out_channels:
        return None
    return ConvNorm(
        conv(in_channels, out_channels, 1, stride),
        norm(out_channels, act_layer=None, integrated_only=last),
    )
