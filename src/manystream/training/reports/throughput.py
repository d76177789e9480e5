"""How many samples a run trains on per second, epoch by epoch."""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import torch

from manystream.batch import StreamBatch

SAMPLES_PER_SECOND = "train_samples_per_second"
"""Name in a history; of all that is in it, only this is not the same when a run is repeated."""

NUM_PROCESSES = "num_processes"


class Throughput(pl.Callback):
    """Logs training samples per second of all processes together, and how many these are.

    The clock runs from the beginning of an epoch to the end of its last training batch: reading
    counts, validation does not. An epoch that was resumed counts what was trained since.
    """

    def __init__(self) -> None:
        self._begin()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, also of an epoch that is entered in its middle."""
        self._begin()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._begin()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StreamBatch,
        batch_idx: int,
    ) -> None:
        """Count a batch, and stop the clock at the last."""
        self._num_samples += len(batch)
        if trainer.is_last_batch:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)  # the host is ahead of its GPU
            self._seconds = perf_counter() - self._began

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what all processes did in the time of the slowest."""
        reduce, device = trainer.strategy.reduce, pl_module.device
        samples = reduce(torch.tensor(float(self._num_samples), device=device), reduce_op="sum")
        seconds = reduce(torch.tensor(self._seconds, device=device), reduce_op="max")
        logged = {SAMPLES_PER_SECOND: samples / seconds, NUM_PROCESSES: float(trainer.world_size)}
        pl_module.log_dict(logged, sync_dist=True)

    def _begin(self) -> None:
        self._began, self._num_samples, self._seconds = perf_counter(), 0, math.nan
