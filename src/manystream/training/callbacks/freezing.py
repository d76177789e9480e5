"""Freeze a stream that has nothing more to learn by itself."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from manystream.tasks import Task
from manystream.training.callbacks.subset_accuracy import logged_as
from manystream.training.distributed import exchanges_during_backward
from manystream.training.param_groups import network_of, stream_modules

_logger = logging.getLogger(__name__)


class StreamFreezing(pl.Callback):
    """Stops the training of a stream that no longer improves by itself, by the task's first metric.

    Its kernels and norms stop, running statistics included; its mixing weights belong to the
    integrated pathway and go on. A frozen stream stays frozen until training ends. Logs
    ``frozen/<stream>``, 0 or 1, as it was in each epoch.

    A frozen stream takes no backward pass. Only under DistributedDataParallel, whose processes have
    agreed on what they exchange, are its gradients still computed, and then dropped.

    Args:
        patience: measurements by :class:`SubsetAccuracy` without improvement that a stream has.
        names: the network's streams.
        task: what is trained.

    Attributes:
        frozen: names of the frozen streams.
    """

    def __init__(self, patience: int, names: Sequence[str], task: Task) -> None:
        self.patience = patience
        self.task = task
        self.names = tuple(names)
        self.frozen: list[str] = []
        self._best: dict[str, float] = {}
        self._waited: dict[str, int] = {}
        self._trained: list[nn.Parameter] = []
        self._moving: list[nn.Module] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze what a resumed run had frozen."""
        for name in self.frozen:
            self._freeze(trainer, pl_module, name)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what was frozen, and freeze streams that have waited long enough."""
        for name in self.names:
            pl_module.log(f"frozen/{name}", float(name in self.frozen), sync_dist=True)
        for name in self.names:
            measured = trainer.callback_metrics.get(logged_as(name, self.task))
            if name not in self.frozen and measured is not None:
                self._judge(trainer, pl_module, name, measured.item())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Drop the gradients of frozen streams, so that neither decay nor momentum moves them."""
        for parameter in self._trained:
            parameter.grad = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the network back as trainable as it came."""
        for parameter in self._trained:
            parameter.requires_grad_(True)
        for norm in self._moving:
            norm.train()
        self._trained, self._moving = [], []

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": self.frozen, "best": self._best, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.frozen = list(state_dict["frozen"])
        self._best, self._waited = dict(state_dict["best"]), dict(state_dict["waited"])

    def _judge(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str, value: float
    ) -> None:
        best = self._best.get(name, math.nan)
        if math.isnan(best) or (value > best if self.task.higher_is_better else value < best):
            self._best[name], self._waited[name] = value, 0
            return
        self._waited[name] = self._waited.get(name, 0) + 1
        if self._waited[name] >= self.patience:
            self.frozen.append(name)
            self._freeze(trainer, pl_module, name)
            rank_zero_only(_logger.warning)(
                "stream %r is frozen after epoch %d: by itself it got no better than %s",
                name,
                trainer.current_epoch + 1,
                self.task.quantities()[self.task.primary_metric].text(self._best[name]),
            )

    def _freeze(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str) -> None:
        modules = stream_modules(network_of(pl_module), name)
        moving = [m for m in modules if isinstance(m, _BatchNorm) and m.training]
        of_modules = {id(p): p for m in modules for p in m.parameters() if p.requires_grad}
        self._moving += moving
        self._trained += of_modules.values()
        for norm in moving:
            norm.eval()
        for parameter in of_modules.values():
            parameter.grad = None
            # Gradients that processes have agreed on must keep coming.
            parameter.requires_grad_(exchanges_during_backward(trainer))
