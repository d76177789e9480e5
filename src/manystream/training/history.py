"""What is written down of a run: its history, how fast it was, gradient norms, and logs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from inspect import signature
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.optim import Optimizer

from manystream.dropout import ModalityDropout
from manystream.evaluation.strict_json import strict_json
from manystream.files import replacing
from manystream.training.param_groups import named_groups, network_of

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
    """Adds each epoch's logged values to a history, and rewrites its JSON file, if it has one."""

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
        pl_module.log_dict(self._used, sync_dist=True)
        logged = {k: v.item() for k, v in trainer.callback_metrics.items() if isinstance(v, Tensor)}
        self.history.append({**logged, **self._used})
        if self.path is not None and trainer.is_global_zero:
            self.history.save(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"history": {**self.history}, "used": self._used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
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
        self._begin()  # also in the middle of an epoch, where a resumed run enters it

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
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


class GradientNorms(pl.Callback):
    """Logs ``gradient_norm/<group>``, mean over an epoch's optimizer steps, before any clipping.

    That is the Euclidean norm over a parameter group; a parameter without a gradient counts as 0.
    """

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        network = network_of(pl_module)
        groups = named_groups(network).values()
        gradients: dict[str, list[Tensor]] = {group: [] for group in groups}
        for parameter, group in zip(network.parameters(), groups, strict=True):
            if parameter.grad is not None:
                gradients[group].append(parameter.grad)
        norms = {f"gradient_norm/{g}": nn.utils.get_total_norm(of) for g, of in gradients.items()}
        pl_module.log_dict(norms, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)


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
    made, kinds = [], check_loggers(loggers)
    for name, kind in kinds.items():
        arguments = (loggers[name] if isinstance(loggers, dict) else None) or {}
        placed = {"name": "", "version": version} if name in _LOGGERS else {}
        if "save_dir" in signature(kind).parameters:
            placed["save_dir"] = str(out_dir)
        try:
            made.append(kind(**{**placed, **arguments}))
        except (TypeError, ValueError, ModuleNotFoundError) as error:
            raise ValueError(f"logger {name!r} with arguments {arguments}: {error}") from error
    return made


def check_loggers(loggers: Iterable[str]) -> dict[str, type[Logger]]:
    """Find the classes of loggers by their names.

    Raises:
        ValueError: if there is none of a name, naming those that there are.
    """
    there = [name for name in lightning_loggers.__all__ if name != "Logger"]  # which is abstract
    for name in loggers:
        if name not in (*_LOGGERS, *there):
            known = ", ".join([*_LOGGERS, *there])
            raise ValueError(f"unknown logger {name!r}; expected one of {known}")
    return {name: _LOGGERS.get(name) or getattr(lightning_loggers, name) for name in loggers}
