"""What happened in each epoch of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from torch import Tensor

from manystream.dropout import ModalityDropout
from manystream.evaluation.strict_json import strict_json
from manystream.files import replacing


class History(dict[str, list[float]]):
    """One list per quantity, one entry per epoch; NaN where an epoch did not measure it.

    Keys: ``train_loss``, ``train_accuracy``, ``train_mean_class_accuracy``, the same with ``val_``
    and ``val_num_samples`` where there is a validation loader, ``dropout_probability`` and
    ``learning_rate``, ``train_samples_per_second`` of all ``num_processes`` together, and what
    training aids log: ``val_mean_class_accuracy/<streams>``, ``frozen/<stream>``,
    ``gradient_norm/<part>``, ``balance_penalty``.
    """

    def append(self, values: dict[str, float]) -> None:
        """Add an epoch."""
        before = self.num_epochs
        for name in dict.fromkeys([*self, *values]):
            self.setdefault(name, [math.nan] * before).append(values.get(name, math.nan))

    @property
    def num_epochs(self) -> int:
        """Epochs so far."""
        return max(map(len, self.values()), default=0)

    def save(self, path: Path) -> None:
        """Write strict JSON; a reader sees the old file or the new one, never half of one."""
        with replacing(path) as partial:
            partial.write_text(strict_json(self) + "\n")


class HistoryRecorder(pl.Callback):
    """Adds each epoch's logged values to a history, and keeps it on disk.

    Args:
        path: JSON file that is rewritten after every epoch; None keeps it in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.history = History()
        self.path = path
        self._used: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what the epoch uses; the learning rate is that of its first step."""
        trainer.callback_metrics.clear()  # so that nothing of the last epoch is taken for this one
        group = trainer.optimizers[0].param_groups[0]
        dropout = cast("ModalityDropout | None", pl_module.dropout)
        self._used = {
            "dropout_probability": dropout.probability(trainer.current_epoch) if dropout else 0.0,
            "learning_rate": group["lr"] / group["multiplier"],
        }

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record what the epoch used and logged."""
        pl_module.log_dict(self._used, sync_dist=True)
        logged = {k: v.item() for k, v in trainer.callback_metrics.items() if isinstance(v, Tensor)}
        self.history.append({**logged, **self._used})
        if self.path is not None and trainer.is_global_zero:
            self.history.save(self.path)

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far, and what the present one uses."""
        return {"history": {**self.history}, "used": self._used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.history = History({name: list(v) for name, v in state_dict["history"].items()})
        self._used = dict(state_dict["used"])
