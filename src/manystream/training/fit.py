"""Train a network with Lightning."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from manystream.data.sampler import StreamBatchSampler
from manystream.dropout import ModalityDropout
from manystream.models import StreamNetwork
from manystream.training.history import History, HistoryRecorder
from manystream.training.module import ClassifierModule
from manystream.training.options import FitOptions
from manystream.training.trainer import trainer_session


def fit(
    network: StreamNetwork,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any] | None = None,
    options: FitOptions | None = None,
    *,
    out_dir: Path | None = None,
) -> History:
    """Train a network; its weights are those of the last epoch.

    Args:
        network: the network, trained in place.
        train_loader: batches as :func:`read_batch` takes them. A loader of ours draws modality
            dropout before it reads an image; for any other it is drawn before the copy to the
            device.
        val_loader: batches to measure after every epoch.
        options: how to train.
        out_dir: folder for checkpoints, logs and the history; without one, nothing is written.

    Returns:
        Loss, accuracy, mean class accuracy and dropout probability of every epoch.

    Raises:
        ValueError: if a batch does not fit the network, or modality dropout is asked of a network
            with one stream.
        KeyboardInterrupt: on Ctrl-C, after what was logged has been written.
    """
    options = options or FitOptions()
    pl.seed_everything(options.seed, workers=True, verbose=False)
    dropout = make_dropout(options, network.num_streams) if options.modality_dropout else None
    sampler = getattr(train_loader, "batch_sampler", None)
    if isinstance(sampler, StreamBatchSampler):
        sampler.epoch = 0
        sampler.select = None if dropout is None else dropout.draw
    recorder = HistoryRecorder(out_dir and out_dir / "history.json")
    module = ClassifierModule(network, options, dropout=dropout)
    with trainer_session(
        progress=options.progress,
        max_epochs=options.epochs,
        accelerator=options.accelerator,
        precision=options.precision,
        gradient_clip_val=options.gradient_clip,
        callbacks=[recorder, *_checkpoints(out_dir)],
        logger=_loggers(out_dir),
        enable_checkpointing=out_dir is not None,
    ) as trainer:
        trainer.fit(module, train_loader, val_loader)
    return recorder.history


def make_dropout(options: FitOptions, num_streams: int) -> ModalityDropout:
    """Build the modality dropout that the options describe."""
    return ModalityDropout(
        num_streams,
        options.modality_dropout_rate,
        schedule=options.modality_dropout_schedule,
        start=options.modality_dropout_start,
        ramp=options.modality_dropout_ramp,
        max_blanked=options.modality_dropout_max_blanked,
        stratified=options.modality_dropout_stratified,
        seed=options.seed,
    )


def _checkpoints(out_dir: Path | None) -> list[pl.Callback]:
    if out_dir is None:
        return []
    return [ModelCheckpoint(out_dir / "checkpoints", filename="last", enable_version_counter=False)]


def _loggers(out_dir: Path | None) -> list[Logger]:
    if out_dir is None:
        return []
    return [
        CSVLogger(out_dir, name="", version="logs"),
        TensorBoardLogger(out_dir, name="", version="logs"),
    ]
