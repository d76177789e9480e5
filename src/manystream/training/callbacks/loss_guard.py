"""Stop a run at the step whose loss is not a finite number."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils._foreach_utils import (
    _group_tensors_by_device_and_dtype as group_by_device_and_dtype,
)

from manystream.batch import StreamBatch
from manystream.choices import first_few
from manystream.training.distributed import Vote, gathered
from manystream.training.param_groups import network_of
from manystream.training.state_saver import StateSaver

_IDS_SHOWN = 64


class NonFiniteLossError(ValueError):
    """A training loss became NaN or infinite; says where, for which samples, and what is kept."""


class LossGuard(pl.Callback):
    """Raises at the very step whose loss is NaN or infinite, before the optimizer uses it.

    The network is then as it was before that batch: its running statistics, and every other
    buffer, are brought back, and gradients are dropped.

    On a GPU the value is copied while the backward pass is queued, and waited for when it is: the
    GPU has that pass to work on in the meantime. With several processes all of them stop, and the
    message names the samples of those whose loss it was.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the network's buffers, which have their places on the device now."""
        self._buffers = _KeptBuffers(network_of(pl_module))
        self._vote = Vote(pl_module.device, alone=trainer.world_size == 1)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: StreamBatch, *_: Any
    ) -> None:
        """Remember whose loss comes next, and the buffers that its forward pass will move."""
        self._batch = batch
        self._buffers.keep()

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Begin to ask; on the CPU the answer is there at once, before any gradient."""
        self._loss = loss.detach()
        self._vote.ask((~self._loss.isfinite()).float())
        if pl_module.device.type != "cuda":
            self._answer(trainer, pl_module)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hear the answer while the backward pass runs."""
        if pl_module.device.type == "cuda":
            self._answer(trainer, pl_module)

    def _answer(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss, batch = self._loss, self._batch
        del self._loss, self._batch  # else they would live until the next batch is there
        if self._vote.answer() == 0:
            return
        self._buffers.restore()
        pl_module.zero_grad()
        said = gathered((loss.item(), _described(batch)), trainer.world_size)
        values, samples = zip(*(s for s in said if not math.isfinite(s[0])), strict=True)
        raise NonFiniteLossError(
            f"the loss of batch {trainer.fit_loop.batch_idx} in epoch {trainer.current_epoch} "
            f"(both from 0) is {values[0]}; its samples are {'; '.join(samples)}. "
            f"{_last_good(trainer)} "
            "Look at these images, or lower the learning rate, clip gradients, or use bf16-mixed "
            "or 32-true precision."
        )


class _KeptBuffers:
    """The buffers of a network as they were before a step, copied in few launches per dtype.

    They are looked up by name each time, since a forward pass may put others in their places.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = list(network.modules())
        self._places: list[tuple[dict[str, Tensor | None], str]] = []
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copy them as they are, where it can be into what was kept before."""
        there = [
            ((module._buffers, name), buffer)
            for module in self._modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._places, found = [place for place, _ in there], [buffer for _, buffer in there]
        if [(b.shape, b.dtype) for b in found] != [(k.shape, k.dtype) for k in self._kept]:
            self._kept = [buffer.clone() for buffer in found]
            return
        both: list[list[Tensor | None]] = [[*self._kept], [*found]]
        for (kept, buffers), _ in group_by_device_and_dtype(both).values():
            torch._foreach_copy_(kept, buffers)  # type: ignore[arg-type]

    @torch.no_grad()
    def restore(self) -> None:
        """Bring them back, where it can be in the same tensors: graphs and averages read these."""
        for (buffers, name), kept in zip(self._places, self._kept, strict=True):
            now = buffers.get(name)
            if now is None or now.shape != kept.shape:
                buffers[name] = kept.clone()
            else:
                now.copy_(kept)


def _described(batch: StreamBatch) -> str:
    if batch.ids is None:
        return "unknown: the loader's batches have no ids"
    return first_few(batch.ids, _IDS_SHOWN)


def _last_good(trainer: pl.Trainer) -> str:
    """Say where the newest checkpoint lies; all were taken at steps with finite losses."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, StateSaver) and callback.folder.latest is not None:
            return f"The last good checkpoint is {callback.folder.latest}."
    return "No checkpoint has been written yet."
