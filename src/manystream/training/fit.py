"""Train a network with Lightning, from the start or from where a run was cut off."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping

from manystream.data.sampler import select_before_reading, shared, stratified
from manystream.models import StreamNetwork
from manystream.models.inspection import BalancePenalty
from manystream.models.network import check_answers_by_view
from manystream.tasks import StepLoss, Task
from manystream.training.callbacks.freezing import StreamFreezing
from manystream.training.callbacks.loss_guard import LossGuard
from manystream.training.callbacks.step_watch import StepWatch
from manystream.training.callbacks.subset_accuracy import SubsetAccuracy
from manystream.training.callbacks.weights import RestoreBest, WeightAverage
from manystream.training.checkpoints import StateIO, kept_random_state
from manystream.training.distributed import JointBatchNorm, first_to_start
from manystream.training.feed import Feed, check_lasts, share_of
from manystream.training.history import (
    GradientNorms,
    History,
    HistoryRecorder,
    Throughput,
    check_loggers,
    make_loggers,
)
from manystream.training.module import TrainingModule, make_loss
from manystream.training.options import FitOptions
from manystream.training.out_of_memory import StepForm, explain_out_of_memory
from manystream.training.param_groups import check_multipliers, stream_modules
from manystream.training.run_folder import RunFolder, check_same_network, finish
from manystream.training.sigterm import Terminated
from manystream.training.state_saver import StateSaver
from manystream.training.termination import EndAtStep, EndInValidation, Termination
from manystream.training.trainer import (
    kept_arithmetic,
    lightning_precision,
    precision_plugins,
    trainer_session,
)

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
        Loss, metrics, dropout probability and training samples per second of every epoch.

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
    run = _Run(network, task, train_loader, val_loader, options)
    if out_dir is None:
        if resume:
            raise ValueError("resume is True, but there is no out_dir; name the run's folder")
        with _termination_told(None):
            return run.train()
    run.folder = RunFolder(out_dir)
    with _termination_told(run.folder), run.folder.held(resume=resume, first=first_to_start()):
        newest = run.folder.newest() if resume else None
        if newest is not None:
            check_same_network(network, *newest)
            if newest[0] == run.folder.final:
                return finish(network, newest[1])
            run.state = newest[0]
        return run.train()


def check_fit(options: FitOptions, stream_names: Sequence[str]) -> None:
    """Raise what :func:`fit` would raise about its options, before anything is written.

    Args:
        options: how to train.
        stream_names: names of the network's streams.

    Raises:
        ValueError: if modality dropout or subsets do not fit the streams, or there is no such
            accelerator, or not as many devices, here.
    """
    options.make_dropout(len(stream_names))
    options.make_views(stream_names)
    with trainer_session(progress=False, **_place(options)):
        pass


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
    monitor = options.monitored(task)
    check_multipliers(network, options.learning_rate_multipliers)
    make_loss(task, options, train_loader)
    if options.make_views(network.stream_names) is not None:
        check_answers_by_view(network)
    check_loggers(options.loggers)
    if options.balance_penalty > 0:
        BalancePenalty(network)
    if options.subset_accuracy_every and network.num_streams < 2:
        raise ValueError("subset_accuracy_every asks for subsets of a network with one stream")
    if options.freeze_patience is not None:
        for name in network.stream_names:
            stream_modules(network, name)
    if has_validation:
        return
    asked = {
        "schedule plateau": options.schedule == "plateau",
        "early_stopping_patience": options.early_stopping_patience is not None,
        "restore_best": options.restore_best,
    }
    watching = [name for name, is_asked in asked.items() if is_asked]
    if watching and monitor.name.startswith("val_"):
        raise ValueError(
            f"{watching[0]} looks at {monitor.name}, but there is no val_loader; give one, or set "
            "monitor to train_loss"
        )
    if options.subset_accuracy_every:
        raise ValueError("subset_accuracy_every measures validation batches; give a val_loader")


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


@dataclass
class _Run:
    """A run: what is trained on what, how, and where it is kept.

    Attributes:
        folder: where its states are; None keeps none.
        state: from which it goes on; None begins it.
    """

    network: StreamNetwork
    task: Task
    train_loader: Iterable[Any]
    val_loader: Iterable[Any] | None
    options: FitOptions
    folder: RunFolder | None = None
    state: Path | None = None
    latest: StepForm = field(default_factory=StepForm)

    def train(self) -> History:
        """Train to the end."""
        loss = make_loss(self.task, self.options, self.train_loader)
        # The trainer is made inside: an error about memory may be kept for long, and keeps none.
        return explain_out_of_memory(
            lambda: self._train(loss), self.network, loss, self.latest, self.options.precision
        )

    def _train(self, loss: StepLoss) -> History:
        options = self.options
        dropout = options.make_dropout(self.network.num_streams)
        path = None if self.folder is None else self.folder.path / "history.json"
        recorder, feed, termination = HistoryRecorder(path), Feed(self.train_loader), Termination()
        module = TrainingModule(self.network, self.task, options, dropout=dropout, loss=loss)
        if not self.network.training:  # Lightning would train it as it is
            self.network.train()
        with ExitStack() as stack:
            stack.enter_context(termination.listening())
            stack.enter_context(kept_random_state())
            stack.enter_context(kept_arithmetic(options.precision))
            callbacks = self._callbacks(recorder, feed, termination)
            trainer = stack.enter_context(self._session(callbacks))
            place = trainer.global_rank, trainer.world_size
            pl.seed_everything(options.seed + place[0], workers=True, verbose=False)
            if dropout is not None:
                dropout.rank = place[0]
            stack.enter_context(shared(self.train_loader, *place))
            stack.enter_context(shared(self.val_loader, *place, even=False))
            select = None if dropout is None else dropout.draw
            stack.enter_context(select_before_reading(self.train_loader, select))
            if module.see is not None:
                stack.enter_context(stratified(self.train_loader))
            device = trainer.strategy.root_device
            feed.loader = share_of(self.train_loader, *place, seed=options.seed, device=device)
            val_feed = None
            if self.val_loader is not None:
                val_feed = Feed(share_of(self.val_loader, *place, even=False), "val_loader")
            trainer.fit(module, feed, val_feed, ckpt_path=self.state, weights_only=False)
            if self.folder is not None and recorder.history:
                trainer.save_checkpoint(self.folder.final)
            if termination.agreed():
                raise Terminated("SIGTERM came when training had ended")
        if not recorder.history:
            raise ValueError("train_loader has no batch; expected at least one")
        return recorder.history

    def _callbacks(
        self, recorder: HistoryRecorder, feed: Feed, termination: Termination
    ) -> list[pl.Callback]:
        """Make the callbacks of the run, in the order in which they must act."""
        options, network, task = self.options, self.network, self.task
        monitor = options.monitored(task)
        callbacks = [
            EndInValidation(termination),
            StepWatch(self.latest),
            LossGuard(),
            Throughput(),
        ]
        if options.subset_accuracy_every:
            callbacks.append(SubsetAccuracy(options.subset_accuracy_every, network, task))
        if options.freeze_patience is not None:
            callbacks.append(StreamFreezing(options.freeze_patience, network.stream_names, task))
        if options.log_gradient_norms:
            callbacks.append(GradientNorms())
        callbacks.append(recorder)  # takes down what those before it log
        average = None if options.ema_decay is None else WeightAverage(options.ema_decay)
        if average is not None:
            callbacks.append(average)
        if options.restore_best:
            callbacks.append(RestoreBest(monitor, average))
        if options.early_stopping_patience is not None:
            callbacks.append(
                EarlyStopping(
                    monitor.name,
                    patience=options.early_stopping_patience,
                    mode=monitor.mode,
                    check_on_train_epoch_end=True,
                )
            )
        saver = None
        if self.folder is not None:
            every = options.checkpoint_every_steps
            saver = StateSaver(self.folder, feed, monitor, every_n_steps=every)
            callbacks.append(saver)
        return [*callbacks, EndAtStep(termination, saver)]

    def _session(self, callbacks: list[pl.Callback]) -> Any:
        options, folder = self.options, self.folder
        plugins: list[Any] = [StateIO(), *precision_plugins(options.precision)]
        if options.sync_batchnorm:
            plugins.append(JointBatchNorm())
        loggers = []
        if folder is not None:
            loggers = make_loggers(options.loggers, folder.path, folder.log_name)
        return trainer_session(
            progress=options.progress,
            max_epochs=options.epochs,
            gradient_clip_val=options.gradient_clip,
            accumulate_grad_batches=options.accumulate_batches,
            deterministic=options.deterministic or None,
            callbacks=callbacks,
            plugins=plugins,
            logger=loggers,
            enable_checkpointing=True,  # to Lightning, what ends a run is one that saves
            **_place(options),
        )


def _place(options: FitOptions) -> dict[str, Any]:
    return {
        "accelerator": options.accelerator,
        "precision": lightning_precision(options.precision),
        **options.distribution(),
    }
