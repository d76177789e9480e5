"""SIGTERM ends a run where its state can be saved, in all of its processes at the same step."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from manystream.training.distributed import Vote
from manystream.training.sigterm import Terminated, sigterm_handled
from manystream.training.state_saver import StateSaver

_SAME_SECONDS = 1.0
"""Who signals a process group reaches torchrun too, which passes it on: one demand, two signals."""

_PATIENCE_SECONDS = 5.0
"""Validation that ends in this time is waited for, since the epoch can be kept then."""

_ROUND_SECONDS = 2.0
"""Time between two votes in validation, where processes need not have as many batches."""

_DONE, _READING, _END = range(3)


class Termination:
    """Whether SIGTERM has come to any process of a run."""

    def __init__(self) -> None:
        self._came = math.inf
        self._vote: Vote | None = None
        self._pid = os.getpid()

    @property
    def requested(self) -> bool:
        """Tell whether it has come to this process."""
        return self._came < math.inf

    @property
    def overdue(self) -> bool:
        """Tell whether it has come so long ago that nothing more is waited for."""
        return monotonic() - self._came > _PATIENCE_SECONDS

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM down for a while; a second one ends the process at once.

        Raises:
            Terminated: at the end, if it came and nothing has ended the run since.
        """
        try:
            with sigterm_handled(self._take_down):
                yield
        except RuntimeError as error:
            if self.requested and "DataLoader worker" in str(error):
                raise Terminated("SIGTERM ended the processes of a loader as well") from error
            raise
        if self.requested:
            raise Terminated("SIGTERM came when training had ended")

    def meet(self, trainer: pl.Trainer) -> None:
        """Ask the other processes from here on, if there are any."""
        if trainer.world_size > 1:
            self._vote = Vote(trainer.strategy.root_device)

    def heard(self) -> bool:
        """Tell whether any process had it a step ago; asked at every step, waits for nobody."""
        if self._vote is None:
            return self.requested
        heard = self._vote.answer()
        self._vote.ask(self.requested)
        return bool(heard)

    def agreed(self) -> bool:
        """Tell whether any process has it now; waits for all."""
        return self.heard() | self.heard()

    def end_validation(self, *, reading: bool) -> bool:
        """Tell the others whether this process still reads.

        Returns:
            Whether any of them does.

        Raises:
            Terminated: if it is overdue in any of them.
        """
        said: float = _END if self.overdue else _READING if reading else _DONE
        if self._vote is not None:
            self._vote.answer()
            self._vote.ask(said)
            said = self._vote.answer()
        if said == _END:
            raise Terminated("SIGTERM ended training in a validation")
        return said == _READING

    def _take_down(self, *_: Any) -> None:
        is_fork = os.getpid() != self._pid  # of a loader, which is ended by this signal
        if not is_fork and not self.requested:
            self._came = monotonic()
        elif is_fork or monotonic() - self._came > _SAME_SECONDS:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)


class EndInValidation(pl.Callback):
    """Breaks a validation off that would take long; comes before all that meet at its end."""

    def __init__(self, termination: Termination) -> None:
        self._termination = termination
        self._last_round = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._termination.meet(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_round = monotonic()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        if trainer.world_size == 1 or monotonic() - self._last_round > _ROUND_SECONDS:
            self._termination.end_validation(reading=True)
            self._last_round = monotonic()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take part until no process reads any more."""
        while trainer.world_size > 1 and self._termination.end_validation(reading=False):
            pass


class EndAtStep(Checkpoint):
    """Ends a run whose state has just been, or is here, saved; comes after all other callbacks."""

    def __init__(self, termination: Termination, saver: StateSaver | None) -> None:
        self._termination = termination
        self._saver = saver
        self._ends = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End before an epoch; the state between epochs has been saved."""
        if self._ends or self._termination.agreed():
            self._end(f"before epoch {trainer.current_epoch}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """End within an epoch, when no gradient waits for its step."""
        self._ends = self._termination.heard() or self._ends
        done = trainer.fit_loop.batch_idx + 1
        # After the last batch a validation may follow, which is no place to go on from.
        if not self._ends or trainer.is_last_batch or done % trainer.accumulate_grad_batches:
            return
        if self._saver is not None:
            self._saver.save(trainer, done)
        self._end(f"after batch {done} of epoch {trainer.current_epoch}")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Let the processes that this one has started end with what status they will.

        Lightning would kill this one as soon as it sees that one of them did not end with 0.
        """
        launcher = trainer.strategy.launcher
        if isinstance(exception, Terminated) and isinstance(launcher, _SubprocessScriptLauncher):
            launcher.procs.clear()

    def _end(self, where: str) -> None:
        raise Terminated(f"SIGTERM ended training {where} (counted from 0)")
