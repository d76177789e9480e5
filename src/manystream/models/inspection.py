"""Look inside: how much each stream gives to the integrated pathway, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from manystream.layers import LinearIntegration, ScalarIntegration
from manystream.models.network import StreamNetwork
from manystream.streams import Inputs, StreamBatch

INTEGRATED = "integrated"
"""Name of the integrated input beside the streams'."""


def contributions(
    network: StreamNetwork,
    inputs: Inputs | StreamBatch,
    present: Tensor | None = None,
    *,
    blanked_mask: Mapping[str, Tensor] | Mapping[int, Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    r"""How much each stream contributes to the integrated pathway at every layer, for one batch.

    The contribution of stream m is the root mean square of :math:`\mathrm{mix}_m(\mathrm{raw}_m)`
    over its present samples, channels and pixels. The network runs in evaluation mode and is left
    as it was.

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
    names = network.stream_names
    measured: dict[str, dict[str, float]] = {}

    def record(layer: str, rule: LinearIntegration | ScalarIntegration, raw: list[Tensor]) -> None:
        mixed = (rule.mix(m, x).float() for m, x in enumerate(raw))
        rms = [x.square().mean().sqrt().item() for x in mixed]
        measured[layer] = dict(zip(names, rms, strict=True))

    with _watched(network, record), _evaluating(network):
        network(inputs, present, blanked_mask=blanked_mask)
    return {layer: measured[layer] for layer in _integrations(network)}


@torch.no_grad()
def mixing_weights(network: StreamNetwork) -> dict[str, dict[str, float]]:
    r"""Size of the learned mixing weights at every layer.

    Linear integration: the spectral norm of each 1×1 kernel, the most by which it can lengthen a
    pixel's channels. Scalar integration: :math:`\alpha_m`, and :math:`\gamma` times the spectral
    norm of W_z.

    Returns:
        By layer, in order, one number per stream by name, and ``"integrated"`` where the layer
        has an integrated input.

    Raises:
        ValueError: if the network has no integrated pathway.
    """
    return {
        layer: _weights(rule, network.stream_names)
        for layer, rule in _integrations(network).items()
    }


def _weights(
    rule: LinearIntegration | ScalarIntegration, names: tuple[str, ...]
) -> dict[str, float]:
    scale = 1.0
    if isinstance(rule, ScalarIntegration):
        streams = [scalar.item() for scalar in rule.stream_scalars]
        if rule.integrated_scalar is not None:
            scale = rule.integrated_scalar.item()
    else:
        streams = [_spectral_norm(weight) for weight in rule.stream_weights]
    weights = dict(zip(names, streams, strict=True))
    if rule.integrated_weight is not None:
        weights[INTEGRATED] = scale * _spectral_norm(rule.integrated_weight)
    return weights


def _spectral_norm(kernel: Tensor) -> float:
    return float(torch.linalg.matrix_norm(kernel.flatten(1).float(), ord=2))


def _integrations(network: nn.Module) -> dict[str, LinearIntegration | ScalarIntegration]:
    """Integration rules by the name of their layer, in order."""
    found = {
        name.removesuffix(".integration"): module
        for name, module in network.named_modules()
        if isinstance(module, LinearIntegration | ScalarIntegration)
    }
    if not found:
        raise ValueError(
            "this network has no integrated pathway; its streams meet in the head only"
        )
    return found


@contextmanager
def _watched(network: nn.Module, record: Any) -> Iterator[None]:
    handles = []
    for layer, rule in _integrations(network).items():
        handles.append(
            rule.register_forward_hook(
                lambda module, arguments, _, layer=layer: record(layer, module, arguments[0])
            )
        )
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
