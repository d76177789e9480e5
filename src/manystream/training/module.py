"""The Lightning module of a run: a network with its loss, metrics, optimizer and steps."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MetricCollection

from manystream.batch import StreamBatch, read_batch
from manystream.choices import first_few
from manystream.data.sampler import Selection, own_sampler
from manystream.dropout import ModalityDropout
from manystream.graphs import GraphedStep
from manystream.models import StreamNetwork
from manystream.models.inspection import BalancePenalty
from manystream.tasks import StepLoss, Task, forward_and_loss
from manystream.training.distributed import exchanges_during_backward, share_of_samples
from manystream.training.feed import check_same_length
from manystream.training.optimizer import build_optimizer
from manystream.training.options import FitOptions
from manystream.training.param_groups import make_param_groups
from manystream.training.schedule import make_schedules

_SAMPLES_SHOWN = 16

_logger = logging.getLogger(__name__)

Step = Callable[[StreamBatch], tuple[Tensor, Tensor]]
"""From a batch with targets to its loss, (), and the network's output, (B, ...)."""


class TrainingModule(pl.LightningModule):
    """Trains and validates one network.

    Batches become compact on the host, before they are copied, so that an absent or blanked image
    is not even moved to the device.

    Args:
        network: the network.
        task: what it is trained on.
        options: how it is trained.
        dropout: modality dropout of the training batches, if there is one.
        loss: of a training step; evaluation's by default.
    """

    def __init__(
        self,
        network: StreamNetwork,
        task: Task,
        options: FitOptions | None = None,
        *,
        dropout: ModalityDropout | None = None,
        loss: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.task = task
        self.options = options or FitOptions()
        self.dropout = dropout
        self.see = self.options.make_views(network.stream_names)
        self.loss = loss or StepLoss(task.loss)
        self.balance = BalancePenalty(network) if self.options.balance_penalty > 0 else None
        self._step: Step
        self.train_metrics = task.metrics().clone(prefix="train_")
        self.val_metrics = task.metrics().clone(prefix="val_")
        self._logged: set[str | None] = set()
        self._val_finite: list[tuple[Tensor, Sequence[str]]] = []

    @property
    def in_graphs(self) -> bool:
        """Tell whether training steps are replayed from CUDA graphs."""
        return isinstance(self._step, GraphedStep)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> StreamBatch:
        """Check a loader's batch and take out what is blanked, on the host."""
        compact = read_batch(batch, self.network.in_channels)
        if len(compact):
            self.task.check_target(compact.target, len(compact), compact.ids)
        if not self.trainer.training:
            return compact
        if self.see is not None:
            return replace(compact, views=self.see(compact.presence))
        select = self._train_select()
        return compact if select is None else compact.keep(select(compact.presence.mask))

    def training_step(self, batch: StreamBatch, batch_idx: int) -> Tensor | None:
        """Compute the loss of a batch, shape ()."""
        share: Tensor | None = None
        if self.trainer.world_size > 1:
            share = share_of_samples(len(batch), self.trainer.strategy.root_device)
        if len(batch) == 0:
            return None
        if self.balance is None:
            loss, output = self._step(batch)
            penalty = None
        else:
            with self.balance.watching():
                loss, output = self._step(batch)
            penalty = self.balance.take()
        self._measure(self.train_metrics, batch, output, loss)
        if penalty is not None:
            self.log_mean("balance_penalty", penalty, len(batch))
            loss = loss + self.options.balance_penalty * penalty
        return loss if share is None else loss * share

    def validation_step(self, batch: StreamBatch, batch_idx: int) -> None:
        """Measure a batch."""
        if len(batch) == 0:
            return
        output = self.network(batch)
        loss = self.task.loss(output, batch.target)
        names = batch.ids or [f"number {b} of batch {batch_idx}" for b in range(len(batch))]
        # A mean is of all samples alike.
        finite = loss.isfinite().expand(len(batch)) if loss.dim() == 0 else loss.isfinite()
        self._val_finite.append((finite.reshape(len(batch), -1).all(dim=1), names))
        self._measure(self.val_metrics, batch, output, loss.mean())
        num_samples = float(len(batch))
        self.log("val_num_samples", num_samples, reduce_fx="sum", batch_size=1, sync_dist=True)

    def log_mean(self, name: str, value: Tensor, weight: int = 1) -> None:
        """Log a value's weighted mean over the epoch and all processes."""
        self.log(
            name,
            value.detach(),
            on_step=False,
            on_epoch=True,
            batch_size=float(weight),  # type: ignore[arg-type]  # whole numbers' mean is rounded
            sync_dist=True,
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer and its learning rate schedules."""
        options = self.options
        # A loss scaler takes scale and clipping out of a fused step's hands; it cannot be fused.
        fused = self.device.type == "cuda" and options.precision != "16-mixed"
        optimizer = build_optimizer(
            options.optimizer,
            make_param_groups(self.network, options),
            options.learning_rate,
            options.optimizer_arguments,
            fused=fused,
        )
        num_steps = int(self.trainer.estimated_stepping_batches)  # -1: the loader has no length
        length = num_steps if num_steps > 0 else None
        schedules = make_schedules(optimizer, options, length, options.monitored(self.task))
        return [optimizer], schedules  # type: ignore[return-value] # dicts, as Lightning reads them

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer was asked to, of fused optimizers too.

        Lightning refuses that in mixed precision, since such a step takes gradients that are still
        scaled. Without a loss scaler none are.
        """
        precision = self.trainer.precision_plugin
        unscaled = isinstance(precision, MixedPrecision) and precision.scaler is None
        if unscaled and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        else:
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )

    def on_train_start(self) -> None:
        """Begin at the epoch, and the batch in it, that the run is at.

        Raises:
            ValueError: if processes that train together have not as many batches.
        """
        if self.trainer.world_size > 1:
            check_same_length(self.trainer.num_training_batches, self.trainer.strategy.root_device)
        self._step = make_step(self.network, self.loss, self.options, self.trainer)
        if self.in_graphs and self.see and own_sampler(self.trainer.train_dataloader) is None:
            _logger.warning(
                "train_loader is not one of manystream.data: where samples lack streams, the "
                "numbers of rows change from batch to batch, and few steps are replayed from CUDA "
                "graphs; ms.data.loaders keeps these numbers few"
            )
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        self._set_epoch(self.current_epoch, done)

    def on_train_epoch_start(self) -> None:
        """Have metrics logged again."""
        self._logged.clear()

    def on_train_epoch_end(self) -> None:
        """Move the draws on to the next epoch before its batches are asked for."""
        self._set_epoch(self.current_epoch + 1)

    def on_validation_epoch_start(self) -> None:
        """Have metrics of validation logged again."""
        self._logged.discard(self.val_metrics.prefix)
        self._val_finite.clear()

    def on_validation_epoch_end(self) -> None:
        """Say which samples make ``val_loss`` something else than a finite number."""
        finite, self._val_finite = self._val_finite, []
        if not finite:
            return
        flags = torch.cat([flags for flags, _ in finite]).tolist()  # waited for once an epoch
        names = [name for _, names in finite for name in names]
        bad = [name for name, is_finite in zip(names, flags, strict=True) if not is_finite]
        if bad:
            warnings.warn(
                f"val_loss of epoch {self.current_epoch} (from 0) is not a finite number: the "
                f"network gives NaN or infinity for {len(bad)} of {len(names)} validation samples, "
                f"{first_few(bad, _SAMPLES_SHOWN)}; look at these images",
                stacklevel=2,
            )

    def _measure(
        self, metrics: MetricCollection, batch: StreamBatch, output: Tensor, loss: Tensor
    ) -> None:
        metrics.update(self.task.predict(output.detach()), batch.target)
        if metrics.prefix not in self._logged:  # once an epoch: Lightning holds on to the metrics
            self._logged.add(metrics.prefix)
            self.log_dict(dict(metrics.items()), on_step=False, on_epoch=True)
        self.log_mean(f"{metrics.prefix}loss", loss, len(batch))

    def _train_select(self) -> Selection | None:
        """Draw here only where the loader's own sampler has not drawn before reading."""
        if self.dropout is None or own_sampler(self.trainer.train_dataloader) is not None:
            return None
        return self.dropout.draw

    def _set_epoch(self, epoch: int, batch: int = 0) -> None:
        if self.dropout is not None:
            self.dropout.begin(epoch, batch)
        sampler = own_sampler(self.trainer.train_dataloader)
        if sampler is not None:
            sampler.epoch, sampler.start = epoch, batch


def make_loss(task: Task, options: FitOptions, train_loader: Iterable[Any]) -> StepLoss:
    """Make the loss of a run's steps.

    Args:
        task: what is trained.
        options: which loss.
        train_loader: batches, of whose data set a task may count ``targets``.

    Raises:
        ValueError: if the options do not fit the task or the targets.
    """
    dataset = getattr(train_loader, "dataset", None)
    owner = getattr(dataset, "source", dataset)
    return StepLoss(task.training_loss(options, getattr(owner, "targets", None)))


def make_step(
    network: StreamNetwork, loss: nn.Module, options: FitOptions, trainer: pl.Trainer
) -> Step:
    """Make a step as the options want it: in CUDA graphs where they can, else an eager pass.

    Raises:
        ValueError: if ``cuda_graphs`` is ``"on"`` where there can be none.
    """
    obstacle = _obstacle(options, trainer)
    if options.cuda_graphs == "on" and obstacle:
        raise ValueError(f"cuda_graphs is 'on', but {obstacle}; leave it at 'auto', or 'off'")
    if options.cuda_graphs != "off" and not obstacle:
        return GraphedStep(network, loss)

    return partial(forward_and_loss, network, loss)


def _obstacle(options: FitOptions, trainer: pl.Trainer) -> str | None:
    """Say why there can be no captured step; None if there can."""
    if trainer.strategy.root_device.type != "cuda":
        return "there is no GPU"
    if exchanges_during_backward(trainer):
        return f"strategy {options.strategy!r} averages gradients while the backward pass runs"
    if trainer.world_size > 1 and options.sync_batchnorm:
        return "joint batch norms meet the other processes in every layer"
    if options.balance_penalty > 0:
        return "the balance penalty looks at every forward pass"
    return None
