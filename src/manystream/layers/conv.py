"""Convolution of every stream, and its integration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from manystream.batch import StreamBatch
from manystream.functional import lanes, remat
from manystream.functional.conv import conv2d
from manystream.layers.integration import IntegrationRule, LinearIntegration


class RawConv2d(nn.Conv2d):
    """A stream's convolution; it gives the raw output, to which no bias is added yet.

    Attributes:
        rebuild: whether the backward pass rebuilds the output instead of keeping it; one with
            dilation, groups, another padding than zeros or different steps keeps it.
    """

    rebuild = False

    def set_rebuild(self, rebuild: remat.Rebuild) -> None:
        """Rebuild the raw output if it says so."""
        self.rebuild = rebuild.raw

    def forward(self, x: Tensor) -> Tensor:
        """Map (B_m, C_m, H, W) to (B_m, C, H', W')."""
        _check_dtype(x, self.weight)
        stride, padding = self.stride, self.padding
        if (
            isinstance(padding, str)
            or padding[0] != padding[1]
            or stride[0] != stride[1]
            or self.dilation != (1, 1)
            or self.groups != 1
            or self.padding_mode != "zeros"
        ):
            y: Tensor = self._conv_forward(x, self.weight, None)
            return y
        return conv2d(x, self.weight, stride[0], padding[0], rebuild=self.rebuild)


class StreamConv2d(nn.Module):
    r"""Convolve each stream's present rows, and mix the raw outputs into the integrated pathway.

    .. math::
        \mathrm{raw}_m = K_m * x_m, \quad y_m = \mathrm{raw}_m + b_m, \quad
        z' = \mathrm{integrate}(\mathrm{raw}, z)

    Args:
        in_channels: channels of each stream.
        out_channels: channels of every stream's output and of the integrated output.
        kernel_size: side of the streams' kernels, or height and width.
        stride: stride of the streams' kernels and of the integrated input, or down and across.
        padding: zero padding of the streams, or down and across.
        integrated_channels: channels of the integrated input; None in the first layer.
        integration: the rule that mixes raw outputs; without one, streams stay by themselves.
        bias: whether the streams and the integrated output have a bias.
        conv_layer: builds a stream's convolution from its channels, the output's, kernel size,
            stride, padding and ``bias``; it adds no bias by itself, :class:`RawConv2d` for one.

    Attributes:
        records: whether the backward pass may rebuild what the layer would keep for it.
        rebuild_integrated: whether the backward pass rebuilds the integrated output.

    Example:
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
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        *,
        integrated_channels: int | None = None,
        integration: IntegrationRule | None = LinearIntegration,
        bias: bool = False,
        conv_layer: Callable[..., nn.Module] = RawConv2d,
    ) -> None:
        super().__init__()
        self.streams = nn.ModuleList(
            conv_layer(c, out_channels, kernel_size, stride, padding, bias=bias)
            for c in in_channels
        )
        self.records = self.rebuild_integrated = False
        self.integration = (
            None
            if integration is None
            else integration(len(in_channels), integrated_channels, out_channels, stride, bias)
        )

    def set_rebuild(self, rebuild: remat.Rebuild) -> None:
        """Rebuild the integrated output if it says so."""
        self.records, self.rebuild_integrated = any(rebuild), rebuild.integrated

    @remat.recorded
    def forward(self, batch: StreamBatch, *, _norm_alone: bool = False) -> StreamBatch:
        """Map (B_m, C_m, H, W) and (V, C_z, H, W) to (B_m, C, H', W') and (V, C, H', W').

        ``_norm_alone`` is for :func:`conv_norm_act`, which knows who reads the streams' outputs.
        """
        raw = lanes.each(lambda conv, x: conv(x), self.streams, batch.streams)
        integrated: Tensor | None = None
        handed_on: Sequence[Tensor] = raw
        if self.integration is not None:
            lanes.meet(raw)
            integrated, handed_on = self.integration(
                raw,
                batch.views,
                batch.integrated,
                rebuild=self.rebuild_integrated,
                owned=_norm_alone,
            )
        elif batch.integrated is not None:
            raise ValueError(
                "the batch has an integrated pathway, which a layer without integration would "
                "drop; give it an integration rule"
            )
        return batch.with_maps(tuple(lanes.each(_biased, self.streams, raw, handed_on)), integrated)


def _biased(conv: nn.Module, raw: Tensor, handed_on: Tensor) -> Tensor:
    """Add the bias; a sum shares its gradient, so it is made of what is not handed on."""
    bias: Tensor | None = getattr(conv, "bias", None)
    if bias is None:
        return handed_on
    if not isinstance(conv, RawConv2d):
        raise ValueError(
            f"a stream's convolution is {type(conv).__name__} with a bias, which it has added "
            "before its output is integrated; use RawConv2d, or bias=False"
        )
    return raw + bias.to(raw.dtype).view(-1, 1, 1)


def _check_dtype(x: Tensor, weight: Tensor) -> None:
    """Refuse what autocast, where it is on, does not make equal."""
    if x.dtype == weight.dtype:
        return
    half = torch.is_autocast_enabled(x.device.type)
    if half and torch.float64 not in (x.dtype, weight.dtype):
        return
    raise ValueError(
        f"the images are {x.dtype} and the network's weights {weight.dtype}; expected the same: "
        f"convert the images, x.to({weight.dtype}), or the network, network.to({x.dtype})"
    )
