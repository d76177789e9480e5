"""How much each stream gives to the integrated pathway, layer by layer: measured, and balanced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from manystream.batch import Inputs, StreamBatch
from manystream.layers import SumIntegration
from manystream.models.network import StreamNetwork

INTEGRATED = "integrated"
"""Name of the integrated input beside the streams'."""

_EPS = 1e-12
"""Added to mean squares, so that a contribution of zero has a finite logarithm."""


def contributions(
    network: StreamNetwork,
    inputs: Inputs | StreamBatch,
    present: Tensor | None = None,
    *,
    blanked_mask: Mapping[str, Tensor] | Mapping[int, Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    r"""Measure how much each stream contributes to the integrated pathway, for one batch.

    The contribution of stream m at a layer is the root mean square of
    :math:`\mathrm{mix}_m(\mathrm{raw}_m)` over its present samples, channels and pixels. The
    network runs in evaluation mode and is left as it was.

    Args:
        network: a network with an integrated pathway.
        inputs: full batches or a :class:`StreamBatch`, as the network takes them.
        present: True where sample b has stream m, shape (B, M), bool.
        blanked_mask: for some streams, True where the sample lacks it, shape (B,), bool.

    Returns:
        By layer, in order, the root mean square of each stream by name; NaN without present rows.

    Raises:
        ValueError: if the network has no integrated pathway, or the inputs do not fit.
    """
    measured: dict[str, dict[str, float]] = {}
    rules = _rules(network)
    layers = {rule: layer for layer, rule in rules.items()}

    def record(rule: SumIntegration, raw: Sequence[Tensor]) -> None:
        mixed = (rule.contribution(m, x).float() for m, x in enumerate(raw))
        rms = [x.square().mean().sqrt().item() for x in mixed]
        measured[layers[rule]] = dict(zip(network.stream_names, rms, strict=True))

    with _watching(rules.values(), record), _evaluating(network):
        network(inputs, present, blanked_mask=blanked_mask)
    return {layer: measured[layer] for layer in rules}


@torch.no_grad()
def mixing_weights(network: StreamNetwork) -> dict[str, dict[str, float]]:
    r"""Measure the learned mixing weights of every layer.

    Linear integration: the spectral norm of each 1×1 kernel, the most by which it can lengthen a
    pixel's channels. Scalar integration: :math:`\alpha_m`, and :math:`\gamma` times the spectral
    norm of W_z.

    Returns:
        By layer, in order, one number per stream by name, and ``"integrated"`` where the layer
        has an integrated input.

    Raises:
        ValueError: if the network has no integrated pathway.
    """
    sizes = {}
    for layer, rule in _rules(network).items():
        of_streams, of_integrated = rule.weight_sizes()
        sizes[layer] = dict(zip(network.stream_names, of_streams, strict=True))
        if of_integrated is not None:
            sizes[layer][INTEGRATED] = of_integrated
    return sizes


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
        self._rules = [m for m in network.modules() if isinstance(m, SumIntegration)]
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
        with _watching(self._rules, self._measure):
            yield

    def take(self) -> Tensor:
        """Return the penalty of what was watched, shape (), and forget it."""
        variances, self._variances = self._variances, []
        return torch.stack(variances).mean()

    def _measure(self, rule: SumIntegration, raw: Sequence[Tensor]) -> None:
        # Half precision would round the logarithms' small differences away.
        with torch.autocast(raw[0].device.type, enabled=False):
            squares = [rule.mean_square(m, x) for m, x in enumerate(raw) if len(x)]
            logs = (torch.stack(squares) + _EPS).log() / 2
            self._variances.append(logs.var(correction=0))


def _rules(network: nn.Module) -> dict[str, SumIntegration]:
    """Integration rules by the name of their layer, in order."""
    found = {
        name.removesuffix(".integration"): module
        for name, module in network.named_modules()
        if isinstance(module, SumIntegration)
    }
    if not found:
        raise ValueError(
            "this network has no integrated pathway; its streams meet in the head only"
        )
    return found


@contextmanager
def _watching(
    rules: Any, record: Callable[[SumIntegration, Sequence[Tensor]], None]
) -> Iterator[None]:
    """Show the raw outputs that come to some rules."""
    handles = [
        rule.register_forward_pre_hook(lambda module, arguments: record(module, arguments[0]))
        for rule in rules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
