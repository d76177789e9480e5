"""Optimizer and learning rate schedule."""

from __future__ import annotations

import math

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from manystream.training.options import FitOptions


def configure_optimizer(
    network: nn.Module, options: FitOptions, num_steps: int | None
) -> OptimizerLRScheduler:
    """AdamW, without weight decay on norms, biases and scalars; warm-up, then a cosine to zero.

    Args:
        network: what is trained.
        options: learning rate, weight decay, warm-up and number of epochs.
        num_steps: optimizer steps of the whole run; None if nobody knows.

    Returns:
        In Lightning's form, stepped every batch, or every epoch if ``num_steps`` is None.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=options.learning_rate)
    length = options.epochs if num_steps is None else num_steps
    num_warmup = min(round(length * options.warmup_epochs / options.epochs), length)
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, num_warmup, length))
    interval = "epoch" if num_steps is None else "step"
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}


def warmup_cosine(step: int, num_warmup: int, num_steps: int) -> float:
    """Share of the peak learning rate at a step.

    Example:
        >>> [round(warmup_cosine(s, 2, 6), 2) for s in range(7)]
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(num_steps - num_warmup, 1)
    return (1 + math.cos(math.pi * min(progress, 1.0))) / 2
