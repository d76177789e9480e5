"""Integration rules as modules: the parameters that mix the streams into the integrated pathway."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manystream.functional.integrate import integrate_through, scaled_kernel
from manystream.functional.mixing import LinearMix, Mix, ScalarMix
from manystream.streams import StreamBatch

Initializer = Callable[[Tensor], object]
"""Fills a parameter in place."""

INITIAL_INTEGRATED_SCALAR = 0.2


class IntegrationRule(Protocol):
    """Builds the mixing of one layer, for example the class :class:`LinearIntegration`."""

    def __call__(
        self,
        num_streams: int,
        integrated_channels: int | None,
        out_channels: int,
        stride: int | tuple[int, int],
        bias: bool,
    ) -> nn.Module: ...


def kaiming_uniform_(weight: Tensor) -> Tensor:
    """Fill a kernel as ``nn.Conv2d`` does."""
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


@torch.no_grad()
def orthogonal_or_small_(weight: Tensor) -> Tensor:
    """Fill a 1×1 kernel with an orthogonal matrix where square, else Kaiming uniform times 0.1."""
    if weight.shape[0] == weight.shape[1]:
        return nn.init.orthogonal_(weight)
    return kaiming_uniform_(weight).mul_(0.1)


class _Integration(nn.Module):
    """What both rules share: the integrated input's 1×1 kernel W_z, the bias and the stride."""

    def __init__(
        self,
        integrated_channels: int | None,
        out_channels: int,
        stride: int | tuple[int, int],
        bias: bool,
        init_integrated: Initializer,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.init_integrated = init_integrated
        self.integrated_weight = (
            None
            if integrated_channels is None
            else nn.Parameter(torch.empty(out_channels, integrated_channels, 1, 1))
        )
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

    def reset_parameters(self) -> None:
        """Give the parameters their initial values."""
        if self.integrated_weight is not None:
            self.init_integrated(self.integrated_weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self,
        raw: Sequence[Tensor],
        batch: StreamBatch,
        rebuild: bool = False,
        *,
        norm_alone: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mix raw outputs, shape (B_m, C, H, W), into the next integrated map, (B, C, H, W).

        Returns:
            That map, and the raw outputs for the streams' norms, see
            :func:`manystream.functional.integrate.integrate_through`.

        Raises:
            ValueError: if the batch has an integrated pathway and this layer no kernel for it, or
                the other way round.
        """
        mix, parameters = self._rule()
        return integrate_through(
            mix,
            raw,
            parameters,
            batch.presence.rows,
            len(batch),
            self._integrated_input(batch.integrated),
            self.bias,
            self.stride,
            rebuild=rebuild,
            norm_alone=norm_alone,
        )

    def _integrated_input(self, z: Tensor | None) -> tuple[Tensor, ...]:
        """The integrated input and its kernel; the first layer has neither."""
        kernel = self._kernel()
        if z is None and kernel is None:
            return ()
        if z is None:
            raise ValueError(
                "the batch has no integrated pathway, which this layer is built for; give a first "
                "layer no integrated_channels"
            )
        if kernel is None:
            raise ValueError(
                f"the batch has an integrated pathway of {z.shape[1]} channels, which this layer "
                f"would drop; build it with integrated_channels={z.shape[1]}"
            )
        return z, kernel

    @abstractmethod
    def _rule(self) -> tuple[Mix, list[Tensor]]:
        """How streams are mixed, and each one's parameter."""

    @abstractmethod
    def _kernel(self) -> Tensor | None:
        """The integrated input's kernel, scaled where the rule scales it."""


class LinearIntegration(_Integration):
    """One 1×1 convolution per stream and one for the integrated input.

    Args:
        num_streams: number of streams M.
        integrated_channels: channels of the integrated input; None in the first layer.
        out_channels: channels of the streams' raw outputs and of the integrated output.
        stride: stride of the layer.
        bias: whether the integrated output has a bias.
        init_stream: fills the streams' kernels; 1/M everywhere by default.
        init_integrated: fills the integrated input's kernel.
    """

    def __init__(
        self,
        num_streams: int,
        integrated_channels: int | None,
        out_channels: int,
        stride: int | tuple[int, int] = 1,
        bias: bool = False,
        *,
        init_stream: Initializer | None = None,
        init_integrated: Initializer = orthogonal_or_small_,
    ) -> None:
        super().__init__(integrated_channels, out_channels, stride, bias, init_integrated)
        self.init_stream = init_stream or partial(nn.init.constant_, val=1 / num_streams)
        self.stream_weights = nn.ParameterList(
            torch.empty(out_channels, out_channels, 1, 1) for _ in range(num_streams)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give the parameters their initial values."""
        super().reset_parameters()
        for weight in self.stream_weights:
            self.init_stream(weight)

    def mix(self, stream: int, raw: Tensor) -> Tensor:
        """One stream's contribution by itself, shape (B_m, C, H, W)."""
        return F.conv2d(raw, self.stream_weights[stream])

    def _rule(self) -> tuple[Mix, list[Tensor]]:
        return LinearMix(), list(self.stream_weights)

    def _kernel(self) -> Tensor | None:
        return self.integrated_weight


class ScalarIntegration(_Integration):
    """One number per stream, and a scaled 1×1 convolution for the integrated input.

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
        stride: int | tuple[int, int] = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(integrated_channels, out_channels, stride, bias, kaiming_uniform_)
        self.stream_scalars = nn.ParameterList(torch.empty(1) for _ in range(num_streams))
        self.integrated_scalar = (
            None if integrated_channels is None else nn.Parameter(torch.empty(()))
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give the parameters their initial values."""
        super().reset_parameters()
        for scalar in self.stream_scalars:
            nn.init.ones_(scalar)
        if self.integrated_scalar is not None:
            nn.init.constant_(self.integrated_scalar, INITIAL_INTEGRATED_SCALAR)

    def mix(self, stream: int, raw: Tensor) -> Tensor:
        """One stream's contribution by itself, shape (B_m, C, H, W)."""
        return torch.mul(raw, self.stream_scalars[stream])

    def _rule(self) -> tuple[Mix, list[Tensor]]:
        return ScalarMix(), list(self.stream_scalars)

    def _kernel(self) -> Tensor | None:
        if self.integrated_weight is None:
            return None
        return scaled_kernel(self.integrated_weight, self.integrated_scalar)
