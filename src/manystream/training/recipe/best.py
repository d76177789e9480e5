"""Which epoch's weights a run leaves."""

from __future__ import annotations

import math
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor

from manystream.training.param_groups import network_of
from manystream.training.recipe.averaging import WeightAverage


class RestoreBest(pl.Callback):
    """Keeps the best epoch's weights and buffers, and gives them to the network at the end.

    They are part of the checkpoint, so that a resumed run still has them. The first of equal
    epochs is the best.

    Args:
        monitor: logged value.
        mode: whether the least or the most of it is best.
        average: the average of the weights that was measured in their place, if there is one.
    """

    def __init__(
        self, monitor: str, mode: Literal["min", "max"], average: WeightAverage | None = None
    ) -> None:
        self.monitor = monitor
        self.sign = 1 if mode == "max" else -1
        self.average = average
        self.best_score: float | None = None
        self.weights: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights if no earlier epoch was as good."""
        score = self.sign * trainer.callback_metrics[self.monitor].item()
        if score > (-math.inf if self.best_score is None else self.best_score):
            self.best_score = score
            self.weights = self._measured(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the best weights to the network."""
        if self.weights:
            network_of(pl_module).load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Best score, and its weights."""
        return {"best_score": self.best_score, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.best_score, self.weights = state_dict["best_score"], dict(state_dict["weights"])

    def _measured(self, pl_module: pl.LightningModule) -> dict[str, Tensor]:
        average = self.average
        weights = network_of(pl_module).state_dict() if average is None else average.weights
        # On the host: they are touched once an epoch, and the device has little to spare.
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}
