"""What is written down of a run: its history, how fast it was, and logs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

from manystream.batch import StreamBatch
from manystream.dropout import ModalityDropout
from manystream.evaluation.strict_json import strict_json
from manystream.files import replacing

SAMPLES_PER_SECOND = "train_samples_per_second"
"""Name in a history; of all that is in it, only this is not the same when a run is repeated."""

_LOGGERS: dict[str, type[Logger]] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}


class History(dict[str, list[float]]):
    """One list per quantity, one entry per epoch; NaN where an epoch did not measure it.

    Keys: ``train_loss``, ``train_accuracy``, ``train_mean_class_accuracy``, the same with ``val_``
    and ``val_num_samples`` where there is a validation loader, ``dropout_probability`` and
    ``learning_rate``, ``train_samples_per_second`` of all ``num_processes`` together, and what
    callbacks log: ``val_mean_class_accuracy/<streams>``, ``frozen/<stream>``,
    ``gradient_norm/<group>``, ``balance_penalty``.
    """

    def append(self, values: dict[str, float]) -> None:
        """Add an epoch."""
        before = self.num_epochs
        for name in dict.fromkeys([*self, *values]):
            self.setdefault(name, [math.nan] * before).append(values.get(name, math.nan))

    @property
    def num_epochs(self) -> int:
        """Count the epochs so far."""
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
            "learning_rate": float(group["lr"] / group["multiplier"]),
        }

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record what the epoch used and logged."""
        pl_module.log_dict(self._used, sync_dist=True)
        logged = {k: v.item() for k, v in trainer.callback_metrics.items() if isinstance(v, Tensor)}
        self.history.append({**logged, **self._used})
        if self.path is not None and trainer.is_global_zero:
            self.history.save(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Give the epochs so far, and what the present one uses."""
        return {"history": {**self.history}, "used": self._used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.history = History({name: list(v) for name, v in state_dict["history"].items()})
        self._used = dict(state_dict["used"])


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
        logged = {SAMPLES_PER_SECOND: samples / seconds, "num_processes": float(trainer.world_size)}
        pl_module.log_dict(logged, sync_dist=True)

    def _begin(self) -> None:
        self._began, self._num_samples, self._seconds = perf_counter(), 0, math.nan


def make_loggers(
    loggers: Sequence[str] | dict[str, dict[str, Any]], out_dir: Path, version: str = "logs"
) -> list[Logger]:
    """Make loggers that write below a folder, unless their arguments say otherwise.

    Args:
        loggers: ``csv``, ``tensorboard`` or names of classes in ``lightning.pytorch.loggers``, or
            the arguments of each by its name.
        out_dir: folder of the run.
        version: folder in it for those that write files.

    Raises:
        ValueError: if there is no such logger, its package is not installed, or it does not take
            its arguments.
    """
    named = loggers if isinstance(loggers, dict) else {name: {} for name in loggers}
    return [_make(name, arguments or {}, out_dir, version) for name, arguments in named.items()]


def check_loggers(loggers: Sequence[str] | dict[str, dict[str, Any]]) -> None:
    """Refuse names of no logger.

    Raises:
        ValueError: naming the loggers that there are.
    """
    for name in loggers:
        _class_of(name)


def _make(name: str, arguments: dict[str, Any], out_dir: Path, version: str) -> Logger:
    kind = _class_of(name)
    placed = {"name": "", "version": version} if name in _LOGGERS else {}
    if "save_dir" in signature(kind).parameters:
        placed["save_dir"] = str(out_dir)
    try:
        return kind(**{**placed, **arguments})
    except (TypeError, ValueError, ModuleNotFoundError) as error:
        raise ValueError(f"logger {name!r} with arguments {arguments}: {error}") from error


def _class_of(name: str) -> type[Logger]:
    if name in _LOGGERS:
        return _LOGGERS[name]
    there = [n for n in lightning_loggers.__all__ if n != "Logger"]  # which is abstract
    if name not in there:
        raise ValueError(
            f"unknown logger {name!r}; expected one of {', '.join(_LOGGERS)}, {', '.join(there)}"
        )
    kind: type[Logger] = getattr(lightning_loggers, name)
    return kind
