"""The Lightning module: loss, metrics and optimizer around a network."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from manystream.data.sampler import Selection, own_sampler
from manystream.dropout import ModalityDropout
from manystream.models import StreamNetwork
from manystream.streams import StreamBatch
from manystream.training.batches import read_batch
from manystream.training.metrics import MeanClassAccuracy
from manystream.training.optimizer import configure_optimizer
from manystream.training.options import FitOptions


class ClassifierModule(pl.LightningModule):
    """Trains and evaluates one network.

    Batches become compact on the host, before they are copied, so that an absent or blanked image
    is not even moved to the device.

    Args:
        network: the network.
        options: how it is trained.
        dropout: modality dropout of the training batches, if there is one.
        select: which streams an evaluated batch keeps; None keeps all.
    """

    def __init__(
        self,
        network: StreamNetwork,
        options: FitOptions | None = None,
        *,
        dropout: ModalityDropout | None = None,
        select: Selection | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.options = options or FitOptions()
        self.dropout = dropout
        self.select = select
        self.train_metrics = _metrics(network.num_classes, "train_")
        self.val_metrics = _metrics(network.num_classes, "val_")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> StreamBatch:
        """Check a loader's batch and take out what is blanked, on the host."""
        compact = read_batch(batch, self.network.in_channels, self.network.num_classes)
        select = self._train_select() if self.trainer.training else self.select
        return compact if select is None else compact.keep(select(compact.presence.mask))

    def training_step(self, batch: StreamBatch, batch_idx: int) -> Tensor | None:
        """Loss of a batch, shape ()."""
        return self._step(batch, self.train_metrics, self.options.label_smoothing)

    def validation_step(self, batch: StreamBatch, batch_idx: int) -> None:
        """Measure a batch."""
        self._step(batch, self.val_metrics)
        self.log("val_num_samples", float(len(batch)), reduce_fx="sum", batch_size=1)

    def predict_step(self, batch: StreamBatch, batch_idx: int) -> Tensor:
        """Class probabilities in the loader's order, shape (B, num_classes)."""
        logits: Tensor = self.network(batch)
        return logits.float().softmax(dim=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with a warm-up and a cosine."""
        num_steps = int(self.trainer.estimated_stepping_batches)  # -1: the loader has no length
        return configure_optimizer(self.network, self.options, num_steps if num_steps > 0 else None)

    def on_train_start(self) -> None:
        """Begin at the epoch that the run is at."""
        self._set_epoch(self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Log what the epoch uses; the learning rate is that of its first step."""
        probability = 0.0 if self.dropout is None else self.dropout.probability(self.current_epoch)
        self.log("dropout_probability", probability)
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self) -> None:
        """Move the draws on to the next epoch before its batches are asked for."""
        self._set_epoch(self.current_epoch + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the modality dropout with the weights."""
        if self.dropout is not None:
            checkpoint["modality_dropout"] = self.dropout.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the modality dropout where the checkpoint was taken."""
        if self.dropout is not None and "modality_dropout" in checkpoint:
            self.dropout.load_state_dict(checkpoint["modality_dropout"])

    def _step(
        self, batch: StreamBatch, metrics: MetricCollection, smoothing: float = 0.0
    ) -> Tensor | None:
        if len(batch) == 0:
            return None
        if batch.target is None:
            raise ValueError("the loader's batches have no target; expected one per sample")
        logits = self.network(batch)
        loss: Tensor = F.cross_entropy(logits, batch.target, label_smoothing=smoothing)
        metrics.update(logits.detach(), batch.target)
        logged: dict[str, Any] = {f"{metrics.prefix}loss": loss.detach(), **dict(metrics.items())}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def _train_select(self) -> Selection | None:
        """Draw here only where the loader's own sampler has not drawn before reading."""
        if self.dropout is None or own_sampler(self.trainer.train_dataloader) is not None:
            return None
        return self.dropout.draw

    def _set_epoch(self, epoch: int) -> None:
        if self.dropout is not None:
            self.dropout.epoch = epoch
        sampler = own_sampler(self.trainer.train_dataloader)
        if sampler is not None:
            sampler.epoch = epoch


def _metrics(num_classes: int, prefix: str) -> MetricCollection:
    # Validation would wait for the device at every step; the boundary has checked.
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "mean_class_accuracy": MeanClassAccuracy(num_classes, validate_args=False),
        },
        prefix=prefix,
        compute_groups=False,
    )
