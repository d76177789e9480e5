"""Integration rules as modules: the parameters that mix the streams into the integrated pathway."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manystream.functional import remat
from manystream.functional.conv import compute_dtype
from manystream.functional.integrate import LINEAR, SCALAR, Mix, integrate, scaled_kernel
from manystream.functional.kernels import dispatch
from manystream.functional.maps import as_matrix
from manystream.presence import Views

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
        stride: int | Sequence[int],
        bias: bool,
    ) -> SumIntegration: ...


class Fused(NamedTuple):
    """A rule as one operation: its mix, a parameter per stream, and the kernel of ``previous``."""

    mix: Mix
    parameters: Sequence[Tensor]
    kernel: Tensor | None


class SumIntegration(nn.Module):
    r"""An integration rule that adds the streams' contributions.

    .. math:: z' = \mathrm{previous}(z) + \sum_m \mathrm{place}_m(\mathrm{contribution}_m) + b_z

    A subclass writes :meth:`contribution` and :meth:`previous` in plain PyTorch, and that is all a
    rule needs, in every memory mode. :meth:`fused` may give the same as one operation, which takes
    less memory.

    Args:
        integrated_channels: channels of the integrated input; None in the first layer.
        out_channels: channels of the integrated output.
        stride: stride of the layer.
        bias: whether the integrated output has a bias.

    Example:
        >>> from manystream.presence import Presence
        >>> class Mean(SumIntegration):
        ...     def contribution(self, stream, raw):
        ...         return raw / 2
        ...     def previous(self, z):
        ...         return z
        >>> raw = [torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 4.0)]
        >>> views = Views.full_only(Presence.all_present(1, 2))
        >>> Mean(None, 1)(raw, views)[0].flatten()
        tensor([3., 3., 3., 3.])
    """

    def __init__(
        self,
        integrated_channels: int | None,
        out_channels: int,
        stride: int | Sequence[int] = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.integrated_channels = integrated_channels
        self.stride = stride
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @abstractmethod
    def contribution(self, stream: int, raw: Tensor) -> Tensor:
        """Return what a stream adds at its rows, raw output (B_m, C, ...) to (B_m, C', ...)."""

    @abstractmethod
    def previous(self, z: Tensor) -> Tensor:
        """Return what the integrated input adds, (V, C_z, ...) to (V, C', ...) by the stride."""

    def fused(self) -> Fused | None:
        """Return the rule as one operation, or None."""
        return None

    def mean_square(self, stream: int, raw: Tensor) -> Tensor:
        """Return the mean square of a stream's contribution, shape (); ``raw`` has rows."""
        contribution = self.contribution(stream, raw)
        return contribution.to(_at_least_float32(raw)).square().mean()

    def weight_sizes(self) -> tuple[list[float], float | None]:
        """By how much each stream's weights, and the integrated input's, can lengthen a position.

        Raises:
            NotImplementedError: unless the rule says so.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how large its weights are")

    def forward(
        self,
        raw: Sequence[Tensor],
        views: Views,
        z: Tensor | None = None,
        *,
        rebuild: bool = False,
        owned: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mix raw outputs, shape (B_m, C, ...), into the next integrated map, (V, C', ...).

        Args:
            raw: the streams' convolution outputs.
            views: where the streams' rows enter.
            z: the integrated input, shape (V, C_z, ...); None in the first layer.
            rebuild: whether the map may be rebuilt in the backward pass instead of kept.
            owned: see :func:`manystream.functional.integrate.integrate`.

        Returns:
            The map, and the raw outputs for the streams' norms.

        Raises:
            ValueError: if there is an integrated input and the layer was built without, or the
                other way round.
        """
        self._check(z)
        fused = None if dispatch.is_traced() or not _says_fused(type(self)) else self.fused()
        if fused is None:
            return self._plainly(raw, views, z, rebuild), tuple(raw)
        return integrate(
            fused.mix,
            raw,
            fused.parameters,
            views.runs,
            views.num_views,
            z=z,
            weight=fused.kernel,
            bias=self.bias,
            stride=self.stride,
            rebuild=rebuild,
            owned=owned,
        )

    def _check(self, z: Tensor | None) -> None:
        if z is None and self.integrated_channels is not None:
            raise ValueError(
                "the batch has no integrated pathway, which this layer is built for; give a first "
                "layer no integrated_channels"
            )
        if z is not None and self.integrated_channels is None:
            raise ValueError(
                f"the batch has an integrated pathway of {z.shape[1]} channels, which this layer "
                f"would drop; build it with integrated_channels={z.shape[1]}"
            )

    def _plainly(
        self, raw: Sequence[Tensor], views: Views, z: Tensor | None, rebuild: bool
    ) -> Tensor:
        """Compute the equation in ordinary operations; every contribution is a map of its own."""
        device, num_streams = raw[0].device.type, len(raw)
        autocast = torch.is_autocast_enabled(device), compute_dtype(raw[0])

        def compute(*sources: Tensor) -> Tensor:
            enabled, dtype = autocast
            with torch.autocast(device, dtype if enabled else None, enabled, cache_enabled=False):
                return self._sum(sources[:num_streams], views, *sources[num_streams:num_inputs])

        sources = [*raw] if z is None else [*raw, z]
        num_inputs = len(sources)
        out = compute(*sources)
        if rebuild and out.requires_grad:
            remat.register(out, compute, *sources, reads=tuple(self.parameters()))
        return out

    def _sum(self, raw: Sequence[Tensor], views: Views, z: Tensor | None = None) -> Tensor:
        terms = [] if z is None else [self.previous(z)]
        for m, x in enumerate(raw):
            contribution = self.contribution(m, x)
            terms += [_placed(contribution, *run, views.num_views) for run in views.entering(m)]
        if self.bias is not None:
            terms.append(self.bias.to(terms[0].dtype).view(-1, *[1] * (raw[0].dim() - 2)))
        return reduce(torch.add, terms)


def _says_fused(rule: type) -> bool:
    """Tell whether a rule's fused form is of its plain one, which no subclass changed."""
    for one in rule.__mro__:
        if "fused" in vars(one):
            return True
        if "contribution" in vars(one) or "previous" in vars(one):
            return False
    return False


def _placed(contribution: Tensor, rows: slice, views: slice, num_views: int) -> Tensor:
    """Place some rows among zeros, shape (V, C', ...)."""
    part = contribution[rows]
    if len(part) == num_views:
        return part
    before_and_after = views.start, num_views - views.stop
    return F.pad(part, [*[0] * (2 * part.dim() - 2), *before_and_after])


class LinearIntegration(SumIntegration):
    r"""One 1×1 convolution per stream and one for the integrated input.

    .. math:: z' = W_z * z + \sum_m \mathrm{place}_m(W_m * \mathrm{raw}_m) + b_z

    Args:
        num_streams: number of streams M.
        integrated_channels: channels of the integrated input; None in the first layer.
        out_channels: channels of the streams' raw outputs and of the integrated output.
        stride: stride of the layer.
        bias: whether the integrated output has a bias.
        init_stream: fills the streams' kernels; 1/M everywhere by default.
        init_integrated: fills the integrated input's kernel; by default orthogonal where square.
    """

    def __init__(
        self,
        num_streams: int,
        integrated_channels: int | None,
        out_channels: int,
        stride: int | Sequence[int] = 1,
        bias: bool = False,
        *,
        init_stream: Initializer | None = None,
        init_integrated: Initializer | None = None,
    ) -> None:
        super().__init__(integrated_channels, out_channels, stride, bias)
        self.init_stream = init_stream or partial(nn.init.constant_, val=1 / num_streams)
        self.init_integrated = init_integrated or orthogonal_or_small_
        self.integrated_weight = _pointwise_kernel(out_channels, integrated_channels)
        self.stream_weights = nn.ParameterList(
            _pointwise_kernel(out_channels, out_channels) for _ in range(num_streams)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give the parameters their initial values."""
        if self.integrated_weight is not None:
            self.init_integrated(self.integrated_weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        for weight in self.stream_weights:
            self.init_stream(weight)

    def contribution(self, stream: int, raw: Tensor) -> Tensor:
        """Return ``W_m * raw``."""
        return F.conv2d(raw, self.stream_weights[stream])

    def previous(self, z: Tensor) -> Tensor:
        """Return ``W_z * z``."""
        assert self.integrated_weight is not None
        return F.conv2d(z, self.integrated_weight, stride=self.stride)

    def fused(self) -> Fused:
        return Fused(LINEAR, list(self.stream_weights), self.integrated_weight)

    def mean_square(self, stream: int, raw: Tensor) -> Tensor:
        r"""Return the mean square of a stream's contribution, shape ().

        By the channels' second moments :math:`G = \mathrm{raw}^T \mathrm{raw} / n` it is
        :math:`\mathrm{tr}(W G W^T) / C`, so the contribution itself, a map as large as ``raw``, is
        neither held nor kept for the backward pass.
        """
        weight = self.stream_weights[stream].flatten(1)
        matrix = as_matrix(raw)
        start = matrix.new_zeros(matrix.shape[1], matrix.shape[1])
        # The mean is taken inside the product, where a half-precision sum cannot overflow.
        moments = torch.addmm(start, matrix.t(), matrix, beta=0, alpha=1 / len(matrix))
        return torch.sum((weight @ moments.to(weight.dtype)) * weight) / len(weight)

    def weight_sizes(self) -> tuple[list[float], float | None]:
        """Return the spectral norms of the kernels."""
        return [_spectral_norm(w) for w in self.stream_weights], _size_of(self.integrated_weight)


class ScalarIntegration(SumIntegration):
    r"""One number per stream, and a scaled 1×1 convolution for the integrated input.

    .. math:: z' = \gamma W_z * z + \sum_m \mathrm{place}_m(\alpha_m \mathrm{raw}_m) + b_z

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
        stride: int | Sequence[int] = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(integrated_channels, out_channels, stride, bias)
        self.integrated_weight = _pointwise_kernel(out_channels, integrated_channels)
        self.stream_scalars = nn.ParameterList(torch.empty(1) for _ in range(num_streams))
        self.integrated_scalar = (
            None if integrated_channels is None else nn.Parameter(torch.empty(()))
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give the parameters their initial values."""
        if self.integrated_weight is not None and self.integrated_scalar is not None:
            kaiming_uniform_(self.integrated_weight)
            nn.init.constant_(self.integrated_scalar, INITIAL_INTEGRATED_SCALAR)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        for scalar in self.stream_scalars:
            nn.init.ones_(scalar)

    def contribution(self, stream: int, raw: Tensor) -> Tensor:
        """Return ``α_m raw``."""
        return torch.mul(raw, self.stream_scalars[stream].to(raw.dtype))

    def previous(self, z: Tensor) -> Tensor:
        """Return ``γ W_z * z``."""
        kernel = self._kernel()
        assert kernel is not None
        return F.conv2d(z, kernel, stride=self.stride)

    def fused(self) -> Fused:
        return Fused(SCALAR, list(self.stream_scalars), self._kernel())

    def mean_square(self, stream: int, raw: Tensor) -> Tensor:
        """Return the mean square of a stream's contribution, shape (), without holding that."""
        norm = torch.linalg.vector_norm(raw, dtype=_at_least_float32(raw))
        return torch.sum((self.stream_scalars[stream] * norm).square()) / raw.numel()

    def weight_sizes(self) -> tuple[list[float], float | None]:
        """Return α_m, and γ times the spectral norm of W_z."""
        of_streams = [scalar.item() for scalar in self.stream_scalars]
        if self.integrated_weight is None or self.integrated_scalar is None:
            return of_streams, None
        return of_streams, self.integrated_scalar.item() * _spectral_norm(self.integrated_weight)

    def _kernel(self) -> Tensor | None:
        if self.integrated_weight is None:
            return None
        return scaled_kernel(self.integrated_weight, self.integrated_scalar)


def kaiming_uniform_(weight: Tensor) -> Tensor:
    """Fill a kernel as ``nn.Conv2d`` does."""
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


@torch.no_grad()
def orthogonal_or_small_(weight: Tensor) -> Tensor:
    """Fill a 1×1 kernel with an orthogonal matrix where square, else Kaiming uniform times 0.1."""
    if weight.shape[0] == weight.shape[1]:
        return nn.init.orthogonal_(weight)
    return kaiming_uniform_(weight).mul_(0.1)


def _pointwise_kernel(out_channels: int, in_channels: int | None) -> nn.Parameter | None:
    if in_channels is None:
        return None
    return nn.Parameter(torch.empty(out_channels, in_channels, 1, 1))


def _size_of(kernel: Tensor | None) -> float | None:
    return None if kernel is None else _spectral_norm(kernel)


def _spectral_norm(kernel: Tensor) -> float:
    return float(torch.linalg.matrix_norm(kernel.detach().flatten(1).float(), ord=2))


def _at_least_float32(raw: Tensor) -> torch.dtype:
    return torch.promote_types(raw.dtype, torch.float32)
