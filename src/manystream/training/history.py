"""What happened in each epoch of a run."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from torch import Tensor

from manystream.training.strict_json import strict_json


class History(dict[str, list[float]]):
    """One list per quantity, one entry per epoch.

    Keys: ``train_loss``, ``train_accuracy``, ``train_mean_class_accuracy``, the same with ``val_``
    and ``val_num_samples`` where there is a validation loader, ``dropout_probability`` and
    ``learning_rate``.
    """

    def append(self, values: dict[str, float]) -> None:
        """Add an epoch."""
        for name, value in values.items():
            self.setdefault(name, []).append(value)

    @property
    def num_epochs(self) -> int:
        """Epochs so far."""
        return max(map(len, self.values()), default=0)

    def save(self, path: Path) -> None:
        """Write strict JSON; a reader sees the old file or the new one, never half of one."""
        partial = path.with_suffix(".partial")
        partial.write_text(strict_json(self) + "\n")
        partial.replace(path)


class HistoryRecorder(pl.Callback):
    """Adds each epoch's logged values to a history, and keeps it on disk.

    Args:
        path: JSON file that is rewritten after every epoch; None keeps it in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.history = History()
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record what the epoch logged."""
        logged = {k: v.item() for k, v in trainer.callback_metrics.items() if isinstance(v, Tensor)}
        self.history.append(logged)
        if self.path is not None and trainer.is_global_zero:
            self.history.save(self.path)
