"""Who computes a training step's loss: CUDA graphs where they can, else an eager pass."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as pl
from torch import Tensor, nn

from manystream.batch import StreamBatch
from manystream.graphs import GraphedStep
from manystream.models import StreamNetwork
from manystream.training.distributed import exchanges_during_backward
from manystream.training.options import FitOptions

Step = Callable[[StreamBatch], tuple[Tensor, Tensor]]
"""From a batch with targets to its loss, (), and logits, (B, K)."""


def make_step(
    network: StreamNetwork, loss: nn.Module, options: FitOptions, trainer: pl.Trainer
) -> Step:
    """A step of a network as the options want it.

    Raises:
        ValueError: if ``cuda_graphs`` is ``"on"`` where there can be none.
    """
    obstacle = _obstacle(options, trainer)
    if options.cuda_graphs == "on" and obstacle:
        raise ValueError(f"cuda_graphs is 'on', but {obstacle}; leave it at 'auto', or 'off'")
    if options.cuda_graphs != "off" and not obstacle:
        return GraphedStep(network, loss)

    def eager(batch: StreamBatch) -> tuple[Tensor, Tensor]:
        logits = network(batch)
        return loss(logits, batch.target), logits

    return eager


def _obstacle(options: FitOptions, trainer: pl.Trainer) -> str | None:
    """What a captured step could not do."""
    if trainer.strategy.root_device.type != "cuda":
        return "there is no GPU"
    if exchanges_during_backward(trainer):
        return f"strategy {options.strategy!r} averages gradients while the backward pass runs"
    if trainer.world_size > 1 and options.sync_batchnorm:
        return "joint batch norms meet the other processes in every layer"
    if options.balance_penalty > 0:
        return "the balance penalty looks at every forward pass"
    return None
