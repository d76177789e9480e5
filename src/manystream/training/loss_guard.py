"""Stops a run at the step whose loss is not a finite number."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from manystream.batch import StreamBatch
from manystream.training.checkpoints.state_saver import StateSaver

_IDS_SHOWN = 64


class NonFiniteLossError(ValueError):
    """A training loss became NaN or infinite; says where, for which samples, and what is kept."""


class LossGuard(pl.Callback):
    """Raises at the very step whose loss is NaN or infinite, before the optimizer uses it.

    On a GPU the value is copied while the backward pass is queued, and waited for when it is: the
    GPU has that pass to work on in the meantime. With several processes all of them stop, and the
    message names the samples of those whose loss it was.
    """

    def __init__(self) -> None:
        self._batch: StreamBatch | None = None
        self._is_bad: Tensor | None = None
        self._loss: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: StreamBatch, *_: Any
    ) -> None:
        """Remember whose loss comes next."""
        self._batch = batch

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Begin to ask; on the CPU the answer is there at once, before any gradient."""
        self._loss = loss.detach()
        is_bad = (~self._loss.isfinite()).float()
        if trainer.world_size > 1:
            # Lightning's own reduction has the host wait for all processes.
            dist.all_reduce(is_bad, op=dist.ReduceOp.MAX)
        self._is_bad = is_bad
        if loss.is_cuda:
            self._is_bad = torch.empty_like(is_bad, device="cpu", pin_memory=True)
            self._is_bad.copy_(is_bad, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._answer(trainer)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hear the answer while the backward pass runs."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
            self._answer(trainer)

    def _answer(self, trainer: pl.Trainer) -> None:
        is_bad, loss, batch = self._is_bad, self._loss, self._batch
        self._is_bad = self._loss = self._batch = None
        assert is_bad is not None
        assert loss is not None
        if is_bad.item() == 0:
            return
        value = loss.item()
        found = [] if math.isfinite(value) else [(value, _described(batch))]
        if trainer.world_size > 1:
            found = _gathered(found)
        values, samples = zip(*found, strict=True)
        raise NonFiniteLossError(
            f"the loss of batch {trainer.fit_loop.batch_idx} in epoch {trainer.current_epoch} "
            f"(both from 0) is {values[0]}; its samples are {'; '.join(samples)}. "
            f"{_last_good(trainer)} "
            "Look at these images, or lower the learning rate, clip gradients, or use bf16-mixed "
            "or 32-true precision."
        )


def _described(batch: StreamBatch | None) -> str:
    if batch is None or batch.ids is None:
        return "unknown: the loader's batches have no ids"
    shown = ", ".join(batch.ids[:_IDS_SHOWN])
    more = len(batch.ids) - _IDS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _gathered(found: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """What any process found."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    return [pair for pairs in everyone for pair in pairs]


def _last_good(trainer: pl.Trainer) -> str:
    """Where the newest checkpoint lies; all that exist were taken at steps with finite losses."""
    savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, StateSaver)]
    kept = [path for saver in savers for path in saver.folder.checkpoints.glob("*.safetensors")]
    if not kept:
        return "No checkpoint has been written yet."
    newest = max(kept, key=lambda path: (path.stat().st_mtime_ns, path.name))
    return f"The last good checkpoint is {newest}."
