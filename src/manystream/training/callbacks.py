"""The callbacks of a run, in the order in which they must act."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping

from manystream.models import StreamNetwork
from manystream.models.inspection import BalancePenalty
from manystream.tasks import Task
from manystream.training.aids.freezing import StreamFreezing
from manystream.training.aids.gradient_norms import GradientNorms
from manystream.training.aids.subset_accuracy import SubsetAccuracy
from manystream.training.loss_guard import LossGuard
from manystream.training.options import FitOptions
from manystream.training.param_groups import check_multipliers, stream_modules
from manystream.training.recipe.averaging import WeightAverage
from manystream.training.recipe.best import RestoreBest
from manystream.training.recipe.loss import make_loss
from manystream.training.reports.history import HistoryRecorder
from manystream.training.reports.loggers import check_loggers
from manystream.training.reports.throughput import Throughput


def make_callbacks(
    options: FitOptions, network: StreamNetwork, task: Task, recorder: HistoryRecorder
) -> list[pl.Callback]:
    """What watches and steers a run, but for its checkpoints.

    Args:
        options: how the network is trained.
        network: the network.
        task: what it is trained on.
        recorder: takes down what the others log, and so comes after those that do.
    """
    callbacks: list[pl.Callback] = [
        LossGuard(),
        Throughput(),
        *_aids(options, network, task),
        recorder,
    ]
    average = None
    if options.ema_decay is not None:
        average = WeightAverage(options.ema_decay)
        callbacks.append(average)
    if options.restore_best:
        callbacks.append(RestoreBest(options.monitor, options.monitor_mode, average))
    if options.early_stopping_patience is not None:
        callbacks.append(_early_stopping(options, options.early_stopping_patience))
    return callbacks


def check_against_network(
    options: FitOptions,
    network: StreamNetwork,
    task: Task,
    train_loader: Iterable[Any],
    *,
    has_validation: bool,
) -> None:
    """Refuse options that do not fit the network or the data, before anything is written.

    Args:
        options: how the network is to be trained.
        network: the network.
        task: what it is to be trained on.
        train_loader: training batches, of which none is read.
        has_validation: whether there are validation batches.

    Raises:
        ValueError: naming the option.
    """
    check_multipliers(network, options.learning_rate_multipliers)
    make_loss(task, options, train_loader)
    check_loggers(options.loggers)
    if options.balance_penalty > 0:
        BalancePenalty(network)
    if options.subset_accuracy_every and network.num_streams < 2:
        raise ValueError("subset_accuracy_every asks for subsets of a network with one stream")
    if options.freeze_patience is not None:
        for name in network.stream_names:
            stream_modules(network, name)
    if not has_validation:
        _check_without_validation(options)


def _aids(options: FitOptions, network: StreamNetwork, task: Task) -> list[pl.Callback]:
    names, aids = network.stream_names, list[pl.Callback]()
    if options.subset_accuracy_every:
        aids.append(SubsetAccuracy(options.subset_accuracy_every, names, task))
    if options.freeze_patience is not None:
        aids.append(StreamFreezing(options.freeze_patience, names, task))
    if options.log_gradient_norms:
        aids.append(GradientNorms())
    return aids


def _early_stopping(options: FitOptions, patience: int) -> EarlyStopping:
    return EarlyStopping(
        options.monitor,
        patience=patience,
        mode=options.monitor_mode,
        check_on_train_epoch_end=True,
    )


def _check_without_validation(options: FitOptions) -> None:
    asked = {
        "schedule plateau": options.schedule == "plateau",
        "early_stopping_patience": options.early_stopping_patience is not None,
        "restore_best": options.restore_best,
    }
    watching = [name for name, is_asked in asked.items() if is_asked]
    if watching and options.monitor.startswith("val_"):
        raise ValueError(
            f"{watching[0]} looks at {options.monitor}, but there is no val_loader; give one, or "
            "set monitor to train_loss"
        )
    if options.subset_accuracy_every:
        raise ValueError("subset_accuracy_every measures validation batches; give a val_loader")
