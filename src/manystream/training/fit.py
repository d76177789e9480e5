"""Train a network with Lightning, from the start or from where a run was cut off."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from manystream.data.sampler import select_before_reading, shared
from manystream.models import StreamNetwork
from manystream.tasks import Task
from manystream.training.callbacks import check_against_network, make_callbacks
from manystream.training.checkpoints import StateIO, kept_random_state
from manystream.training.distributed import JointBatchNorm, first_to_start
from manystream.training.feed import Feed, check_lasts, share_of
from manystream.training.memory.out_of_memory import (
    LatestBatch,
    StepWatch,
    explain_out_of_memory,
)
from manystream.training.module import ClassifierModule
from manystream.training.options import FitOptions
from manystream.training.recipe.loss import make_loss
from manystream.training.recipe.precision import (
    kept_arithmetic,
    lightning_precision,
    precision_plugins,
)
from manystream.training.reports.history import History, HistoryRecorder
from manystream.training.reports.loggers import make_loggers
from manystream.training.run_folder import RunFolder, check_same_network, finish
from manystream.training.state_saver import StateSaver
from manystream.training.termination import EndAtStep, EndInValidation, Terminated, Termination
from manystream.training.trainer import trainer_session

_logger = logging.getLogger(__name__)


def fit(
    network: StreamNetwork,
    task: Task,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any] | None = None,
    options: FitOptions | None = None,
    *,
    out_dir: Path | None = None,
    resume: bool = False,
) -> History:
    """Train a network; its weights are those of the last epoch, or what the options say.

    With several devices, every process runs the program that calls this, and each is here at the
    same time: on one machine the first one starts the others, or ``torchrun`` starts all.

    Args:
        network: the network, trained in place.
        task: what it is trained on.
        train_loader: batches as :func:`read_batch` takes them. A loader of ours draws modality
            dropout before it reads an image; for any other it is drawn before the copy to the
            device.
        val_loader: batches to measure after every epoch.
        options: how to train.
        out_dir: folder for checkpoints, logs and the history; without one, nothing is written.
        resume: whether to go on with the run in ``out_dir``, called with the same arguments; it
            ends, on a CPU bit for bit but for the time it took, as if it had not been cut off.
            Where nothing has been saved yet, it begins.

    Returns:
        Loss, accuracy, mean class accuracy, dropout probability and training samples per second of
        every epoch.

    Raises:
        ValueError: if a batch does not fit the network, there is none, or modality dropout is
            asked of a network with one stream; if the folder holds a run and ``resume`` is not
            given, another process trains into it, or its checkpoint is of another network.
        StepOutOfMemory: if a training step does not fit into memory, with what would.
        OSError: if the disk does not take a checkpoint; those before it are kept.
        KeyboardInterrupt: on Ctrl-C, after what was logged has been written.
        Terminated: on SIGTERM to any of the processes, in all of them at the same step, after the
            state has been saved; it is a ``SystemExit`` with status 143. A second one, sent later,
            ends the process at once.
    """
    options = options or FitOptions()
    has_validation = val_loader is not None
    check_against_network(options, network, task, train_loader, has_validation=has_validation)
    check_lasts(train_loader, options.epochs, "train_loader")
    check_lasts(val_loader, options.epochs, "val_loader")
    if out_dir is None:
        if resume:
            raise ValueError("resume is True, but there is no out_dir; name the run's folder")
        with _termination_told(None):
            return _train(network, task, train_loader, val_loader, options, None, None)
    folder = RunFolder(out_dir)
    with _termination_told(folder), folder.held(resume=resume, first=first_to_start()):
        newest = folder.newest() if resume else None
        if newest is not None:
            check_same_network(network, *newest)
            if newest[0] == folder.final:
                return finish(network, newest[1])
        state = newest and newest[0]
        return _train(network, task, train_loader, val_loader, options, folder, state)


def check_fit(options: FitOptions, num_streams: int) -> None:
    """Raise what :func:`fit` would raise about its options, before anything is written.

    Args:
        options: how to train.
        num_streams: number of streams of the network.

    Raises:
        ValueError: if modality dropout does not fit the number of streams, or there is no such
            accelerator, or not as many devices, here.
    """
    options.make_dropout(num_streams)
    with trainer_session(progress=False, **_place(options)):
        pass


@contextmanager
def _termination_told(folder: RunFolder | None) -> Iterator[None]:
    """Say where a run was ended by SIGTERM, and how to go on."""
    try:
        yield
    except Terminated as ended:
        state = None if folder is None else folder.latest
        kept = f"its state is in {state}; go on with resume=True"
        if folder is None:
            kept = "without an out_dir no state is kept"
        elif state is None:
            kept = "there was no state to save yet"
        ended.message += f"; {kept}"
        if first_to_start():
            _logger.warning(ended.message)
        raise


def _train(
    network: StreamNetwork,
    task: Task,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any] | None,
    options: FitOptions,
    folder: RunFolder | None,
    state: Path | None,
) -> History:
    latest = LatestBatch()
    # The trainer is made inside: an error about memory may be kept for long, and keeps none.
    return explain_out_of_memory(
        lambda: _run(network, task, train_loader, val_loader, options, folder, state, latest),
        network,
        latest,
        options.precision,
    )


def _run(
    network: StreamNetwork,
    task: Task,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any] | None,
    options: FitOptions,
    folder: RunFolder | None,
    state: Path | None,
    latest: LatestBatch,
) -> History:
    dropout = options.make_dropout(network.num_streams)
    recorder = HistoryRecorder(None if folder is None else folder.path / "history.json")
    loss = make_loss(task, options, train_loader)
    module = ClassifierModule(network, task, options, dropout=dropout, loss=loss)
    feed = Feed(train_loader)
    termination = Termination()
    saver = None if folder is None else _saver(folder, feed, options)
    callbacks = [
        EndInValidation(termination),
        StepWatch(latest),
        *make_callbacks(options, network, task, recorder),
        *([] if saver is None else [saver]),
        EndAtStep(termination, saver),
    ]
    if not network.training:  # Lightning would train it as it is
        network.train()
    with ExitStack() as stack:
        stack.enter_context(termination.listening())
        stack.enter_context(kept_random_state())
        stack.enter_context(kept_arithmetic(options.precision))
        trainer = stack.enter_context(_session(options, folder, callbacks))
        place = trainer.global_rank, trainer.world_size
        pl.seed_everything(options.seed + place[0], workers=True, verbose=False)
        if dropout is not None:
            dropout.rank = place[0]
        stack.enter_context(shared(train_loader, *place))
        stack.enter_context(shared(val_loader, *place, even=False))
        select = None if dropout is None else dropout.draw
        stack.enter_context(select_before_reading(train_loader, select))
        device = trainer.strategy.root_device
        feed.loader = share_of(train_loader, *place, seed=options.seed, device=device)
        val_feed = None
        if val_loader is not None:
            val_feed = Feed(share_of(val_loader, *place, even=False), "val_loader")
        trainer.fit(module, feed, val_feed, ckpt_path=state, weights_only=False)
        if folder is not None and recorder.history:
            trainer.save_checkpoint(folder.final)
        if termination.agreed():
            raise Terminated("SIGTERM came when training had ended")
    if not recorder.history:
        raise ValueError("train_loader has no batch; expected at least one")
    return recorder.history


def _session(options: FitOptions, folder: RunFolder | None, callbacks: list[pl.Callback]) -> Any:
    plugins: list[Any] = [StateIO(), *precision_plugins(options.precision)]
    if options.sync_batchnorm:
        plugins.append(JointBatchNorm())
    return trainer_session(
        progress=options.progress,
        max_epochs=options.epochs,
        gradient_clip_val=options.gradient_clip,
        accumulate_grad_batches=options.accumulate_batches,
        deterministic=options.deterministic or None,
        callbacks=callbacks,
        plugins=plugins,
        logger=[]
        if folder is None
        else make_loggers(options.loggers, folder.path, folder.log_name),
        enable_checkpointing=True,  # to Lightning, what ends a run is one that saves
        **_place(options),
    )


def _place(options: FitOptions) -> dict[str, Any]:
    return {
        "accelerator": options.accelerator,
        "precision": lightning_precision(options.precision),
        **options.distribution(),
    }


def _saver(folder: RunFolder, feed: Feed, options: FitOptions) -> StateSaver:
    return StateSaver(
        folder,
        feed,
        options.monitor,
        options.monitor_mode,
        every_n_steps=options.checkpoint_every_steps,
    )
