"""Measure the task's first metric with every subset of the streams while a network trains."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from manystream.batch import StreamBatch, map_target, select
from manystream.evaluation.inference import answers_by_subset, in_parts
from manystream.evaluation.measurement import numbered_subsets
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

    Validation batches are not read again, and each stream runs once for all subsets. A sample
    counts where it has all of a subset's streams; a subset that no sample has is not logged.

    Args:
        every: epochs from one measurement to the next; the last of each such span is measured.
        network: what is measured.
        task: what it is measured by.
    """

    def __init__(self, every: int, network: StreamNetwork, task: Task) -> None:
        self.every = every
        self.task = task
        numbered = numbered_subsets(network.stream_names)
        self.names = {
            bits: name for name, bits in numbered.items() if bits != max(numbered.values())
        }
        self.metrics = {name: task.metrics()[task.primary_metric] for name in self.names.values()}
        self._num_samples = dict.fromkeys(self.metrics, 0)

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
        """Measure a batch with every subset."""
        if not self.is_due(trainer.current_epoch) or len(batch) == 0:
            return
        with trainer.precision_plugin.val_step_context():
            for part in in_parts(batch):
                self._measure(network_of(pl_module), part)

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

    def _measure(self, network: StreamNetwork, batch: StreamBatch) -> None:
        for subset, (output, samples) in answers_by_subset(network, batch).items():
            name = self.names.get(subset)
            if name is None:
                continue
            target = map_target(partial(select, index=samples), batch.target)
            self.metrics[name].to(output.device).update(self.task.predict(output), target)
            self._num_samples[name] += len(samples)


def _joined(metric: Metric) -> Tensor:
    """Compute the value over all processes, of which some may have measured nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
        value: Tensor = metric.compute()
    return value
