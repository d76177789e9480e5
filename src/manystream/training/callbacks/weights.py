"""Which weights a run leaves: an average over its steps, or the best epoch's."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from manystream.training.options import Monitor
from manystream.training.param_groups import network_of


class WeightAverage(pl.Callback):
    r"""Averages weights and running statistics over the steps; the average is what is validated.

    .. math:: a_t = d_t a_{t-1} + (1 - d_t) w_t, \qquad d_t = \min(d, (1 + t) / (10 + t))

    where t counts optimizer steps from 1; the decay d starts low so that a short run is not an
    average of its initial weights. Integer buffers are taken as they are. At the end of training
    the network has the average.

    Lightning's own ``WeightAveraging`` is made before the network moves to its device, so that
    every step would copy all weights to the host, and trades the weights back before the epoch's
    metrics are known.

    Args:
        decay: decay d per step.

    Attributes:
        weights: the average, by the names of the network's state.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {}
        self._steps = 0
        self._in_place_of_weights = False

    @torch.no_grad()
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the weights as they are, or go on with a restored average."""
        state = network_of(pl_module).state_dict()
        restored = self.weights or state
        self.weights = {name: restored[name].to(t.device, copy=True) for name, t in state.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._update(network_of(pl_module).state_dict())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._trade(pl_module)
        self._in_place_of_weights = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._trade(pl_module)
        self._in_place_of_weights = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network_of(pl_module).load_state_dict(self.weights)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Leave the weights in the network, also where its validation was broken off."""
        if self._in_place_of_weights:
            self.on_validation_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weights, self._steps = dict(state_dict["weights"]), state_dict["steps"]

    def _update(self, state: dict[str, Tensor]) -> None:
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        averages, tensors = [], []
        for name, tensor in state.items():
            if tensor.is_floating_point():
                averages.append(self.weights[name])
                tensors.append(tensor)
            else:
                self.weights[name].copy_(tensor)
        torch._foreach_lerp_(averages, tensors, 1 - decay)

    @torch.no_grad()
    def _trade(self, pl_module: pl.LightningModule) -> None:
        for name, tensor in network_of(pl_module).state_dict().items():
            weight = tensor.clone()
            tensor.copy_(self.weights[name])
            self.weights[name].copy_(weight)


class RestoreBest(pl.Callback):
    """Keeps the best epoch's weights and buffers, and gives them to the network at the end.

    They are part of the checkpoint, so that a resumed run still has them. The first of equal
    epochs is the best.

    Args:
        monitor: what tells it.
        average: the average of the weights that was measured in their place, if there is one.
    """

    def __init__(self, monitor: Monitor, average: WeightAverage | None = None) -> None:
        self.monitor = monitor
        self.average = average
        self.best_value: float | None = None
        self.weights: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics[self.monitor.name].item()
        if self.monitor.is_better(value, self.best_value):
            average, self.best_value = self.average, value
            state = network_of(pl_module).state_dict() if average is None else average.weights
            # On the host: they are touched once an epoch, and the device has little to spare.
            self.weights = {n: t.detach().to("cpu", copy=True) for n, t in state.items()}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.weights:
            network_of(pl_module).load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"best_value": self.best_value, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_value, self.weights = state_dict["best_value"], dict(state_dict["weights"])
