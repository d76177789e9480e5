"""The task's first metric with every subset of the streams, measured while the network trains."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from manystream.batch import StreamBatch
from manystream.tasks import Task
from manystream.training.param_groups import network_of

Subset = tuple[str, ...]


def proper_subsets(names: Sequence[str]) -> list[Subset]:
    """All subsets of the streams but all and none, the larger ones first.

    Example:
        >>> proper_subsets(["rgb", "depth"])
        [('rgb',), ('depth',)]
    """
    return [s for size in range(len(names) - 1, 0, -1) for s in combinations(names, size)]


def logged_as(subset: Subset, task: Task) -> str:
    """Name under which the task's first metric with a subset is logged.

    Example:
        >>> from manystream.tasks import Classification
        >>> logged_as(("rgb", "depth"), Classification(2))
        'val_mean_class_accuracy/rgb + depth'
    """
    return f"val_{task.primary_metric}/" + " + ".join(subset)


class SubsetAccuracy(pl.Callback):
    """Logs the task's first metric for every proper subset of the streams.

    Validation batches are not read again: those rows that a subset has are taken out of them. A
    sample without any of the subset's streams does not count; a subset that no sample has any of
    is not logged.

    Args:
        every: epochs from one measurement to the next; the last of each such span is measured.
        names: the network's streams.
        task: what is measured.
    """

    def __init__(self, every: int, names: Sequence[str], task: Task) -> None:
        self.every = every
        self.names = tuple(names)
        self.task = task
        subsets = proper_subsets(names)
        self.metrics = {subset: task.metrics()[task.primary_metric] for subset in subsets}
        self._num_samples = dict.fromkeys(subsets, 0)

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
                for subset in self.metrics:
                    self._measure(pl_module, batch, subset)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what was measured; metrics of several processes are joined first."""
        if not self.is_due(trainer.current_epoch):
            return
        for subset, metric in self.metrics.items():
            counted = torch.tensor(float(self._num_samples[subset]), device=pl_module.device)
            self._num_samples[subset] = 0
            if trainer.strategy.reduce(counted, reduce_op="sum") > 0:
                pl_module.log(logged_as(subset, self.task), _joined(metric), sync_dist=True)
            metric.reset()

    def _measure(self, pl_module: pl.LightningModule, batch: StreamBatch, subset: Subset) -> None:
        mask = torch.tensor([name in subset for name in self.names])
        kept = batch.keep(mask.expand(len(batch), -1))
        if len(kept):
            predictions = self.task.predict(network_of(pl_module)(kept))
            self.metrics[subset].to(pl_module.device).update(predictions, kept.target)
            self._num_samples[subset] += len(kept)


def _joined(metric: Metric) -> Tensor:
    """The value over all processes, of which some may have measured nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
        value: Tensor = metric.compute()
    return value
