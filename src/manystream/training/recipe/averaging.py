"""An exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

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
        """Take in the weights after an optimizer step."""
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._update(network_of(pl_module).state_dict())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average."""
        self._trade(pl_module)
        self._in_place_of_weights = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train on with the weights."""
        self._trade(pl_module)
        self._in_place_of_weights = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average in the network."""
        network_of(pl_module).load_state_dict(self.weights)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Leave the weights in the network, also where its validation was broken off."""
        if self._in_place_of_weights:
            self.on_validation_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The average, and the steps that it has taken in."""
        return {"weights": self.weights, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
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
