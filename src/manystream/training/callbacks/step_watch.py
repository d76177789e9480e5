"""Take down the form of the latest step, for the advice when memory runs out."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from manystream.batch import StreamBatch, map_target
from manystream.training.module import TrainingModule
from manystream.training.out_of_memory import StepForm


class StepWatch(pl.Callback):
    """Takes the form of every step down, where it can be read when all else of the run is gone.

    Lightning ties a callback to the module, so whoever holds one holds all memory of a run.

    Args:
        latest: where to write.
    """

    def __init__(self, latest: StepForm) -> None:
        self._latest = latest

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: StreamBatch, *_: Any
    ) -> None:
        if len(batch) == 0:
            return
        height, width = batch.streams[0].shape[2:]
        latest = self._latest
        if latest.batch_size == 0 or latest.image_size != (height, width):
            # Waits for the device, so not at every step.
            latest.target = map_target(lambda t: t[:1].cpu(), batch.target)
        latest.batch_size, latest.image_size = len(batch), (height, width)
        assert isinstance(pl_module, TrainingModule)
        latest.in_graphs, latest.see = pl_module.in_graphs, pl_module.see
