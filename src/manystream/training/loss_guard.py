"""Stops a run at the step whose loss is not a finite number."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from manystream.batch import StreamBatch
from manystream.training.checkpoints.state_saver import StateSaver
from manystream.training.param_groups import network_of

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

    def __init__(self) -> None:
        self._buffers: _KeptBuffers
        self._batch: StreamBatch | None = None
        self._is_bad: Tensor | None = None
        self._loss: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the network's buffers, which have their places on the device now."""
        self._buffers = _KeptBuffers(network_of(pl_module))

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
            self._answer(trainer, pl_module)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hear the answer while the backward pass runs."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
            self._answer(trainer, pl_module)

    def _answer(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        is_bad, loss, batch = self._is_bad, self._loss, self._batch
        self._is_bad = self._loss = self._batch = None
        assert is_bad is not None
        assert loss is not None
        if is_bad.item() == 0:
            return
        self._buffers.restore()
        pl_module.zero_grad()
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


class _KeptBuffers:
    """The buffers of a network as they were before a step, copied in few launches per dtype.

    They are looked up by name each time, since a forward pass may put others in their places.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._places: list[tuple[dict[str, Tensor | None], str]] = []
        self._kept: list[Tensor] = []
        self._shapes: list[torch.Size] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copy them as they are."""
        found = [buffers.get(name) for buffers, name in self._places]
        if not found or [None if b is None else b.shape for b in found] != self._shapes:
            self._begin()
            return
        by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for buffer, kept in zip(found, self._kept, strict=True):
            assert buffer is not None
            targets, sources = by_dtype.setdefault(buffer.dtype, ([], []))
            targets.append(kept)
            sources.append(buffer)
        for targets, sources in by_dtype.values():
            torch._foreach_copy_(targets, sources)

    @torch.no_grad()
    def restore(self) -> None:
        """Bring them back, where it can be in the same tensors: graphs and averages read these."""
        for (buffers, name), kept in zip(self._places, self._kept, strict=True):
            now = buffers.get(name)
            if now is None or now.shape != kept.shape:
                buffers[name] = kept.clone()
            else:
                now.copy_(kept)

    def _begin(self) -> None:
        """Find and copy those that there are."""
        places = [
            (module._buffers, name, buffer)
            for module in self._network.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._places = [(buffers, name) for buffers, name, _ in places]
        self._kept = [buffer.clone() for _, _, buffer in places]
        self._shapes = [buffer.shape for _, _, buffer in places]


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
