"""Accuracy with every subset of the streams, measured while the network trains."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import lightning.pytorch as pl
import torch

from manystream.batch import StreamBatch
from manystream.training.evaluation.metrics import MeanClassAccuracy, mean_class_accuracy
from manystream.training.recipe.parts import network_of

Subset = tuple[str, ...]


def proper_subsets(names: Sequence[str]) -> list[Subset]:
    """All subsets of the streams but all and none, the larger ones first.

    Example:
        >>> proper_subsets(["rgb", "depth"])
        [('rgb',), ('depth',)]
    """
    return [s for size in range(len(names) - 1, 0, -1) for s in combinations(names, size)]


def logged_as(subset: Subset) -> str:
    """Name under which a subset's mean class accuracy is logged.

    Example:
        >>> logged_as(("rgb", "depth"))
        'val_mean_class_accuracy/rgb + depth'
    """
    return "val_mean_class_accuracy/" + " + ".join(subset)


class SubsetAccuracy(pl.Callback):
    """Logs mean class accuracy for every proper subset of the streams.

    Validation batches are not read again: those rows that a subset has are taken out of them. A
    sample without any of the subset's streams does not count; a subset that no sample has any of
    is not logged.

    Args:
        every: epochs from one measurement to the next; the last of each such span is measured.
        names: the network's streams.
        num_classes: number of classes.
    """

    def __init__(self, every: int, names: Sequence[str], num_classes: int) -> None:
        self.every = every
        self.names = tuple(names)
        self.metrics = {
            subset: MeanClassAccuracy(num_classes, validate_args=False)
            for subset in proper_subsets(names)
        }

    def is_due(self, epoch: int) -> bool:
        """Whether the epoch, counted from 0, is measured."""
        return (epoch + 1) % self.every == 0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StreamBatch,
        *_: Any,
    ) -> None:
        """Measure each subset's rows of a batch."""
        if self.is_due(trainer.current_epoch):
            with trainer.precision_plugin.val_step_context():
                for subset, metric in self.metrics.items():
                    metric.to(pl_module.device)
                    self._measure(pl_module, batch, subset, metric)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what was measured; metrics of several processes are joined first."""
        if not self.is_due(trainer.current_epoch):
            return
        for subset, metric in self.metrics.items():
            confusion = metric.to(pl_module.device).confusion()
            if confusion.any():
                pl_module.log(logged_as(subset), mean_class_accuracy(confusion), sync_dist=True)
            metric.reset()

    def _measure(
        self,
        pl_module: pl.LightningModule,
        batch: StreamBatch,
        subset: Subset,
        metric: MeanClassAccuracy,
    ) -> None:
        mask = torch.tensor([name in subset for name in self.names])
        kept = batch.keep(mask.expand(len(batch), -1))
        if len(kept) and kept.target is not None:
            metric.update(network_of(pl_module)(kept), kept.target)
