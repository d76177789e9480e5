"""Gradient norms of each stream's pathway, and of what the streams share."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from manystream.models import StreamNetwork
from manystream.training.param_groups import named_groups, network_of


def gradient_norms(network: StreamNetwork) -> dict[str, Tensor]:
    """Euclidean norm of the gradient of every part of a network, shape () each.

    Args:
        network: a network after a backward pass; a parameter without a gradient counts as zero.
    """
    gradients: dict[str, list[Tensor]] = {}
    for parameter, part in zip(network.parameters(), named_groups(network).values(), strict=True):
        of_part = gradients.setdefault(part, [])
        if parameter.grad is not None:
            of_part.append(parameter.grad)
    return {part: nn.utils.get_total_norm(grads) for part, grads in gradients.items()}


class GradientNorms(pl.Callback):
    """Logs ``gradient_norm/<part>``, mean over an epoch's optimizer steps, before any clipping."""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure what the step is about to use."""
        norms = gradient_norms(network_of(pl_module))
        logged = {f"gradient_norm/{part}": norm for part, norm in norms.items()}
        pl_module.log_dict(logged, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
