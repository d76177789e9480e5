"""Train a network with Lightning."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from manystream.data.sampler import own_sampler, select_before_reading
from manystream.models import StreamNetwork
from manystream.training.history import History, HistoryRecorder
from manystream.training.module import ClassifierModule
from manystream.training.options import FitOptions
from manystream.training.trainer import as_loader, trainer_session


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
        ValueError: if a batch does not fit the network, there is none, or modality dropout is
            asked of a network with one stream.
        KeyboardInterrupt: on Ctrl-C, after what was logged has been written.
    """
    options = options or FitOptions()
    dropout = options.make_dropout(network.num_streams)
    pl.seed_everything(options.seed, workers=True, verbose=False)
    sampler = own_sampler(train_loader)
    if sampler is not None:
        sampler.epoch = 0
    if not network.training:  # Lightning would train it as it is
        network.train()
    recorder = HistoryRecorder(out_dir and out_dir / "history.json")
    module = ClassifierModule(network, options, dropout=dropout)
    session = trainer_session(
        progress=options.progress,
        max_epochs=options.epochs,
        accelerator=options.accelerator,
        precision=options.precision,
        gradient_clip_val=options.gradient_clip,
        callbacks=[recorder, *_checkpoints(out_dir)],
        logger=_loggers(out_dir),
        enable_checkpointing=out_dir is not None,
    )
    select = None if dropout is None else dropout.draw
    with session as trainer, select_before_reading(train_loader, select):
        trainer.fit(module, as_loader(train_loader), as_loader(val_loader))
    if not recorder.history:
        raise ValueError("train_loader has no batch; expected at least one")
    return recorder.history


def check_fit(options: FitOptions, num_streams: int) -> None:
    """Raise what :func:`fit` would raise about its options, before anything is written.

    Args:
        options: how to train.
        num_streams: number of streams of the network.

    Raises:
        ValueError: if modality dropout does not fit the number of streams, or there is no such
            accelerator here.
    """
    options.make_dropout(num_streams)
    with trainer_session(
        progress=False, accelerator=options.accelerator, precision=options.precision
    ):
        pass


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
