"""A penalty on streams that contribute more or less than others to the integrated pathway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from manystream.layers import LinearIntegration, ScalarIntegration
from manystream.models.network import StreamNetwork

_EPS = 1e-12
"""Added to mean squares, so that a contribution of zero has a finite logarithm."""


def mean_square(rule: LinearIntegration | ScalarIntegration, stream: int, raw: Tensor) -> Tensor:
    r"""Mean square of one stream's contribution :math:`\mathrm{mix}_m(\mathrm{raw}_m)`, shape ().

    A linear mix is measured by the channels' second moments
    :math:`G = \mathrm{raw}^T \mathrm{raw} / n` as
    :math:`\mathrm{tr}(W G W^T) / C`, so the contribution itself, a map as large as ``raw``, is
    neither held nor kept for the backward pass.

    Args:
        rule: the layer's integration.
        stream: number of the stream.
        raw: its raw output, shape (B_m, C, H, W), with at least one row.
    """
    if isinstance(rule, ScalarIntegration):
        norm = torch.linalg.vector_norm(raw, dtype=_accumulated(raw))
        return torch.sum((rule.stream_scalars[stream] * norm).square()) / raw.numel()
    weight = rule.stream_weights[stream].flatten(1)
    moments = _second_moments(raw).to(weight.dtype)
    return torch.sum((weight @ moments) * weight) / len(weight)


class BalancePenalty:
    r"""Variance of the streams' log contributions, mean over the integrations of a network.

    .. math::
        P = \frac{1}{L} \sum_{l=1}^{L} \operatorname{Var}_m \log r_{lm}, \qquad
        r_{lm}^2 = \operatorname{mean}\bigl(\mathrm{mix}_{lm}(\mathrm{raw}_{lm})^2\bigr) + 10^{-12}

    where the mean runs over the rows of stream m, channels and pixels, and the variance is that of
    the population, over the streams that have a row in the batch. With fewer than two such streams
    it is zero. It does not change when all streams grow alike. Several processes each measure
    their own batch, and gradients are averaged as usual.

    Args:
        network: a network with an integrated pathway.

    Raises:
        ValueError: if it has none, or one stream only.
    """

    def __init__(self, network: StreamNetwork) -> None:
        self._rules = [
            m for m in network.modules() if isinstance(m, LinearIntegration | ScalarIntegration)
        ]
        if not self._rules or network.num_streams < 2:
            raise ValueError(
                "balance_penalty needs two or more streams that meet in an integrated pathway; "
                "this network has none: choose another family, or leave the penalty at 0"
            )
        self._variances: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take in the forward passes of the network that happen within."""
        self._variances = []
        handles = [rule.register_forward_pre_hook(self._measure) for rule in self._rules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def take(self) -> Tensor:
        """The penalty of what was watched, shape (); it is forgotten here."""
        variances, self._variances = self._variances, []
        return torch.stack(variances).mean()

    def _measure(self, rule: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(rule, LinearIntegration | ScalarIntegration)
        raw: Sequence[Tensor] = arguments[0]
        # Half precision would round the logarithms' small differences away.
        with torch.autocast(raw[0].device.type, enabled=False):
            self._variances.append(_variance(rule, raw))


def _variance(rule: LinearIntegration | ScalarIntegration, raw: Sequence[Tensor]) -> Tensor:
    squares = [mean_square(rule, m, x) for m, x in enumerate(raw) if len(x)]
    logs = (torch.stack(squares) + _EPS).log() / 2
    return logs.var(correction=0)


def _second_moments(raw: Tensor) -> Tensor:
    """Mean over rows and pixels of the products of channels, (B, C, H, W) to (C, C)."""
    matrix = raw.permute(0, 2, 3, 1).flatten(0, 2)
    start = matrix.new_zeros(matrix.shape[1], matrix.shape[1])
    # The mean is taken inside the product, where a half-precision sum cannot overflow.
    return torch.addmm(start, matrix.t(), matrix, beta=0, alpha=1 / len(matrix))


def _accumulated(raw: Tensor) -> torch.dtype:
    return torch.promote_types(raw.dtype, torch.float32)
