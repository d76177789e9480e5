"""Measure the task's first metric with every subset of the streams while a network trains."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from manystream.batch import StreamBatch
from manystream.evaluation.subsets import subsets_of
from manystream.models import StreamNetwork
from manystream.tasks import Task
from manystream.training.param_groups import network_of


def logged_as(subset: str, task: Task) -> str:
    """Name the task's first metric with a subset of the streams, as it is logged.

    Example:
        >>> from manystream.tasks import Classification
        >>> logged_as("rgb + depth", Classification(2))
        'val_mean_class_accuracy/rgb + depth'
    """
    return f"val_{task.primary_metric}/{subset}"


class SubsetAccuracy(pl.Callback):
    """Logs the task's first metric for every proper subset of the streams.

    Validation batches are not read again: those rows that a subset has are taken out of them. A
    sample without any of the subset's streams does not count; a subset that no sample has any of
    is not logged.

    Args:
        every: epochs from one measurement to the next; the last of each such span is measured.
        network: what is measured.
        task: what it is measured by.
    """

    def __init__(self, every: int, network: StreamNetwork, task: Task) -> None:
        self.every = every
        self.task = task
        self.subsets = {name: kept for name, kept in subsets_of(network).items() if not all(kept)}
        self.metrics = {name: task.metrics()[task.primary_metric] for name in self.subsets}
        self._num_samples = dict.fromkeys(self.subsets, 0)

    def is_due(self, epoch: int) -> bool:
        """Tell whether the epoch, counted from 0, is measured."""
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
                for name in self.subsets:
                    self._measure(pl_module, batch, name)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what was measured; metrics of several processes are joined first."""
        if not self.is_due(trainer.current_epoch):
            return
        for name, metric in self.metrics.items():
            counted = torch.tensor(float(self._num_samples[name]), device=pl_module.device)
            self._num_samples[name] = 0
            if trainer.strategy.reduce(counted, reduce_op="sum") > 0:
                pl_module.log(logged_as(name, self.task), _joined(metric), sync_dist=True)
            metric.reset()

    def _measure(self, pl_module: pl.LightningModule, batch: StreamBatch, name: str) -> None:
        kept = batch.keep(torch.tensor(self.subsets[name]).expand(len(batch), -1))
        if len(kept):
            predictions = self.task.predict(network_of(pl_module)(kept))
            self.metrics[name].to(pl_module.device).update(predictions, kept.target)
            self._num_samples[name] += len(kept)


def _joined(metric: Metric) -> Tensor:
    """Compute the value over all processes, of which some may have measured nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
        value: Tensor = metric.compute()
    return value
